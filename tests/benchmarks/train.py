"""The trainer compared with a bare loop: overhead, two ranks, time to a good model, memory.

    python -m tests.benchmarks.train                  # all, about 55 minutes on 2 cores
    python -m tests.benchmarks.train overhead ranks   # only some of: overhead ranks (11 rounds, 11 minutes each)
                                                      # accuracy longer planned exact exact-scores paper size

The bare loop runs forward, backward and optimizer step on one prepared batch with the same model, batch and threads; it
reads, reports, checks and saves nothing. `overhead` and `ranks` alternate between the two and give the median ratio;
there, the bare loop also has the job's memory layout and malloc settings. `accuracy` compares the wall time of the
whole `segdist train` process with that of bare steps in plain torch, measured before and after it.
"""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.bare_loop import BATCH, PATCH, WARM_UP, WIDTH, bare_loop
from tests.benchmarks.bars import Bars, print_noise
from tests.benchmarks.cases import ROOT, benchmark, case_result, print_result, start_case
from tests.benchmarks.exact import SCORE_BAR, rounding_error, step_times

AS_THE_JOB: dict[str, Any] = {"channels_last": True, "keep_freed": True}
"""Gives the bare loop the job's memory layout and malloc settings; without this, it is plain torch."""
ROUNDS = 11
"""Of `overhead` and `ranks`: each measures the job and its baseline in turns."""
SEEDS = (101, 102, 103)
FAST_STEPS = 600
"""Steps of the preset `fast`."""
PAPER_STEPS = 50_000
"""Steps of the published 100 epochs: 100 images, 20 patches each, 4 flips, batches of 16."""
PAPER = ("--preset", "paper")
QUIET = ("--quiet", "--device", "cpu", "--tracking.wandb", "offline")


# ---- cases: each runs in its own process and prints one JSON line


def case_bare(threads: int, batch: int, steps: int, options: str, folder: str = "", others: int = 0) -> dict[str, Any]:
    """Seconds per step of the bare loop; `options` are those of `bare_loop`, as JSON.

    With a folder, it waits there until `others` more loops are ready.
    """
    run = bare_loop(threads, batch, **json.loads(options))
    if folder:
        (Path(folder) / f"{os.getpid()}.ready").touch()
        while len(list(Path(folder).glob("*.ready"))) <= others:
            time.sleep(0.01)
    start = time.perf_counter()
    run(steps)
    return {"seconds": (time.perf_counter() - start) / steps}


def case_job(*arguments: str) -> dict[str, Any]:
    """`segdist train`: seconds per step after the start, and peak memory of this rank in MB."""
    from jobs.train import main
    from segdist.training.reporter import RunReporter
    from tests.benchmarks.exact import note_parts

    moments: list[float] = []
    parts = note_parts()
    warm: dict[str, float] = {}
    stepped = RunReporter.stepped

    def noted(self: RunReporter, epoch: int) -> None:
        stepped(self, epoch)
        moments.append(time.perf_counter())
        if len(moments) == WARM_UP:
            warm.update(parts)

    RunReporter.stepped = noted  # type: ignore[method-assign]
    if main(list(arguments)):
        raise SystemExit("the training did not finish")
    seconds = (moments[-1] - moments[WARM_UP - 1]) / (len(moments) - WARM_UP)
    per_step = {part: (value - warm[part]) / (len(moments) - WARM_UP) for part, value in parts.items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "memory": memory, "parts": per_step}


# ---- the parent process: starts cases, prints tables


def _case(*values: object, **how: Any) -> dict[str, Any]:
    """Run a case of this benchmark to its end; return its result."""
    return case_result(start_case("train", *values, **how))


def bare(steps: int, options: dict[str, Any], environ: dict[str, str] | None = None) -> float:
    """Seconds per step of one bare loop with two threads; `options` are those of `bare_loop`."""
    return float(_case("bare", 2, BATCH, steps, json.dumps(options), environ=environ)["seconds"])


def two_bare(batch: int, steps: int = 40) -> float:
    """Total samples/s of two simultaneous bare loops with one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        loops = [start_case("train", "bare", 1, batch, steps, json.dumps(AS_THE_JOB), folder, 1) for _ in range(2)]
        return sum(batch / float(case_result(loop)["seconds"]) for loop in loops)


def segdist(folder: Path, *arguments: str) -> float:
    """Run a command as a user would; return wall seconds of the process."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - began


def make_set(folder: Path, name: str, *options: str, seed: int = 0, test: int = 1) -> None:
    """Build a shard set of the method's synthetic images; `options` are passed to `segdist make-shards`."""
    segdist(folder, "make-shards", "-f", name, "--synthetic.test", str(test), "--seed", str(seed), *options)


def overhead(folder: Path, bars: Bars, steps: int = 60) -> None:
    """The job's rate relative to the bare loop, including reading, flips, metrics, W&B (offline) and checkpoints.

    The bare loop runs before and after the job; its ratio to itself is the noise of the measurement.
    """
    make_set(folder, "bench")
    ratios, noise = [], []
    for number in range(ROUNDS):
        before = bare(steps, AS_THE_JOB)
        # The measured steps include a checkpoint and three metrics rows.
        job = _case(
            "job", "-f", "bench", "-n", f"overhead{number}", "--steps", WARM_UP + steps, "--threads", 2,
                  "--checkpoint.every-steps", 30, *PAPER, *QUIET, cwd=folder
        )["seconds"]  # fmt: skip
        after = bare(steps, AS_THE_JOB)
        ratios.append((before + after) / 2 / job)
        noise.append(before / after)
        print(
            f"  bare {BATCH / before:6.1f}, {BATCH / after:6.1f} samples/s   job {BATCH / job:6.1f} samples/s   "
            f"ratio {ratios[-1]:.3f}"
        )
    print_noise("bare loop / itself", noise)
    bars.at_least("job's speed / bare loop", statistics.median(ratios), 0.985)


def two_ranks(folder: Path, bars: Bars, steps: int = 40) -> None:
    """Two ranks with one thread each, compared with two independent loops.

    Two bare loops under torch's DDP show what its sum of gradients and the wait for the slower rank cost by themselves.
    """
    make_set(folder, "bench")
    ratios, noise, bounds, raw = [], [], [], []
    for number in range(ROUNDS):
        before = two_bare(BATCH // 2, steps)
        options = ("-f", "bench", "--steps", WARM_UP + steps, "--threads", 1, *PAPER, *QUIET)
        both = BATCH / _case("job", *options, "-n", f"two{number}", cwd=folder, world_size=2)["seconds"]
        how = json.dumps(AS_THE_JOB | {"ddp": True})
        ddp = BATCH / float(_case("bare", 1, BATCH // 2, steps, how, world_size=2)["seconds"])
        after = two_bare(BATCH // 2, steps)
        loops = (before + after) / 2
        ratios.append(both / loops)
        noise.append(after / before)
        bounds.append(ddp / loops)
        print(
            f"  two bare loops {before:6.1f}, {after:6.1f} samples/s   under DDP {ddp:6.1f}   two ranks {both:6.1f}   "
            f"ratio {ratios[-1]:.3f}, DDP's {bounds[-1]:.3f}"
        )
        if number < 3:
            one = BATCH / _case("job", *options, "-n", f"one{number}", cwd=folder)["seconds"]
            raw.append(both / one)
    print(f"  two ranks / one rank: {statistics.median(raw):.2f}")
    print_noise("two bare loops / themselves", noise)
    print_noise("two bare loops under DDP / two independent loops", bounds)
    bars.at_least("two ranks' speed / two independent loops", statistics.median(ratios), 0.95)


def train_and_score(folder: Path, data: str, name: str, *recipe: str) -> tuple[float, float]:
    """Seconds of training, and the mean IoU over full test images."""
    seconds = segdist(folder, "train", "-f", data, "-n", name, "--threads", "2", *QUIET, *recipe)
    segdist(folder, "infer", "-m", name, "-f", data, "--quiet", "--output.figures", "0", "--tracking.wandb", "off")
    scores = json.loads((folder / "runs" / name / "predictions" / data / "scores.json").read_text())
    return seconds, float(scores["mean_iou_over_images"])


def quick_precision() -> tuple[str, str]:
    """bf16 if the processor has matrix instructions for it (AMX), where it is twice as fast."""
    import torch

    return "--precision", "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def accuracy(folder: Path, bars: Bars) -> None:
    """The unchanged recipe `fast`."""
    time_to(0.97, 450, ("--preset", "fast"), folder, bars)


def longer(folder: Path, bars: Bars) -> None:
    """The recipe `fast` with more steps."""
    time_to(0.98, 2000, ("--preset", "fast", "--steps", "1600", *quick_precision()), folder, bars)


def planned(folder: Path, bars: Bars) -> None:
    """The preset `auto`, given the time in minutes."""
    time_to(0.975, 450, ("--minutes", "{minutes}"), folder, bars)
    time_to(0.985, 1000 if quick_precision()[1] == "bf16" else 2000, ("--minutes", "{minutes}"), folder, bars)


def time_to(target: float, budget: int, recipe: tuple[str, ...], folder: Path, bars: Bars) -> None:
    """A recipe on new seeds: its time in reference steps, and its score on held-out images.

    Args:
        budget: most reference steps; `{minutes}` in the recipe becomes their time.
    """
    rows = []
    print(f"  {' '.join(recipe)}")
    print("  seed   reference s/step   seconds   reference steps   mean IoU over 50 test images")
    for seed in SEEDS:
        data = f"seed{seed}-{budget}"
        make_set(folder, data, seed=seed, test=50)
        before = bare(25, {})
        options = [word.format(minutes=f"{budget * before / 60:.4f}") for word in recipe]
        seconds, score = train_and_score(folder, data, data, *options, "--seed", str(seed))
        reference = (before + bare(25, {})) / 2
        rows.append((seconds / reference, score))
        print(f"  {seed:4}   {reference:16.3f}   {seconds:7.1f}   {seconds / reference:15.0f}   {score:.4f}")
    cost, score = (statistics.median(column) for column in zip(*rows, strict=True))
    bars.at_most(f"{' '.join(recipe)}, its time / reference step", cost, budget)
    bars.at_least(f"{' '.join(recipe)}, mean IoU", score, target)


def exact(folder: Path, bars: Bars, steps: int = 20) -> None:
    """Step time and rounding error of the --exact engine, compared with the default."""
    make_set(folder, "bench")

    def job(name: str, ranks: int, *options: object) -> dict[str, Any]:
        common = ("-f", "bench", "-n", name, "--steps", WARM_UP + steps, *PAPER, *QUIET)
        return _case("job", *common, *options, cwd=folder, world_size=ranks)

    step_times(folder, bars, job)
    rounding_error(bars)


def exact_scores(folder: Path, bars: Bars) -> None:
    """Final scores of --exact compared with the default engine, paired by set and seed."""
    gains = []
    for seed in SEEDS:
        data = f"seed{seed}"
        make_set(folder, data, seed=seed, test=50)
        scores = [
            train_and_score(folder, data, f"{data}-{number}", "--preset", "fast", "--seed", str(seed), *options)[1]
            for number, options in enumerate(((), ("--exact",)))
        ]
        gains.append(scores[1] - scores[0])
        print(f"  seed {seed}: default {scores[0]:.4f}, exact {scores[1]:.4f}")
    bars.at_least("exact, mean of final scores minus the default's", statistics.mean(gains), SCORE_BAR)


def paper(folder: Path) -> None:
    """The published recipe compared with `fast` after equal steps and three times as many, with extrapolation."""
    data = f"seed{SEEDS[0]}"
    make_set(folder, data, seed=SEEDS[0], test=50)
    errors = {}
    print("  recipe   steps   seconds   mean IoU over 50 test images")
    for preset, steps in (("fast", FAST_STEPS), ("paper", FAST_STEPS), ("paper", 3 * FAST_STEPS)):
        recipe = ("--preset", preset, "--steps", str(steps))
        seconds, score = train_and_score(folder, data, f"{preset}{steps}", *recipe)
        errors[preset, steps] = 1 - score
        print(f"  {preset:6}   {steps:5}   {seconds:7.1f}   {score:.4f}")
    # The error falls roughly as a power of the number of steps.
    first, last = errors["paper", FAST_STEPS], errors["paper", 3 * FAST_STEPS]
    power = math.log(first / last) / math.log(3)
    if power <= 0:
        print("  paper: three times the steps are not better, so there is nothing to extrapolate")
        return
    equal = 3 * FAST_STEPS * (last / errors["fast", FAST_STEPS]) ** (1 / power)
    print(f"  paper, extrapolated: as good as fast after {equal:.0f} steps")
    published = 1 - last * (PAPER_STEPS / (3 * FAST_STEPS)) ** -power
    print(f"  paper, extrapolated to its {PAPER_STEPS} steps (100 epochs): {published:.4f}")


def size(folder: Path) -> None:
    """Time and memory of a step as width, patch and batch grow."""
    make_set(folder, "bench")
    print("  width  patch  batch   ms/step   peak MB")
    cases = [(width, PATCH, BATCH) for width in (8, 16, 32)]
    cases += [(WIDTH, patch, BATCH) for patch in (64, 128, 192)]
    cases += [(WIDTH, PATCH, batch) for batch in (4, 8, 32)]
    for width, patch, batch in cases:
        data = "bench" if patch == PATCH else f"bench{patch}"
        if patch != PATCH:
            make_set(folder, data, "--patches.size", str(patch), "--synthetic.train", "20")
        name = f"size-{width}-{patch}-{batch}"
        found = _case(
            "job", "-f", data, "-n", name, "-b", batch, "--steps", WARM_UP + 8, "--threads", 2, *PAPER, *QUIET,
                  "--model.width", width, cwd=folder,
        )  # fmt: skip
        print(f"  {width:5}  {patch:5}  {batch:5}  {found['seconds'] * 1e3:8.0f}  {found['memory']:8.0f}")


def main(arguments: list[str]) -> int:
    """Run the named parts; return the exit code, 1 if a bar is missed."""
    if arguments[:1] == ["case"]:
        name, *rest = arguments[1:]
        if name == "job":
            print_result(case_job(*rest))
        else:
            print_result(case_bare(*(int(value) if value.isdecimal() else value for value in rest)))  # type: ignore[arg-type]
        return 0
    parts: dict[str, Any] = {"overhead": overhead, "ranks": two_ranks, "accuracy": accuracy, "longer": longer}
    parts |= {"planned": planned, "exact": exact, "exact-scores": exact_scores}
    tables: dict[str, Any] = {"paper": paper, "size": size}
    unknown = set(arguments) - set(parts) - set(tables)
    if unknown:
        print(f"error: {', '.join(sorted(unknown))}: choose from {', '.join([*parts, *tables])}", file=sys.stderr)
        return 2
    bars = Bars()
    for name in arguments or [*parts, *tables]:
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            if name in parts:
                parts[name](Path(folder), bars)
            else:
                tables[name](Path(folder))
    return bars.finish()


if __name__ == "__main__":
    benchmark(main)
