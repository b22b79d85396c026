"""Types of values whose real type is known only at run time, with the reason for each `Any`."""

from typing import Any

JsonValue = Any
"""A value read from JSON or TOML, or written there. Only the code that reads it knows its type, and checks it or lets a
wrong one fail; a union of all JSON types would need a cast at every use."""
JsonObject = dict[str, JsonValue]

Keywords = dict[str, Any]
"""Keyword arguments that are built step by step, which mypy can't check against a function's parameters."""
