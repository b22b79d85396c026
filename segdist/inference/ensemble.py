"""Several models that the tiler treats as one: the mean of their class probabilities, tile by tile.

The models run one after another on the same tiles, so memory holds all weights but the activations of only one. Their
probabilities are summed in the order in which the models are given, so the bits don't depend on the ranks.

With `disagreement`, the tiler sums one more plane: the mean entropy of the models' probabilities, in nats. The entropy
of the mean minus this mean entropy is the mutual information of class and model, which is 0 where all models agree
(Smith and Gal 2018, "Understanding measures of uncertainty for adversarial example detection").

Letters: B batch, C channels, K classes, P tile side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdist.inference.tiler import TileModel
from segdist.model.model_file import load_model
from segdist.model.precision import Precision
from segdist.model.prepared import prepared


class Ensemble:
    """The mean of `members`, which have the same classes, channels and device.

    Args:
        disagreement: `probabilities` has one more plane, the mean entropy of the members' probabilities in nats.
    """

    def __init__(self, members: Sequence[TileModel], *, disagreement: bool = False) -> None:
        self.members, self.disagreement = members, disagreement
        self.device, self.channels, self.num_classes = members[0].device, members[0].channels, members[0].num_classes
        self.planes = self.num_classes + disagreement

    def normalized(self, rows: np.ndarray) -> torch.Tensor:
        """Stored pixels (h, W, C) as float32 (C, h, W) on the device, unscaled: each member normalizes tiles itself."""
        return self.members[0].pixels(rows)

    def probabilities(self, tiles: torch.Tensor) -> torch.Tensor:
        """Mean probabilities over the members.

        Args:
            tiles: float32 (B, C, P, P) in stored units, on the device.

        Returns:
            float32 (B, planes, P, P), new at each call.
        """
        batch, _, height, width = tiles.shape
        total = torch.zeros(batch, self.planes, height, width, device=self.device)
        for member in self.members:
            probabilities = member.probabilities((tiles - member.mean).mul_(member.scale))
            total[:, : self.num_classes] += probabilities
            if self.disagreement:
                total[:, self.num_classes] += torch.special.entr(probabilities).sum(dim=1)
        return total.mul_(1 / len(self.members))


def load_tile_model(
    files: Sequence[Path],
    device: torch.device,
    precision: Precision,
    *,
    flips: bool,
    channels_last: bool,
    trusted: Sequence[str] = (),
    compiled: bool = False,
    disagreement: bool = False,
    calibrated: bool = True,
    prepare: bool = True,
) -> TileModel | Ensemble:
    """Load one model, or several as an ensemble, onto `device`.

    Args:
        calibrated: divide each model's logits by the temperature in its card.
        prepare: run models as `segdist.model.prepared` returns them, unless compiled; False for the bits of versions
            before that.

    Raises:
        UserError: see `segdist.model.model_file.load_model`.
    """
    members = []
    for file in files:
        model, card = load_model(file, str(device), trusted)
        runnable: Any = model  # Any: torch doesn't declare a compiled module as a module
        if compiled:
            runnable = torch.compile(model)
        elif prepare:
            runnable = prepared(model, device, precision)
        members.append(
            TileModel(
                runnable,
                len(card.classes),
                card.mean,
                card.std,
                device,
                stride_multiple=card.stride_multiple,
                precision=precision,
                flips=flips,
                upside_down=card.flips != "sideways",
                temperature=card.temperature if calibrated else 1.0,
                channels_last=channels_last,
            )
        )
    return members[0] if len(members) == 1 else Ensemble(members, disagreement=disagreement)
