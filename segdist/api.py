"""The three jobs as Python functions: `segdist.make_shards`, `segdist.train`, `segdist.infer`.

    cells = segdist.make_shards(name="cells", images={"folder": "images"}, masks={"folder": "masks"})
    run = segdist.train(data=cells, minutes=20)
    result = segdist.infer(model=run, data=cells)
    print(result.scores["mean_iou_over_images"], result.folder)

Each takes the settings of its command as keywords: `--batch-size 8` is `batch_size=8`. Options of a section become a
dictionary: `--model.width 32` is `model={"width": 32}`. Settings left out are chosen as by the command. The functions
print nothing unless `quiet=False`, and issue Python warnings. Under torchrun or Slurm, the script is one of the ranks.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.keywords import from_keywords, plain
from segdist.core.parsing import merge
from segdist.core.terminal import as_library, say

if TYPE_CHECKING:
    from segdist.inference.job import Result
    from segdist.training.job import TrainedRun
    from shards.read.reader import ShardSet


def make_shards(*, quiet: bool = True, **settings: object) -> "ShardSet":
    """Cut labeled images into patches and write a shard set, as `segdist make-shards` does.

    Called again with the same settings, it reuses finished work and completes the rest.

    Args:
        quiet: print nothing; False: print what the command prints.
        settings: those of `segdist.set_job.MakeShardsJob`, such as `name`, `images={"folder": …}`,
            `masks={"folder": …, "classes": [...]}`, `overwrite`. Without `images`, synthetic ones are used.

    Returns:
        The set, open for reading: `folder` is its location, `manifest` describes its contents.

    Raises:
        UserError: bad images, masks or settings; the folder holds a set with another recipe; a full disk.
    """
    from segdist.set_job import MakeShardsJob, make_tracked_set
    from shards.read.reader import ShardSet

    job = from_keywords(MakeShardsJob, settings, "segdist.make_shards()")
    if job.task:
        raise UserError("segdist.make_shards(): task is for job arrays; use the command: segdist make-shards --task")
    with _as_asked(quiet):
        make_tracked_set(job, quiet=quiet)
    return ShardSet(job.folder)


def train(*, preset: str = "", quiet: bool = True, **settings: object) -> "TrainedRun":
    """Train a model on a shard set, as `segdist train` does. Called again, it resumes the run.

    Ctrl-C stops it cleanly, with a checkpoint and the state "stopped".

    Args:
        preset: "auto", "paper", "fast", or a TOML file. Default: "paper" if `epochs` is given, else "auto".
        quiet: print nothing; False: print what the command prints.
        settings: those of `segdist.training.config.TrainConfig`, such as `data` (name, folder or `ShardSet`), `name`,
            `minutes` or `steps` or `epochs`, `model={"width": 32}`, `tracking={"wandb": "off"}`.

    Returns:
        The run: `folder`, `state`, `scores` on the validation patches, `model` file.

    Raises:
        UserError: bad settings or data; the folder holds a run with other settings; out of memory.
    """
    from segdist.ranks.process_group import ranks
    from segdist.training.config import TrainConfig
    from segdist.training.presets import AUTO, choose_preset

    call = "segdist.train()"
    given = plain(settings, call) | {"quiet": quiet}
    name, values = choose_preset(preset, given)

    def read(values: JsonObject) -> TrainConfig:
        return from_keywords(TrainConfig, merge(values, given), call)

    config = read(values)
    with _as_asked(quiet), _torch_as_before(), ranks(config.device, config.threads, meeting_place=config.run_dir) as us:
        # Slow to import, so wrong settings are refused first.
        from segdist.training.job import choice_lines, with_choices
        from segdist.training.job import train as train_here

        config, choices = with_choices(config, read, values, us) if name == AUTO else (config, [])
        if us.is_main:
            for line in choice_lines(choices):
                say(line)
        return train_here(config, us, _as_command("train", {"preset": name} | given), choices)


def infer(*, quiet: bool = True, **settings: object) -> "Result":
    """Segment images of any size and score them, as `segdist infer` does. Called again, it resumes.

    Args:
        quiet: print nothing; False: print what the command prints.
        settings: those of `segdist.inference.config.InferConfig`: `model` (run, its folder or file, or a list);
            `images` (files, folders) or `data` (a shard set's held-out images); `out`, `output={"probabilities":
            "float16"}`. Tile, overlap and flips default to those in the model card.

    Returns:
        The result: `folder`, `scores` (the content of scores.json, None without true masks), `images` (their number),
        `failures` (images that couldn't be segmented, with the reason).

    Raises:
        UserError: bad settings; missing model or images; with `strict=True`, an image that can't be segmented.
    """
    from segdist.inference.config import InferConfig
    from segdist.model.card import inference_settings
    from segdist.ranks.process_group import ranks

    call = "segdist.infer()"
    given = plain(settings, call) | {"quiet": quiet}
    config = from_keywords(InferConfig, given, call)
    config = from_keywords(InferConfig, merge(inference_settings(config.models), given), call)
    from segdist.inference.job import PATIENCE
    from segdist.inference.job import infer as infer_here
    from segdist.inference.printout import summary_text
    from segdist.inference.publish import publish
    from segdist.tracking import check_trackers

    with _as_asked(quiet), _torch_as_before():
        check_trackers(config.tracking)
        with ranks(config.device, config.threads, PATIENCE, config.meeting_place) as us:
            began = time.monotonic()
            result = infer_here(config, us)
            if us.is_main:
                say(summary_text(result))
                publish(config, result, us, time.monotonic() - began)
            return result


def _as_asked(quiet: bool) -> contextlib.AbstractContextManager[None]:
    return as_library() if quiet else contextlib.nullcontext()


@contextlib.contextmanager
def _torch_as_before() -> Iterator[None]:
    """Restore the caller's random state, number of threads and choice of algorithms at the end."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def _as_command(function: str, settings: JsonObject) -> list[str]:
    """A command line that repeats the call."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return ["python", "-c", f"import segdist; segdist.{function}({arguments})"]
