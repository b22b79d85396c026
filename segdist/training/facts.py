"""The facts behind the choices of the preset `auto`: the shard set, the device, and the time available."""

import time

import torch
from torch.nn import functional

from segdist.core.choice import Choice
from segdist.core.errors import UserError
from segdist.core.formats import RUN_VERSION, unstamped
from segdist.core.parsing import read_file
from segdist.core.paths import CONFIG, set_dir
from segdist.model.unet import UNet
from segdist.ranks.process_group import Ranks
from segdist.training.choices import STEP_COST, Facts, choose
from segdist.training.config import TrainConfig
from segdist.training.data import without_fold
from shards.read.reader import ShardSet

WARM_UP, TIMED = 1, 2
"""Reference steps run before timing, and timed; ten times as many on a GPU."""


def chosen_for(config: TrainConfig, ranks: Ranks) -> list[Choice] | None:
    """The choices of `auto` for this run, made by rank 0 for all ranks. Collective.

    A resumed run keeps the choices made at its start.

    Args:
        config: what the user has set; only data, device, length and run folder matter.

    Returns:
        None for a run started by a segdist version without `auto`.
    """
    return ranks.on_main(lambda: _chosen_on_main(config, ranks))


def _chosen_on_main(config: TrainConfig, ranks: Ranks) -> list[Choice] | None:
    path = config.run_dir / CONFIG
    if not path.exists():
        return choose(facts_of(config, ranks))
    there = unstamped(read_file(path), RUN_VERSION, str(path)).get("choices")
    if there is None:
        return None
    try:
        return [Choice(**values) for values in there]
    except TypeError as error:
        raise UserError(
            f"{path}: damaged: its choices can't be read ({error}); restore it, or start a new run (another --name)"
        ) from None


def facts_of(config: TrainConfig, ranks: Ranks) -> Facts:
    """The facts on this rank; times a few steps if the length is given in minutes."""
    sets = [ShardSet(set_dir(name), check="none") for name in config.data]
    manifests = [without_fold(item, config).manifest for item in sets]
    first = manifests[0]
    if config.minutes:
        reference_steps = 60 * config.minutes / reference_seconds(ranks.device) * ranks.world_size
    else:
        batches = [-(-4 * manifest.samples("train") // config.batch_size) for manifest in manifests]
        reference_steps = STEP_COST * (config.steps or config.epochs * sum(batches))
    return Facts(
        images=sum(len(manifest.sources.get("train", ())) for manifest in manifests),
        patches=sum(manifest.samples("train") for manifest in manifests),
        patch=first.patch,
        pixels=tuple(sum(counts) for counts in zip(*(manifest.pixels for manifest in manifests), strict=False)),
        drawn=all("synthetic" in manifest.recipe for manifest in manifests),
        upright=all(manifest.upright for manifest in manifests),
        device=ranks.device.type,
        world_size=ranks.world_size,
        grain=config.grain if config.exact else 1,
        bf16=bf16_instructions(),
        reference_steps=reference_steps,
    )


def reference_seconds(device: torch.device) -> float:
    """Seconds per reference step on `device`: forward, backward and update of a width-16 U-Net on 16 patches of 96²."""
    rounds = 10 if device.type == "cuda" else 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = UNet(1, 3, width=16).to(device)
        images, truth = (
            torch.randn(16, 1, 96, 96, device=device),
            torch.zeros(16, 96, 96, dtype=torch.long, device=device),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(images), truth).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) / count

    steps(WARM_UP * rounds)
    return steps(TIMED * rounds)


def bf16_instructions() -> bool:
    """True if this CPU has bf16 instructions (AVX-512 BF16, AMX), which make bf16 faster than float32."""
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((found and found()) or (amx and amx()))
