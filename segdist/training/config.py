"""All settings of a training run, as one frozen dataclass. The defaults are the method as published."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segdist.core import paths
from segdist.core.errors import UserError
from segdist.core.fold import parse_fold
from segdist.core.ranges import (
    Count,
    CountOrZero,
    Factor,
    InsideShare,
    NotNegative,
    PartialShare,
    Positive,
    Range,
    Seed,
    Share,
    Threads,
    check_ranges,
)
from segdist.model.config import ModelConfig
from segdist.tracking.config import TrackingConfig


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[Positive, tyro.conf.arg(aliases=["-l"])] = 0.01
    """Maximum learning rate of the schedule."""
    momentum: PartialShare = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """SGD with Nesterov's momentum."""
    weight_decay: NotNegative = 5e-4
    """L2 penalty with SGD, decoupled decay with AdamW. AdamW exempts biases and norm layers."""
    betas: tuple[PartialShare, PartialShare] = (0.9, 0.99)
    """AdamW's averaging factors."""
    schedule: Literal["constant", "step", "cosine", "onecycle", "polynomial"] = "step"
    """Learning-rate schedule. step: multiply by `gamma` at each of `milestones`."""
    milestones: tuple[InsideShare, ...] = (0.5, 0.75)
    """Schedule "step": where the rate drops, as fractions of the run."""
    gamma: Factor = 0.1
    """Schedule "step": factor of each drop."""
    power: Positive = 0.9
    """Schedule "polynomial": (1 - completed fraction of the run) to this power."""
    warmup: PartialShare = 0.0
    """Fraction of the run during which the rate rises linearly from nearly 0; "onecycle" rises along a cosine."""
    clip_norm: NotNegative = 0.0
    """Clip gradients to this norm; 0: never."""
    ema_decay: PartialShare = 0.0
    """Decay of a moving average of the weights, used for validation and inference; 0: no average."""


@dataclass(frozen=True)
class LossConfig:
    """The loss to minimize. Ignored pixels don't count; sums are divided by the global number of counted pixels."""

    name: Literal["cross_entropy", "dice", "cross_entropy+dice", "focal"] = "cross_entropy"
    """Dice is averaged over the classes in each image, then over the images of the global batch."""
    class_weights: Literal["none", "median_frequency", "given"] = "none"
    """Weight of each class in cross entropy and focal loss; median_frequency: from the shard set's pixel counts."""
    weights: tuple[NotNegative, ...] = ()
    """class_weights "given": one number per class."""
    auxiliary: NotNegative = 0.4
    """Weight of the loss of each auxiliary output, if the model has any: outputs with a channel for each class besides
    the main one (named `out` or `logits` in a dictionary, first in a tuple)."""
    focal_gamma: NotNegative = 2.0
    """Focal loss: weight (1 - p)^gamma."""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of training patches, in addition to the flips, which are part of the order of samples. 0 is off."""

    upside_down: bool = True
    """Allow flips to turn images upside down; without it, they only mirror left and right, for images with a fixed up
    direction."""
    rotate90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees; for images without a fixed up direction (square patches only)."""
    rotate: Annotated[float, Range(0, 180)] = 0.0
    """Rotate by up to this many degrees, either way."""
    scale: Annotated[float, Range(0, 4)] = 0.0
    """Enlarge or shrink by up to this fraction (0.2: from 1/1.2 to 1.2)."""
    elastic: Annotated[float, Range(0, 100)] = 0.0
    """Elastic deformation: standard deviation in pixels of the shift of control points about 24 pixels apart."""
    brightness: Share = 0.0
    """Add up to this fraction of the range of the training images (6 standard deviations), either way."""
    contrast: Annotated[float, Range(0, 4)] = 0.0
    """Raise or lower contrast around the patch's mean by up to this fraction (0.2: from 1/1.2 to 1.2)."""
    gamma: Annotated[float, Range(0, 4)] = 0.0
    """Raise to a power from 1/(1 + gamma) to 1 + gamma, as fractions of the range."""
    noise: Share = 0.0
    """Add normal noise; its standard deviation is drawn up to this fraction of the range."""
    blur: Annotated[float, Range(0, 10)] = 0.0
    """Gaussian blur; its standard deviation is drawn up to this many pixels."""


@dataclass(frozen=True)
class InferenceConfig:
    """Defaults for `segdist infer`, stored in the model card."""

    tile: CountOrZero = 0
    """Tile side in pixels; 0: the side of the patches."""
    overlap: PartialShare = 0.5
    """Fraction of a tile shared with its neighbor."""
    flips: bool = False
    """Average over the flips used in training."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save the state of the run. A signal to stop also saves it."""

    every_steps: CountOrZero = 0
    """Also save every this many steps; 0: only at the end of epochs."""
    every_minutes: NotNegative = 5.0
    """Also save this many minutes after the last checkpoint; 0: never."""
    keep_last: Count = 2
    """Number of latest checkpoints to keep."""
    background: bool = True
    """Write in the background, from a copy in memory."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on a shard set."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-f"])] = ("synthetic",)
    """Shard sets: names under data/, or folders. Several are mixed by `data_weights`."""
    data_weights: tuple[Positive, ...] = ()
    """Several sets: weight of each in the samples; default: proportional to the numbers of patches."""
    data_check: Literal["sizes", "shards", "records"] = "sizes"
    """Integrity checks before samples are used. sizes: every file's size, both ends of each shard, and, in the
    background, each shard's checksum once per start; shards: each shard's checksum before it is first used; records:
    also each record's checksum on every read."""
    name: Annotated[str, tyro.conf.arg(aliases=["-n"])] = ""
    """Run folder: a name under runs/, or a path. Default: the name of the first shard set. Started again, a stopped
    run resumes."""
    fold: str = ""
    """k/n: train on all training and validation images except those of the k-th of n folds, without validation: one run
    of `segdist cross-validate`. `seed` determines the folds."""
    epochs: Annotated[CountOrZero, tyro.conf.arg(aliases=["-e"])] = 100
    """Passes over all patches under all flips."""
    steps: CountOrZero = 0
    """Optimizer steps of the whole run, instead of epochs."""
    minutes: NotNegative = 0.0
    """Wall time of the whole training, including start-up and validation. Timed steps at the first start convert it to
    a number of steps, which stays fixed however long the run takes. 0: `steps` or `epochs` decide. If `steps` is also
    set, it decides, and the minutes only tell the preset `auto` how much time to plan for."""
    epoch_steps: CountOrZero = 0
    """Length of an epoch in steps; 0: all patches under all flips. Required with several sets."""
    batch_size: Annotated[Count, tyro.conf.arg(aliases=["-b"])] = 16
    """Samples of one optimizer step, over all ranks and accumulation steps."""
    accumulate: Count = 1
    """Number of micro-batches per rank (gradient accumulation), to save memory."""
    seed: Seed = 0
    """Seed of the initial weights, the order of samples and the augmentation."""
    flips: bool = True
    """Train on each patch under its four flips."""
    validate_every: CountOrZero = 0
    """Validate every this many steps; 0: at the end of each epoch. The end of the run always validates."""
    log_every: Count = 20
    """Steps between two rows of training figures."""
    max_bad_steps: Count = 10
    """Stop the run after this many consecutive steps with NaN or infinite gradients; single ones are skipped and
    counted."""
    init_from: str = ""
    """Warm start: a model file or run folder whose weights are copied if names and shapes agree."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; auto: bf16 or fp16 if the GPU benefits, else fp32."""
    threads: Threads = 0
    """CPU threads per rank; 0: $OMP_NUM_THREADS, or the node's cores divided between its ranks."""
    channels_last: bool = True
    """Keep images and weights in NHWC order: faster on CPUs, and with AMP on GPUs."""
    compile: bool = False
    """torch.compile the model."""
    deterministic: bool = False
    """Use only deterministic GPU kernels, so that a resumed run is bit-identical. On a CPU it always is."""
    exact: bool = False
    """Bit-identical weights on any number of ranks, even if the number changes during the run."""
    grain: Count = 4
    """--exact: samples computed together, regardless of the number of ranks; --batch-size must be a multiple of it."""
    checksum_every: Count = 100
    """--exact: steps between two checksums of the weights in metrics.jsonl, for `segdist replay` to compare with."""
    sync_batch_norm: bool = False
    """Batch norm over all ranks (GPUs only). Without it every rank normalizes by its own part of the batch."""
    check: bool = True
    """Try two batches, a validation batch and a checkpoint before training, then restore the initial state."""
    profile: CountOrZero = 0
    """Profile this many steps after the start: a trace file and a table in the run folder."""
    quiet: bool = False
    """No progress, only warnings and the result."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def run_dir(self) -> Path:
        """The folder for `--name NAME`: runs/NAME, or NAME itself if it is a path."""
        return paths.run_dir(self.name or Path(self.data[0]).name)

    def validate(self) -> None:
        """Refuse invalid values and combinations before anything is read or written.

        Raises:
            UserError: names the settings.
        """
        check_ranges(self)
        if not (self.epochs or self.steps or self.minutes):
            raise UserError("--epochs 0: must be at least 1, or give --steps or --minutes")
        paths.possible_path(str(self.run_dir))
        self.tracking.validate()
        if not self.data:
            raise UserError("--data: name at least one shard set")
        if len(self.data) > 1 and not self.epoch_steps:
            raise UserError(f"--data names {len(self.data)} sets: give the length of an epoch with --epoch-steps")
        if self.fold:
            parse_fold(self.fold, self.seed)
            if len(self.data) > 1:
                raise UserError(
                    f"--fold {self.fold}: divides the images of one shard set; --data names {len(self.data)}"
                )
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise UserError(f"--data-weights has {len(self.data_weights)} numbers for {len(self.data)} sets")
        if (self.loss.class_weights == "given") != bool(self.loss.weights):
            raise UserError("--loss.weights and --loss.class-weights given require each other")
        if self.loss.weights and not any(self.loss.weights):
            raise UserError(f"--loss.weights {_words(self.loss.weights)}: all are 0, so nothing would be learned")
        if list(self.optim.milestones) != sorted(set(self.optim.milestones)):
            raise UserError(f"--optim.milestones {_words(self.optim.milestones)}: must be increasing")
        if self.optim.nesterov and (self.optim.optimizer != "sgd" or not self.optim.momentum):
            raise UserError("--optim.nesterov requires --optim.optimizer sgd and an --optim.momentum above 0")
        if self.exact:
            self._validate_exact()
        if self.sync_batch_norm and self.model.norm != "batch":
            raise UserError(f"--sync-batch-norm requires --model.norm batch, not {self.model.norm}")

    def _validate_exact(self) -> None:
        for flag, wanted in (
            ("--accumulate", self.accumulate > 1),
            ("--sync-batch-norm", self.sync_batch_norm),
            ("--compile", self.compile),
        ):
            if wanted:
                raise UserError(f"--exact can't be combined with {flag}: omit one of them")
        if self.batch_size % self.grain:
            raise UserError(
                f"--exact splits the batch into grains of {self.grain} samples, but --batch-size {self.batch_size} is "
                "not a multiple of that: change it or --grain"
            )


@dataclass(frozen=True)
class ReplayConfig:
    """The steps to recompute."""

    run: tyro.conf.Positional[str]
    """Run folder, or a name below runs/."""
    step: Count
    """The last step to recompute."""
    from_start: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start from the initial weights instead of the nearest checkpoint."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-f"])] = ()
    """Current location of the run's shard sets, if they have moved."""


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
