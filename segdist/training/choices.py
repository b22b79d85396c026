"""The preset `auto`: chooses settings from facts about the shard set, the device and the time, each with its reason.

Pure functions of `Facts`. docs/training.md has the measurements behind the numbers.
"""

from dataclasses import dataclass

from segdist.core.choice import Choice

MINUTES = 20.0
"""Default length of a training."""
REFERENCE_PIXELS = 16 * 96**2
"""Pixels in the batch of a reference step, whose model has width 16."""
STEP_COST = 0.62
"""Cost of a trainer step with the same batch and width, in reference steps: NHWC and transposed convolutions help."""
CPU_BATCH_SHARE = 0.5
"""Fraction of the published batch's pixels: as good or better in the same time, with more steps, unless a class is
rare."""
GPU_BATCH = 16
WIDTHS = ((1_500, 16), (6_000, 24), (40_000, 32))
"""Pairs (most reference steps, width)."""
WIDEST = 64
RATE = 6e-3
"""Learning rate for width 16."""
RARE = 0.05
"""Fraction of the pixels below which a class is rare."""
SEEN_OFTEN, SEEN_VERY_OFTEN = 40, 120
"""Number of times a patch must be seen for mild and for strong augmentation to pay off."""
FEW_IMAGES = 15
"""With fewer training images than this, strong augmentation always pays off."""
LARGEST_TILE = 384


@dataclass(frozen=True)
class Facts:
    """The facts that choices are based on."""

    images: int
    """Number of training images."""
    patches: int
    """Number of training patches."""
    patch: int
    """Patch side in pixels."""
    pixels: tuple[int, ...]
    """Pixels per class in the training split."""
    drawn: bool
    """The images are synthetic."""
    upright: bool
    """The images have a fixed up direction."""
    device: str
    """cpu or cuda."""
    world_size: int
    grain: int
    """The batch must be a multiple of this (`--exact`); 1 otherwise."""
    bf16: bool
    """The CPU has bf16 instructions."""
    reference_steps: float
    """Reference steps that all ranks together complete in the time available."""


def choose(facts: Facts) -> list[Choice]:
    """All settings that `auto` chooses."""
    width, batch = _width(facts), _batch(facts)
    return [
        width,
        _depth(facts),
        Choice("model.upsampling", "transposed", "as good as interpolation, and cheaper"),
        batch,
        *_optimizer(width.value),
        _loss(facts),
        *_augmentation(facts, times_seen(facts, width.value, batch.value)),
        *_precision(facts),
        *_inference(facts),
    ]


def times_seen(facts: Facts, width: int, batch: int) -> float:
    """How often each patch is seen in the time available, counting all flips."""
    cost: float = STEP_COST * batch * facts.patch**2 / REFERENCE_PIXELS * (width / 16) ** 1.6
    return facts.reference_steps / cost * batch / max(facts.patches, 1)


def _width(facts: Facts) -> Choice:
    steps = facts.reference_steps
    width = next((width for limit, width in WIDTHS if steps <= limit), WIDEST)
    return Choice("model.width", width, f"there is time for {steps:.0f} reference steps; a wider model needs more")


def _depth(facts: Facts) -> Choice:
    fitting = [depth for depth in (4, 3, 2) if facts.patch % 2**depth == 0 and facts.patch // 2**depth >= 4]
    depth = fitting[0] if fitting else 1
    return Choice("model.depth", depth, f"{facts.patch} pixels become {facts.patch // 2**depth} at the bottom of the U")


def _batch(facts: Facts) -> Choice:
    if facts.device == "cuda":
        batch, reason = GPU_BATCH, "keeps a GPU busy"
    else:
        share = 1.0 if _rarest(facts) < RARE else CPU_BATCH_SHARE
        batch = min(max(round(share * REFERENCE_PIXELS / facts.patch**2), 2), 16)
        reason = f"on a CPU, patches of {facts.patch}: " + (
            "as many pixels as the published batch, because a class is rare"
            if share == 1
            else "half the pixels of the published batch, and twice the steps"
        )
    # The same number on every rank, and with several ranks at least two for batch norm.
    ranks = facts.world_size
    if ranks > 1:
        batch, reason = max(-(-batch // ranks), 2) * ranks, f"{reason}; {ranks} ranks"
    if batch % facts.grain:
        batch, reason = -(-batch // facts.grain) * facts.grain, f"{reason}; grains of {facts.grain}"
    samples = 4 * facts.patches // facts.grain * facts.grain
    if batch > samples >= ranks:
        batch, reason = samples, "all patches under the four flips"
    return Choice("batch_size", batch, reason)


def _optimizer(width: int) -> list[Choice]:
    rate = round(RATE * (16 / width) ** 0.5, 4)
    return [
        Choice("optim.optimizer", "adamw", "reaches a good model in fewer steps than SGD"),
        Choice("optim.lr", rate, f"for a width of {width}"),
        Choice("optim.weight_decay", 0.01, "AdamW's usual"),
        Choice("optim.schedule", "onecycle", "best for a run of known length"),
        Choice("optim.ema_decay", 0.0, "averaging gains nothing, because one-cycle ends at a rate near 0"),
    ]


def _loss(facts: Facts) -> Choice:
    if facts.drawn:
        return Choice("loss.name", "cross_entropy", "synthetic images, as published")
    return Choice("loss.name", "cross_entropy+dice", "better than cross entropy alone, most of all for rare classes")


def _rarest(facts: Facts) -> float:
    """The rarest class's fraction of the pixels; 1 for synthetic images, whose lines are rare by design."""
    total = max(sum(facts.pixels), 1)
    return 1.0 if facts.drawn else min((count / total for count in facts.pixels if count), default=1.0)


def _augmentation(facts: Facts, seen: float) -> list[Choice]:
    if facts.drawn:
        return [Choice("augment.rotate90", False, "synthetic images: the four flips, as published")]
    chosen = [
        Choice("augment.upside_down", False, "the images have a fixed up direction: some classes lie above others")
        if facts.upright
        else Choice("augment.upside_down", True, "nothing indicates that the images have a fixed up direction")
    ]
    few = facts.images < FEW_IMAGES
    reason = f"each patch is seen about {seen:.0f} times"
    if few:
        reason = f"only {facts.images} training images, from which others may differ"
    elif seen < SEEN_OFTEN:
        return [*chosen, Choice("augment.rotate90", False, f"{reason}: the flips are enough")]
    strong = few or seen >= SEEN_VERY_OFTEN
    if facts.upright:
        chosen.append(Choice("augment.rotate", 10.0 if strong else 5.0, f"{reason}; upright images can tilt slightly"))
    else:
        chosen.append(Choice("augment.rotate90", True, f"{reason}; all quarter turns are equally likely"))
    strengths = {"scale": (0.2, 0.5), "brightness": (0.05, 0.1), "contrast": (0.2, 0.4), "gamma": (0.2, 0.4)}
    word = "strong" if strong else "mild"
    chosen += [Choice(f"augment.{name}", pair[strong], f"{reason}: {word}") for name, pair in strengths.items()]
    return chosen


def _precision(facts: Facts) -> list[Choice]:
    if facts.device == "cpu" and facts.bf16:
        return [Choice("precision", "bf16", "this CPU has instructions for it")]
    return []


def _inference(facts: Facts) -> list[Choice]:
    if facts.drawn:
        return []
    tile = max(min(2 * facts.patch, LARGEST_TILE), facts.patch)
    return [
        Choice("inference.tile", tile, "larger than the patches, so fewer pixels are near a tile border"),
        Choice("inference.overlap", 0.25, "enough for tiles of this size, at half the work of 0.5"),
        Choice("inference.flips", True, "averaging over flips is better than one view"),
    ]
