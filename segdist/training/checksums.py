"""Checksums of weights, to verify an exact run later, on another machine or number of ranks."""

import hashlib

import torch
from torch import nn

from segdist.core.json_values import JsonObject

DIGITS = 16
"""Hexadecimal digits of a tensor's checksum."""


def checksums(model: nn.Module) -> dict[str, str]:
    """The start of the SHA-256 of each weight and buffer, by its name in the state dict."""
    return {name: checksum(tensor) for name, tensor in model.state_dict().items()}


def checksum(tensor: torch.Tensor) -> str:
    """The start of the SHA-256 of dtype, shape and row-major values."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def weights_row(model: nn.Module) -> JsonObject:
    """Values for a row of `metrics.jsonl`: an overall checksum, and one per tensor in the order of the state dict."""
    parts = list(checksums(model).values())
    return {"sha256": hashlib.sha256("".join(parts).encode()).hexdigest(), "tensors": parts}


def differing(model: nn.Module, row: JsonObject) -> list[str]:
    """The names of the tensors whose checksums differ from those in `row`."""
    found = checksums(model)
    recorded = dict(zip(found, row["tensors"], strict=True))
    return [name for name, value in found.items() if value != recorded[name]]
