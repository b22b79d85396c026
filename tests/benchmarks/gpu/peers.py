"""The same network trained by other libraries, in samples/s: Lightning with stock WebDataset loading, MONAI's trainer.

Both use NHWC, bf16 and a fused optimizer, and flip patches like segdist's default. They have one data worker fewer than
the machine has cores.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segdist.model.unet import UNet
from tests.benchmarks.gpu.bare import CLASSES, Shape
from tests.benchmarks.gpu.machine import Machine

MEAN, STD = 128.0, 60.0


class Clock:
    """Measures the time between two steps after the device has finished them."""

    def __init__(self, machine: Machine, first: int, last: int) -> None:
        self.machine, self.first, self.last = machine, first, last
        self._moments: dict[int, float] = {}

    def stepped(self, number: int) -> None:
        """Record that step `number`, counted from 1, has started."""
        if number in (self.first, self.last):
            self.machine.wait()
            self._moments[number] = time.perf_counter()

    def samples_per_second(self, batch: int) -> float:
        """Rate between the two steps."""
        return (self.last - self.first) * batch / (self._moments[self.last] - self._moments[self.first])


def network(shape: Shape) -> Any:
    """The U-Net with fixed random weights, NHWC."""
    torch.manual_seed(0)
    return UNet(1, CLASSES, width=shape.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the published method."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def flipped(sample: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """A stored patch as network input, prepared with torchvision transforms."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    image, mask = sample
    image = tv_tensors.Image(torch.from_numpy(image.reshape(1, *mask.shape)).float().sub_(MEAN).div_(STD))
    flips = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    image, mask = flips(image, tv_tensors.Mask(torch.from_numpy(mask).long()))
    return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


def lightning(machine: Machine, folder: Path, shape: Shape, warm_up: int, steps: int) -> float:
    """Samples/s of a `LightningModule` fed by `webdataset.WebDataset`."""
    import logging

    import lightning as pl
    import webdataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock(machine, warm_up, warm_up + steps)

    class Module(pl.LightningModule):  # type: ignore[misc]  # lightning isn't installed where types are checked
        def __init__(self) -> None:
            super().__init__()
            self.model = network(shape)

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            images, truth = batch
            images = images.contiguous(memory_format=torch.channels_last)
            return functional.cross_entropy(self.model(images).float(), truth)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

        def on_train_batch_end(self, *_: Any) -> None:
            clock.stepped(self.global_step)

    shards = sorted(map(str, folder.glob("train-*.tar")))
    # Every worker reads all of the few shards in its own order; `repeat`, because the loop counts steps.
    data = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=None, workersplitter=None, seed=0)
        .shuffle(1000)
        .decode()
        .to_tuple("image.npy", "mask.npy")
        .map(flipped)
        .repeat()
    )
    loader = torch.utils.data.DataLoader(
        data, batch_size=shape.batch, num_workers=workers(machine), pin_memory=machine.device.type == "cuda"
    )
    trainer = pl.Trainer(
        accelerator=machine.device.type if machine.device.type == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=warm_up + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    return clock.samples_per_second(shape.batch)


def monai(machine: Machine, folder: Path, shape: Shape, warm_up: int, steps: int) -> float:
    """Samples/s of `SupervisedTrainer` with a `CacheDataset` that holds the whole set in memory."""
    import logging

    from ignite.engine import Events
    from monai.data import CacheDataset, DataLoader
    from monai.engines import SupervisedTrainer
    from monai.inferers import SimpleInferer
    from monai.transforms import Compose, NormalizeIntensityd, RandFlipd, ToTensord

    logging.disable(logging.INFO)
    clock = Clock(machine, warm_up, warm_up + steps)
    transforms = Compose(
        [
            NormalizeIntensityd(["image"], subtrahend=MEAN, divisor=STD),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=1),
            ToTensord(["image", "label"]),
        ]
    )
    data = CacheDataset(stored_patches(folder), transforms, cache_rate=1.0, num_workers=1, progress=False)
    loader = DataLoader(
        data,
        batch_size=shape.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers(machine),
        pin_memory=machine.device.type == "cuda",
        persistent_workers=True,
    )
    model = network(shape).to(machine.device)

    def loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits.float(), truth[:, 0].long())

    trainer = SupervisedTrainer(
        device=machine.device,
        max_epochs=1_000_000,
        train_data_loader=loader,
        network=model,
        optimizer=optimizer_of(model),
        loss_function=loss,
        inferer=SimpleInferer(),
        amp=True,
        amp_kwargs={"dtype": torch.bfloat16},
        non_blocking=True,
        optim_set_to_none=True,
    )

    @trainer.on(Events.ITERATION_COMPLETED)  # type: ignore[untyped-decorator]  # nor is ignite
    def stepped(engine: Any) -> None:
        clock.stepped(engine.state.iteration)
        if engine.state.iteration == clock.last:
            engine.terminate()

    trainer.run()
    logging.disable(logging.NOTSET)
    return clock.samples_per_second(shape.batch)


def stored_patches(folder: Path) -> list[dict[str, np.ndarray]]:
    """All training patches of a shard set, (1, P, P) each, read by `webdataset`."""
    import webdataset

    data = webdataset.WebDataset(sorted(map(str, folder.glob("train-*.tar"))), shardshuffle=False)
    patches = []
    for image, mask in data.decode().to_tuple("image.npy", "mask.npy"):
        patches.append({"image": image.reshape(1, *mask.shape).astype(np.float32), "label": mask[None]})
    return patches


def workers(machine: Machine) -> int:
    """Number of worker processes for a peer's loader."""
    return 1 if machine.tiny else max(1, machine.cores - 1)
