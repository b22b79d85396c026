"""Scores on the validation patches: each patch counts once; the scores are the same on any number of ranks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from segdist.core.json_values import JsonObject
from segdist.model.metrics import confusion_matrix, dice_per_class, iou_per_class, mean_iou, pixel_accuracy
from segdist.model.outputs import main_logits
from segdist.model.precision import Precision
from segdist.ranks.process_group import Ranks
from segdist.training.losses import Loss
from segdist.training.preprocess import Preprocessor
from shards.read.batches import Batch


@dataclass(frozen=True)
class Example:
    """One validation patch to log: uint8 arrays (P, P) or (P, P, 3)."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class ValidationResult:
    """Scores over all validation patches."""

    loss: float
    confusion: torch.Tensor
    """int64 (K, K) on the CPU; rows are true classes."""
    examples: list[Example]
    """A few patches from the first batch, on rank 0 only."""

    @property
    def mean_iou(self) -> float:
        return mean_iou(self.confusion)

    def row(self) -> JsonObject:
        """The scores as a row of `metrics.jsonl`."""
        return {
            "loss": self.loss,
            "mean_iou": self.mean_iou,
            "iou": iou_per_class(self.confusion).tolist(),
            "dice": dice_per_class(self.confusion).tolist(),
            "pixel_accuracy": pixel_accuracy(self.confusion),
            "confusion_matrix": self.confusion.tolist(),
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocessor,
    loss: Loss,
    precision: Precision,
    ranks: Ranks,
    num_classes: int,
    examples: int = 4,
) -> ValidationResult:
    """Run `model` on this rank's validation batches and reduce over ranks. Collective.

    The results are bit-identical on any number of ranks: the batches are the same, the confusion matrix is summed as
    integers, and the loss is summed in the order of the batches.
    """
    model.eval()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=ranks.device)
    sums: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    shown: list[Example] = []
    for batch in batches:
        images, truth = preprocess.plain(batch)
        with precision.autocast(images.device):
            logits = main_logits(model(images), num_classes, (truth.shape[-2], truth.shape[-1]))
        prediction = logits.argmax(dim=1)
        confusion += confusion_matrix(truth, prediction, num_classes)
        sums.append((batch.step, loss.sums(logits, truth).double(), loss.counts(truth)))
        if ranks.is_main and not shown:
            shown = _examples(batch.images[:examples], truth[:examples], prediction[:examples])
    gathered = sorted(item for part in ranks.gather([_plain(item) for item in sums]) for item in part)
    total = [sum(values) for values in zip(*(item[1] for item in gathered), strict=True)]
    count = [sum(values) for values in zip(*(item[2] for item in gathered), strict=True)]
    return ValidationResult(
        loss=sum(value / max(number, 1) for value, number in zip(total, count, strict=True)),
        confusion=ranks.sum_(confusion).cpu(),
        examples=shown,
    )


def _plain(item: tuple[int, torch.Tensor, torch.Tensor]) -> tuple[int, list[float], list[int]]:
    number, sums, counts = item
    return number, sums.tolist(), counts.tolist()


def _examples(images: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor) -> list[Example]:
    """Patches as pictures: gray (P, P), or the first three channels (P, P, 3); 16 bits are scaled to 8."""
    found = []
    for image, labels, guess in zip(images, truth.cpu().numpy(), prediction.cpu().numpy(), strict=True):
        array = image.numpy()
        if array.dtype != np.uint8:
            array = (array // 257).astype(np.uint8)
        picture = array[:3].transpose(1, 2, 0) if len(array) >= 3 else array[0]
        # Copies, because the reader reuses its buffers.
        found.append(Example(picture.copy(), labels.copy(), guess.astype(np.uint8)))
    return found
