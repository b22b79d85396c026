"""The shard sets of a training run, as one: facts, batches of a rank, validation batches."""

from collections.abc import Generator, Iterable
from pathlib import Path

from segdist.train_config import TrainConfig
from shards.batches import Batch, TrainBatches, ValidationBatches
from shards.errors import UserError
from shards.manifest import ClassInfo, Manifest
from shards.order import SampleOrder
from shards.reader import ShardSet

DATA = Path("data")


class TrainingData:
    """What the trainer needs to know of its data, and the batches of rank `rank` of `world_size`.

    Raises:
        UserError: a set is missing, unfinished or damaged; sets that don't go together; fewer samples than a batch.
    """

    def __init__(self, config: TrainConfig, rank: int = 0, world_size: int = 1, pin: bool = False) -> None:
        self.folders = [set_folder(name) for name in config.data]
        sets = [ShardSet(folder) for folder in self.folders]
        self.manifests = [item.manifest for item in sets]
        first = self.manifests[0]
        for folder, manifest in zip(self.folders[1:], self.manifests[1:], strict=True):
            _require_same(self.folders[0], first, folder, manifest)
        self.classes: tuple[ClassInfo, ...] = first.classes
        self.channels, self.dtype, self.patch = first.channels, first.dtype, first.patch
        self.mean, self.std = first.mean, first.std
        self.pixels = tuple(sum(counts) for counts in zip(*(item.pixels for item in self.manifests), strict=True))
        sizes = [shard.samples for shard in first.of_split("train")]
        self.order = SampleOrder(sizes, config.batch_size, config.seed, flips=config.flips)
        self.steps_per_epoch = config.epoch_steps or self.order.steps_per_epoch
        self._train = TrainBatches(sets[0], self.order, rank, world_size, pin=pin)
        self.validation: Iterable[Batch] | None = None
        if first.samples("val"):
            self.validation = ValidationBatches(sets[0], config.batch_size, rank, world_size)

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """This rank's part of every global batch from `step` of the run on, without end."""
        epoch, first = divmod(step, self.order.steps_per_epoch)
        while True:
            yield from self._train.batches(epoch, first)
            epoch, first = epoch + 1, 0

    def identity(self) -> list[dict[str, str]]:
        """Path and fingerprint of each set, for the run folder."""
        return [
            {"path": str(folder), "fingerprint": manifest.fingerprint}
            for folder, manifest in zip(self.folders, self.manifests, strict=True)
        ]


def set_folder(name: str) -> Path:
    """The folder that `--data NAME` means: data/NAME, or NAME itself where it is a path."""
    path = Path(name)
    if len(path.parts) == 1 and not (path / "manifest.json").is_file():
        return DATA / name
    return path


def _require_same(first_folder: Path, first: Manifest, folder: Path, other: Manifest) -> None:
    for what in ("classes", "channels", "dtype", "patch"):
        one, two = getattr(first, what), getattr(other, what)
        if one != two:
            raise UserError(f"{first_folder} and {folder} can't be mixed: {what} {one} and {two}; rebuild one of them")
