"""Types of tables read from JSON or TOML, or passed on as keyword arguments."""

from typing import Any

JsonObject = dict[str, Any]
"""Names and JSON values. `Any`, because only the code that reads a value knows its type: it checks the value or lets a
wrong one fail; a union of all JSON types would need a cast at every use."""

Keywords = dict[str, Any]
"""Keyword arguments for a function; mypy can't check them against its parameters."""
