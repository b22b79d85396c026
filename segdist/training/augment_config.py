"""Settings of the augmentations (`segdist.training.augmentation`), importable without torch."""

from dataclasses import dataclass

from segdist.core.errors import UserError


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of training patches beside the flips, which belong to the order of samples. 0 is off."""

    rotate90: bool = False
    """Turn by 0, 90, 180 or 270 degrees; for images that have no up (square patches only)."""
    rotate: float = 0.0
    """Turn by up to this many degrees, either way."""
    scale: float = 0.0
    """Enlarge or shrink by up to this share (0.2: from 1/1.2 to 1.2)."""
    elastic: float = 0.0
    """Elastic deformation: standard deviation in pixels of the shift of control points about 24 pixels apart."""
    brightness: float = 0.0
    """Add up to this share of the full range (255 for 8 bit), either way."""
    contrast: float = 0.0
    """Stretch or flatten about the patch's mean by up to this share (0.2: from 1/1.2 to 1.2)."""
    gamma: float = 0.0
    """Raise to a power from 1/(1 + gamma) to 1 + gamma."""
    noise: float = 0.0
    """Add normal noise; its standard deviation is drawn up to this share of the full range."""
    blur: float = 0.0
    """Gaussian blur; its standard deviation is drawn up to this many pixels."""

    def validate(self) -> None:
        """Raises UserError for a strength that makes no sense."""
        limits = {"rotate": 180, "scale": 4, "elastic": 100, "brightness": 1, "contrast": 4, "gamma": 4, "noise": 1}
        for name, limit in {**limits, "blur": 10}.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise UserError(f"--augment.{name} {value}: from 0 (off) to {limit}")
