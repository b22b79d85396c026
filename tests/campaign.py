"""A campaign of kills and bit flips: however a job is interrupted, it must end with the bits of an undisturbed one.

    python -m tests.campaign                            # all kinds that need no Slurm, 30 trials each
    python -m tests.campaign train flips --trials 200
    python -m tests.campaign slurm --trials 5           # each event of tests/slurm, on the mini cluster

Trials are kept in `--folder` (default /tmp/segdist-campaign), so the same command resumes; it ends with a table. Failed
trials keep their files. Trial n of a kind draws its moments and bits from n, so it can be repeated as far as the timing
of a kill allows.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segdist.core.code_version import current_version
from segdist.core.exit_codes import LOST_PEERS, STOPPED
from segdist.core.fold import fold_folder
from segdist.runs.record import read_rows
from tests.support.inference_parts import checksums, write_images, write_model
from tests.support.programs import FOLDS, ROOT, cross_validation, environment, job, processes
from tests.support.sets import tiny_set
from tests.support.states import final_state, fold_results, metrics, same

LOCAL = ("train", "infer", "shards", "folds", "flips")
SLURM_TESTS = ("tests/slurm/test_survival.py", "tests/slurm/test_real_jobs.py")
PATIENCE = 300.0
"""Seconds for one start of a job, on a busy machine."""
TRIES = 3
"""Attempts, since ranks can lose each other on a busy machine."""
CODE = current_version().digest[:8]
KILLS = 2
"""Number of starts killed in a trial; the next start runs undisturbed."""


@dataclass(frozen=True)
class Trial:
    """The outcome of one trial."""

    kind: str
    number: int
    what: str
    """What was done to the job."""
    verdict: str
    """"same", or what went wrong."""
    seconds: float


@dataclass(frozen=True)
class Variant:
    """A job, and which of its processes are killed."""

    name: str
    command: Callable[[str], list[str]]
    """Maps a name to the command that writes under it."""
    target: str
    """Which processes are killed: "all" at once (as when a machine dies), the "launcher", or one "rank"."""
    compare: Callable[[Path, Path], str]
    """Returns the difference between two results, or ""."""
    place: Callable[[str], Path]
    """Maps a name to the job's output, relative to the working folder."""


def train_command(ranks: int, *more: str) -> Callable[[str], list[str]]:
    settings = [
        *("-f", "tiny", "-b", "12", "--steps", "60", "--log-every", "7", "--validate-every", "20"),
        *("--checkpoint.every-steps", "3", "--optim.optimizer", "adamw", "--model.width", "4", "--model.depth", "2"),
        *("--quiet", *more),
    ]
    return lambda name: job("train", [*settings, "--name", name], ranks)


def infer_command(ranks: int) -> Callable[[str], list[str]]:
    settings = [
        "-m",
        "runs/small",
        "-i",
        "images",
        "--masks.folder",
        "truth",
        "--tile",
        "16",
        "--wandb",
        "off",
        "--quiet",
    ]
    return lambda name: job("infer", [*settings, "-o", f"predictions/{name}"], ranks)


def shards_command(processes_of_it: int) -> Callable[[str], list[str]]:
    settings = ["--synthetic.train", "40", "--synthetic.test", "3", "--patches.size", "32", "--patches.per-image", "20"]
    settings += ["--processes", str(processes_of_it)]
    return lambda name: job("make_shards", [*settings, "--name", name])


def compare_runs(one: Path, other: Path) -> str:
    """Compare weights, optimizer and counters bit for bit, and rows without timings; find duplicates and leftovers."""
    rows = [(row["kind"], row["step"]) for row in read_rows(other / "metrics.jsonl")]
    if len(set(rows)) != len(rows):
        return "rows twice"
    states = [final_state(folder) for folder in (one, other)]
    for state in states:
        state.pop("trackers", None)  # W&B gives each run its own id
    if not same(*states):
        return "other bits"
    if metrics(one) != metrics(other):
        return "other rows"
    return leftovers(other)


def compare_predictions(one: Path, other: Path) -> str:
    """Compare checksums of all results; find leftovers."""
    differing = [
        name for name in differences(checksums(one), checksums(other)) if not name.endswith((".jsonl", ".html"))
    ]
    parts = list((other / "state").rglob("*.raw"))
    return f"other bits: {differing[0]}" if differing else f"leftover {parts[0].name}" if parts else leftovers(other)


def compare_folds(one: Path, other: Path) -> str:
    """Compare the models of the folds, the predictions and the scores."""
    differing = differences(fold_results(one), fold_results(other))
    return f"other bits: {differing[0]}" if differing else leftovers(other)


def compare_sets(one: Path, other: Path) -> str:
    """Compare checksums of all files of the set, except for the set's name in the manifest."""
    differing = differences(set_checksums(one), set_checksums(other))
    return f"other bits: {differing[0]}" if differing else leftovers(other)


def set_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, with the folder's name removed from the contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes().replace(folder.name.encode(), b"")).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names whose checksums differ, or that only one side has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(folder: Path) -> str:
    """Remaining temporary files and owner records."""
    found = [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name in (".building", ".owners")]
    return f"leftover {found[0].relative_to(folder)}" if found else ""


OFF, EMA = ("--wandb", "off"), ("--optim.ema-decay", "0.9")
RUN, SET, OUT = (
    (lambda name: Path("runs") / name),
    (lambda name: Path("data") / name),
    (lambda name: Path("predictions") / name),
)
VARIANTS = {
    "folds": (Variant("2 folds", cross_validation, "all", compare_folds, RUN),),
    "train": (
        Variant("1 rank", train_command(1, *OFF), "all", compare_runs, RUN),
        Variant("2 ranks", train_command(2, *OFF), "all", compare_runs, RUN),
        Variant("2 ranks, the launcher", train_command(2, *OFF), "launcher", compare_runs, RUN),
        Variant("2 ranks, one of them", train_command(2, *OFF), "rank", compare_runs, RUN),
        Variant("EMA", train_command(1, *OFF, *EMA), "all", compare_runs, RUN),
        Variant("W&B", train_command(1, "--wandb", "offline"), "all", compare_runs, RUN),
    ),
    "infer": (
        Variant("1 rank", infer_command(1), "all", compare_predictions, OUT),
        Variant("2 ranks", infer_command(2), "all", compare_predictions, OUT),
        Variant("2 ranks, the launcher", infer_command(2), "launcher", compare_predictions, OUT),
        Variant("2 ranks, one of them", infer_command(2), "rank", compare_predictions, OUT),
    ),
    "shards": (
        Variant("1 process", shards_command(1), "all", compare_sets, SET),
        Variant("2 processes", shards_command(2), "all", compare_sets, SET),
        Variant("2 processes, the first", shards_command(2), "launcher", compare_sets, SET),
    ),
}


class Campaign:
    """The trials in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.notes = folder / "trials.jsonl"
        if not (folder / "data" / "tiny").is_dir():
            tiny_set(folder / "data")
            write_model(folder / "runs" / "small")
            shapes = {f"image{number}": (181 + 16 * number, 301) for number in range(6)}
            write_images(folder / "images", shapes)
            write_images(folder / "truth", dict(shapes.items()))
            for path in (folder / "truth").iterdir():  # labels 0 to 2
                from PIL import Image

                with Image.open(path) as image:
                    small = image.point(lambda value: value % 3)
                small.save(path)

    def done(self) -> list[Trial]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [Trial(**json.loads(line)) for line in lines]

    def run(self, kind: str, trials: int) -> None:
        """Run the missing trials of a kind."""
        numbers = {trial.number for trial in self.done() if trial.kind == kind}
        for number in sorted(set(range(trials)) - numbers):
            began = time.monotonic()
            what, verdict = self.flip(number) if kind == "flips" else self.kill(kind, number)
            trial = Trial(kind, number, what, verdict or "same", round(time.monotonic() - began, 1))
            with self.notes.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
            print(f"{kind} {number}: {what}: {trial.verdict} ({trial.seconds} s)", flush=True)

    def kill(self, kind: str, number: int) -> tuple[str, str]:
        """Kill a job a few times, let it finish and compare."""
        variant = VARIANTS[kind][number % len(VARIANTS[kind])]
        whole, duration = self.undisturbed(kind, variant)
        name = f"{kind}-{number}"
        shutil.rmtree(self.folder / variant.place(name), ignore_errors=True)
        draw = random.Random(f"{kind} {number}")
        moments = []
        for _ in range(KILLS):
            process = self.start(variant.command(name), name)
            moment = draw.uniform(0.1, 1.0) * duration
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moment)
                break
            moments.append(f"{moment:.1f} s")
            self.hit(process, name, variant.target, draw)
        for _ in range(TRIES):
            code, log = self.finish(variant.command(name), name)
            if code not in (STOPPED, LOST_PEERS):  # on a busy machine, ranks may not find each other in time
                break
        what = f"{variant.name}, killed after {', '.join(moments) or 'its end'}"
        place = self.folder / variant.place(name)
        verdict = f"exit code {code}: {log[-300:]}" if code else variant.compare(self.folder / whole, place)
        if not verdict:
            shutil.rmtree(place)
            (self.folder / f"{name}.log").unlink()
        return what, verdict

    def hit(self, process: "subprocess.Popen[bytes]", name: str, target: str, draw: random.Random) -> None:
        """Send SIGKILL and wait until no process of the job is left."""
        of_it = [number for number, _ in processes_of(name, self.folder)]
        ranks = [number for number in of_it if number != process.pid]
        hit = {"all": of_it, "launcher": [process.pid], "rank": [draw.choice(ranks)] if ranks else of_it}[target]
        for number in hit:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait(timeout=PATIENCE)
        end = time.monotonic() + PATIENCE
        while list(processes_of(name, self.folder)) and time.monotonic() < end:
            time.sleep(0.1)

    def undisturbed(self, kind: str, variant: Variant) -> tuple[Path, float]:
        """Path of a variant's undisturbed result, and the seconds it took."""
        name = f"whole-{kind}-{VARIANTS[kind].index(variant)}-{CODE}"  # different code may give different bits
        note = self.folder / f"{name}.json"
        if not note.exists():
            for _ in range(TRIES):
                shutil.rmtree(self.folder / variant.place(name), ignore_errors=True)
                began = time.monotonic()
                code, log = self.finish(variant.command(name), name)
                if code == 0:
                    break
            else:
                raise RuntimeError(f"{variant.name} fails even when undisturbed: {log[-1000:]}")
            note.write_text(json.dumps(time.monotonic() - began))
        return variant.place(name), json.loads(note.read_text())

    def start(self, command: Sequence[str], name: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def finish(self, command: Sequence[str], name: str) -> tuple[int, str]:
        """Run to the end; return the exit code and the output."""
        code = self.start(command, name).wait(timeout=PATIENCE)
        return code, (self.folder / f"{name}.log").read_text(errors="replace")

    def flip(self, number: int) -> tuple[str, str]:
        """Flip one bit of a set, a checkpoint or a model, which must be detected or have no effect."""
        draw = random.Random(f"flips {number}")
        kind = ("set", "checkpoint", "model")[number % 3]
        return {"set": self.flip_set, "checkpoint": self.flip_checkpoint, "model": self.flip_model}[kind](draw)

    def flip_set(self, draw: random.Random) -> tuple[str, str]:
        place = self.folder / "data" / "flipped"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / "data" / "tiny", place)
        file, where = flip_a_bit(
            [path for path in sorted(place.glob("*")) if path.suffix in (".tar", ".npy", ".json")], draw
        )
        code, log = self.finish([sys.executable, "-m", "jobs.cli", "shards", "verify", "data/flipped"], "flipped")
        noticed = code != 0 and "Traceback" not in log
        # The manifest also holds sources and recipe, which affect no sample.
        harmless = file.suffix == ".json" and code == 0
        (self.folder / "flipped.log").unlink()
        return f"set, {file.name} {where}", "" if noticed or harmless else f"exit code {code}: {log[-200:]}"

    def flip_checkpoint(self, draw: random.Random) -> tuple[str, str]:
        variant = VARIANTS["train"][0]
        whole, _ = self.undisturbed("train", variant)
        name = f"half-{CODE}"
        half = self.folder / "runs" / name
        if not half.is_dir():
            process = self.start(variant.command(name), name)
            while not list((half / "checkpoints").glob("step-0000003*.pt")) and process.poll() is None:
                time.sleep(0.05)
            self.hit(process, name, "all", draw)
        name, place = "flipped", self.folder / "runs" / "flipped"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(half, place)
        file, where = flip_a_bit([max((place / "checkpoints").glob("step-*.pt"))], draw)
        code, log = self.finish(variant.command(name), name)
        (self.folder / "flipped.log").unlink()
        return f"checkpoint, {file.name} {where}", f"exit code {code}: {log[-300:]}" if code else compare_runs(
            self.folder / whole, place
        )

    def flip_model(self, draw: random.Random) -> tuple[str, str]:
        variant = VARIANTS["infer"][0]
        whole, _ = self.undisturbed("infer", variant)
        place = self.folder / "runs" / "flipped-model"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / "runs" / "small", place)
        _, where = flip_a_bit([place / "best.safetensors"], draw)
        output = self.folder / "predictions" / "flipped"
        shutil.rmtree(output, ignore_errors=True)
        command = [word.replace("runs/small", "runs/flipped-model") for word in variant.command("flipped")]
        code, log = self.finish(command, "flipped")
        (self.folder / "flipped.log").unlink()
        if code:
            return f"model {where}", "" if "Traceback" not in log else f"exit code {code}: {log[-300:]}"
        return f"model {where}", compare_predictions(self.folder / whole, output)


def flip_a_bit(files: list[Path], draw: random.Random) -> tuple[Path, str]:
    """Flip a random bit, each bit of all files being equally likely; return the file and the position."""
    sizes = [file.stat().st_size for file in files]
    file = draw.choices(files, sizes)[0]
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return file, f"byte {bit // 8} bit {bit % 8}"


def processes_of(name: str, cwd: Path) -> list[tuple[int, bytes]]:
    """The processes of the job with this name; spawned workers are found by their folder, not by an argument."""
    run = Path("runs") / name
    places = [name, f"predictions/{name}", str(run), *(str(fold_folder(run, fold)) for fold in range(1, FOLDS + 1))]
    named = [found for place in places for found in processes(place, cwd)]
    numbers = {number for number, _ in named}
    children = [(child, b"") for child in children_of(numbers) if child not in numbers]
    return named + children


def children_of(numbers: set[int]) -> list[int]:
    """All descendants of these processes."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    wanted = set(numbers)
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found += wanted
    return found


def run_slurm(campaign: Campaign, trials: int) -> None:
    """Run every event of the cluster tests `trials` times; each test checks its own promise."""
    done = Counter(trial.number for trial in campaign.done() if trial.kind == "slurm")
    for number in range(trials):
        if done[number]:
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *SLURM_TESTS]
        began = time.monotonic()
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        seconds = round(time.monotonic() - began, 1)
        lines = [line.split() for line in told.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
        with campaign.notes.open("a") as file:
            for verdict, test, *_ in lines:
                event = test.partition("::")[2]
                trial = Trial("slurm", number, event, "same" if verdict == "PASSED" else verdict, seconds)
                file.write(json.dumps(asdict(trial)) + "\n")
        wrong = sum(verdict != "PASSED" for verdict, *_ in lines)
        print(f"slurm {number}: {len(lines)} events in {seconds} s, {wrong} failed", flush=True)
        if wrong:
            (campaign.notes.parent / f"slurm-{number}.log").write_text(told)


def table(trials: list[Trial]) -> str:
    """One line per kind and event, then every failed trial."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        what = trial.what if trial.kind == "slurm" else trial.what.partition(" byte")[0].partition(", killed")[0]
        what = what.partition(",")[0] if trial.kind == "flips" else what
        groups.setdefault((trial.kind, what), []).append(trial)
    lines = [f"{'kind':<8} {'what':<60} same"]
    for (kind, what), group in sorted(groups.items()):
        sound = sum(trial.verdict == "same" for trial in group)
        lines.append(f"{kind:<8} {what:<60} {sound} of {len(group)}")
    lines += [f"WRONG {t.kind} {t.number}, {t.what}: {t.verdict}" for t in trials if t.verdict != "same"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; return 0 if all succeeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=LOCAL, metavar="train|infer|shards|folds|flips|slurm")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/segdist-campaign"))
    given = parser.parse_args(arguments)
    if unknown := set(given.kinds) - {*LOCAL, "slurm"}:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    campaign = Campaign(given.folder.resolve())
    for kind in given.kinds:
        if kind == "slurm":
            run_slurm(campaign, given.trials)
        else:
            campaign.run(kind, given.trials)
    trials = [trial for trial in campaign.done() if trial.kind in given.kinds]
    print(table(trials))
    return int(any(trial.verdict != "same" for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
