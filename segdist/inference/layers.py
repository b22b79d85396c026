"""Turns sums of probabilities into the layers to store: mask, probabilities and uncertainty maps."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from segdist.inference.config import OutputConfig, ProbabilityType
from segdist.inference.enlarge import Means
from segdist.inference.tiler import FinishedRows, labels_of

MASK, CONFIDENCE, ENTROPY, DISAGREEMENT = "mask", "confidence", "entropy", "disagreement"


@dataclass(frozen=True)
class Layers:
    """Which layers an image gets."""

    num_classes: int
    probabilities: ProbabilityType = "none"
    confidence: bool = False
    entropy: bool = False
    disagreement: bool = False

    @staticmethod
    def wanted(output: OutputConfig, num_classes: int, *, figure: bool) -> "Layers":
        """The layers that the config requests; a figure also needs probability maps, of any type."""
        kind = output.probabilities
        kind = "uint8" if kind == "none" and figure else kind
        return Layers(num_classes, kind, output.confidence, output.entropy, output.disagreement)

    def dtypes(self) -> dict[str, np.dtype]:
        """dtype of each layer."""
        found = {MASK: np.dtype(np.uint8)}
        if self.probabilities != "none":
            found |= {name: np.dtype(self.probabilities) for name in self.probability_names()}
        return found | dict.fromkeys(self.maps(), np.dtype(np.uint8))

    def maps(self) -> list[str]:
        """The names of the requested uncertainty maps."""
        wanted = {CONFIDENCE: self.confidence, ENTROPY: self.entropy, DISAGREEMENT: self.disagreement}
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def probability_names(self) -> list[str]:
        """Names of the probability layers, in class order."""
        return [f"p{label}" for label in range(self.num_classes)]

    def bytes_per_pixel(self) -> int:
        """Bytes per pixel of all layers together."""
        return sum(dtype.itemsize for dtype in self.dtypes().values())

    def encode(self, rows: FinishedRows, probabilities: Means) -> dict[str, torch.Tensor]:
        """The layers of finished rows, on the device of the sums."""
        # The mask comes from the sums, because stored probabilities are rounded.
        encoded = {MASK: labels_of(rows.sums[: self.num_classes])}
        if self.probabilities == "none" and not self.maps():
            return encoded
        planes = probabilities.mean(rows)
        means = planes[: self.num_classes]
        if self.probabilities != "none":
            stored = quantized(means, self.probabilities)
            encoded |= dict(zip(self.probability_names(), stored, strict=True))
        if self.confidence:
            encoded[CONFIDENCE] = quantized(means.amax(dim=0), "uint8")
        if self.entropy or self.disagreement:
            largest = math.log(self.num_classes) if self.num_classes > 1 else 1.0
            entropy = torch.special.entr(means).sum(dim=0)
            if self.disagreement:  # before `entropy` is overwritten
                encoded[DISAGREEMENT] = quantized((entropy - planes[self.num_classes]).div_(largest), "uint8")
            if self.entropy:
                encoded[ENTROPY] = quantized(entropy.div_(largest), "uint8")
        return encoded


def quantized(values: torch.Tensor, kind: ProbabilityType) -> torch.Tensor:
    """Values from 0 to 1 as `kind`: floats as they are, integers as round(value x largest)."""
    if kind == "float32":
        return values
    if kind == "float16":
        return values.half()
    largest = 255 if kind == "uint8" else 65535
    return (values * largest).round_().clamp_(0, largest).to(torch.uint8 if kind == "uint8" else torch.uint16)


def dequantized(values: np.ndarray) -> np.ndarray:
    """Stored probabilities as float32 from 0 to 1."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
