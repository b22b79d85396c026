"""Reporting of a training run: progress, a line per epoch, `metrics.jsonl`, trackers, `summary.json`. Rank 0 only."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import nn

from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.machine import peak_memory_mb
from segdist.core.paths import BEST_MODEL, CHECKPOINTS, EVENTS, METRICS
from segdist.core.states import State
from segdist.core.terminal import Progress, clock, say, warn
from segdist.ranks.process_group import Ranks
from segdist.runs.record import read_rows
from segdist.tracking import Trackers
from segdist.training.checkpoint import StateDict
from segdist.training.checksums import weights_row
from segdist.training.learner import StepFigures
from segdist.training.run_files import MetricsLog, append_event, write_summary
from segdist.training.validation import ValidationResult
from shards.manifest import ClassInfo
from shards.read.batches import Batch

WITHOUT_EMA = ("loss_without_ema", "mean_iou_without_ema")
NOT_TRACKED = {"kind", "step", "epoch", "time", "skipped", "slowest_rank"}
"""Keys in a row of training metrics that are not metrics."""


@dataclass
class _Pace:
    """Steps, elapsed seconds, and seconds spent waiting for data, since creation."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)


@dataclass
class _RankSeconds:
    """Seconds per step that each rank took before it needed the others, over this start of the run."""

    sums: list[float] = field(default_factory=list)
    steps: int = 0

    def add(self, seconds: Sequence[float], steps: int) -> JsonObject:
        """Add the means over `steps`. Returns their spread for a row of metrics, nothing for a single rank."""
        if len(seconds) < 2:
            return {}
        self.sums = [old + steps * new for old, new in zip(self.sums or [0.0] * len(seconds), seconds, strict=True)]
        self.steps += steps
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        return {"rank_s_median": median(seconds), "rank_s_max": seconds[slowest], "slowest_rank": slowest}

    def means(self) -> list[float]:
        return [float(f"{value / self.steps:.4g}") for value in self.sums] if self.steps else []


class RunReporter:
    """Reports a run's progress. On ranks other than 0, the methods only keep time.

    Args:
        classes: of the shard set.
        start_trackers: opens the trackers, unless the run is already finished; gets the checkpoint's W&B run id.
        quiet: print no progress and no line per epoch.
    """

    def __init__(
        self,
        folder: Path,
        classes: tuple[ClassInfo, ...],
        batch_size: int,
        ranks: Ranks,
        start_trackers: Callable[[str | None], Trackers],
        quiet: bool = False,
    ) -> None:
        self.folder, self.classes, self.batch_size = folder, classes, batch_size
        self.ranks, self._start_trackers = ranks, start_trackers
        self.trackers = Trackers({})
        self.quiet = quiet or not ranks.is_main
        self._metrics: MetricsLog | None = None
        self._progress = Progress("training", total=0, unit="steps", quiet=True)
        self._rows, self._epoch = _Pace(), _Pace()
        self._rank_seconds = _RankSeconds()
        self._loss = float("nan")
        self._mean_iou: float | None = None
        self._skipped = 0
        self._steps = 0
        self._nothing_to_do = False

    def open(self) -> None:
        """Open the files in the run folder, which must exist. Only rank 0 calls this."""
        self._metrics = MetricsLog(self.folder / METRICS)

    def started(self, step: int, steps: int, metrics_position: int, checkpoint: StateDict | None) -> None:
        """Report a start at `step` of `steps`, and drop the rows of steps that will be repeated.

        Args:
            checkpoint: what the run resumes from; None for a new run.
        """
        self._steps = steps
        if self._metrics is None:
            return
        self._metrics.cut_back(metrics_position)
        if step >= steps:
            if not self.quiet:
                say(f"{self.folder}: finished already, after {step} steps; a larger --steps or --epochs extends it")
            # Starting a finished run again does nothing, so it gets no event and no tracker. But a run killed after
            # its last checkpoint must still be marked as finished.
            self._nothing_to_do = [event["what"] for event in read_rows(self.folder / EVENTS)[-1:]] == ["finished"]
            if self._nothing_to_do:
                return
        what = "started" if checkpoint is None else "resumed"
        append_event(self.folder, what, step, steps=steps, ranks=self.ranks.world_size, device=str(self.ranks.device))
        if checkpoint is not None and step < steps and not self.quiet:
            say(f"{self.folder}: resuming after step {step} of {steps}")
        self.trackers = self._start_trackers(None if checkpoint is None else checkpoint["trackers"]["run_id"])
        # Rows that a killed process hadn't sent yet, or all of them if the run wasn't tracked before.
        rows = [row for row in read_rows(self.folder / METRICS) if row["kind"] in ("train", "val")]
        self.trackers.catch_up([(row["step"], self._tracked(row)) for row in rows])

    @contextmanager
    def progress(self, step: int, steps: int) -> Iterator[None]:
        """Show progress while the context is open."""
        self._rows, self._epoch = _Pace(), _Pace()
        with Progress("training", total=steps, unit="steps", quiet=self.quiet, done=step) as self._progress:
            yield

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, measuring how long each took to arrive."""
        iterator = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(iterator, None)
            waited = time.monotonic() - began
            self._rows.waited += waited
            self._epoch.waited += waited
            if batch is None:
                return
            yield batch

    @property
    def waited(self) -> float:
        """Mean seconds per step that this rank has waited for its batch since the last row of metrics."""
        return self._rows.waited / max(self._rows.steps, 1)

    def stepped(self, epoch: int) -> None:
        """Count a finished step."""
        self._rows.steps += 1
        self._epoch.steps += 1
        note = f"epoch {epoch + 1}{self._loss_text(', ')}"
        if self._mean_iou is not None:
            note += f", mIoU {self._mean_iou:.4f}"
        self._progress.advance(note=note)

    def trained(self, step: int, epoch: int, rate: float, figures: StepFigures) -> None:
        """Write a row of training metrics."""
        self._loss = figures.loss
        pace, self._rows = self._rows, _Pace()
        if self._metrics is None:
            return
        row = {
            "loss": figures.loss,
            "lr": rate,
            "grad_norm": figures.grad_norm,
            "samples_per_s": pace.steps * self.batch_size / pace.seconds,
            "data_wait": pace.waited / pace.seconds,
            "memory_mb": memory_mb(self.ranks.device),
        } | self._rank_seconds.add(figures.rank_seconds, pace.steps)
        if len(figures.loss_parts) > 1:
            row |= {f"loss_{name}": value for name, value in figures.loss_parts.items()}
        if figures.loss_scale != 1:
            row["loss_scale"] = figures.loss_scale
        self._metrics.append("train", step, epoch=epoch, **row, skipped=figures.skipped)
        self.trackers.log(self._tracked({"kind": "train", "epoch": epoch, **row}), step)
        if figures.skipped > self._skipped:
            self._skipped = figures.skipped
            append_event(self.folder, "skipped_steps", step, skipped=figures.skipped)
            warn(f"step {step}: {figures.skipped} steps so far had NaN or infinite gradients and were skipped")

    def weights(self, step: int, epoch: int, model: nn.Module) -> None:
        """Write a row with the checksums of the weights."""
        if self._metrics is not None:
            self._metrics.append("weights", step, epoch=epoch, **weights_row(model))

    def validated(
        self, step: int, epoch: int, result: ValidationResult | None, latest: ValidationResult | None = None
    ) -> None:
        """Write a row of scores, log pictures to the trackers, and print a line.

        Args:
            result: scores of the saved model; None without validation patches.
            latest: scores of the latest weights, if the saved model is their moving average.
        """
        if self._metrics is None:
            return
        if result is not None:
            self._mean_iou = result.mean_iou
            more = {} if latest is None else dict(zip(WITHOUT_EMA, (latest.loss, latest.mean_iou), strict=True))
            row = result.row() | more
            self._metrics.append("val", step, epoch=epoch, **row)
            self.trackers.log(self._tracked({"kind": "val", **row}), step)
            self._show(step, result)
        self.epoch_ended(step, epoch)

    def epoch_ended(self, step: int, epoch: int) -> None:
        """Print a line with the latest scores."""
        if not self.quiet:
            say(self._epoch_line(step, epoch))
        self._epoch = _Pace()

    def position(self) -> int | None:
        """Length of the metrics file in bytes, for the checkpoint. None while rows wait for disk space."""
        return self._metrics.position() if self._metrics is not None else 0

    def tracker_state(self) -> JsonObject:
        """The trackers' state, for the checkpoint."""
        return self.trackers.state()

    def finished(self, state: State, **summary: JsonValue) -> None:
        """Report the end of this start: "finished", "stopped" or "failed"."""
        if self._nothing_to_do and state == "finished":
            return
        if self._metrics is not None:
            append_event(self.folder, state, summary["step"])
            summary |= {"rank_seconds": means} if (means := self._rank_seconds.means()) else {}
            write_summary(self.folder, state=state, skipped_steps=self._skipped, **summary)
            self._metrics.close()
            if not self.quiet:
                self._say_outcome(state, summary)
        if state == "finished":
            self._log_artifacts()
        self.trackers.finish(state)

    def _log_artifacts(self) -> None:
        """Log the best model, and the last checkpoint, which allows extending the run elsewhere."""
        checkpoint = max((self.folder / CHECKPOINTS).glob("step-*.pt"), default=None)
        for path, what in ((self.folder / BEST_MODEL, "best"), (checkpoint, "checkpoint")):
            if path is not None and path.is_file():
                self.trackers.log_artifact(path, f"{self.folder.resolve().name}-{what}")

    def _say_outcome(self, state: State, summary: JsonObject) -> None:
        """Print how this start ended, the best epoch, and the paths of the results."""
        say(f"{self.folder}: {state} after step {summary['step']} of {summary['steps']}, {clock(summary['seconds'])}")
        if summary["best_step"] and (self.folder / BEST_MODEL).is_file():
            score = summary["best_mean_iou"]
            what = (
                "model, without a score" if score is None else f"best: mean IoU {score:.4f} on the validation patches"
            )
            where = f"epoch {summary['best_epoch'] + 1}, step {summary['best_step']}: {self.folder / BEST_MODEL}"
            say(f"  {what}, {where}" + ("" if score is not None else "; the set has 0 validation patches"))
        say(f"  metrics: {self.folder / METRICS}, checkpoints: {self.folder / 'checkpoints'}")
        if state == "stopped":
            say("  the same command resumes from here")

    def _tracked(self, row: JsonObject) -> dict[str, float]:
        """The values in a row of `metrics.jsonl`, under the names used in trackers."""
        if row["kind"] == "train":
            known = {name: value for name, value in row.items() if name not in NOT_TRACKED and value is not None}
            return {f"train/{name}": value for name, value in known.items()} | {"epoch": row["epoch"]}
        known = {name: row.get(name) for name in ("loss", "mean_iou", "pixel_accuracy", *WITHOUT_EMA)}
        values = {f"val/{name}": value for name, value in known.items()}
        for score in ("iou", "dice"):
            per_class = zip(self.classes, row[score], strict=True)
            values |= {f"val/{score}/{info.name}": value for info, value in per_class}
        return {name: value for name, value in values.items() if value is not None}

    def _show(self, step: int, result: ValidationResult) -> None:
        names = [info.name for info in self.classes]
        self.trackers.log_confusion(result.confusion.numpy(), names, step)
        for number, example in enumerate(result.examples):
            self.trackers.log_prediction(
                f"validation patch {number}", example.image, example.truth, example.prediction, step
            )

    def _loss_text(self, separator: str) -> str:
        """The loss as text; empty until the first metrics arrive from the device."""
        return "" if math.isnan(self._loss) else f"{separator}loss {self._loss:.4f}"

    def _epoch_line(self, step: int, epoch: int) -> str:
        pace = self._epoch
        parts = [f"epoch {epoch + 1}", f"step {step}/{self._steps}{self._loss_text('  ')}"]
        if self._mean_iou is not None:
            parts.append(f"mIoU {self._mean_iou:.4f}")
        parts += [
            f"{pace.steps * self.batch_size / pace.seconds:.0f} samples/s",
            f"{clock((self._steps - step) * pace.seconds / max(pace.steps, 1))} left",
            f"{memory_mb(self.ranks.device):.0f} MB",
        ]
        return "  ".join(parts)


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb()
