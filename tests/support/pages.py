"""The commands shown on a docs page: fenced `bash` blocks, and indented blocks that start with a command.

`…` means options left to the reader. A backslash continues a command on the next line.
Tests in tests/docs run them with `run_page`, in the order of the page; for the others, `NOT_RUN` says why not.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INFERENCE_COMMANDS = re.findall(
    r"^    (segdist .*|torchrun .*)$", (ROOT / "docs" / "inference.md").read_text(), re.MULTILINE
)
"""The commands in docs/inference.md, which tests/docs/test_inference_docs.py runs."""
PROGRAMS = ("segdist", "torchrun", "python", "bash", "wandb", "tensorboard", "pip", "for", "source", "eval", "tail")
PROGRAMS += ("mkdocs", "apt-get", "slurm/mini_cluster.sh", "export")
"""First words that mark a line of an indented block as a command rather than output or a file listing."""
BENCHMARK = "takes many minutes and an idle machine"
THESE_TESTS = "is what runs this"
THAT_CLUSTER = "needs the cluster of the example; tests/slurm/test_docs.py plans it with --dry-run"
MINI_CLUSTER = "tests/docs/test_cluster_page.py runs it, where there is a Slurm"
NOT_RUN = {
    "README.md": {
        "bash tests/run.sh": THESE_TESTS,
        "torchrun --nnodes=2": "needs two machines",
    },
    "CONTRIBUTING.md": {
        "bash .ci/run": THESE_TESTS,
        "python -m tests.campaign": "takes hours; tests/test_campaign.py does two trials of each",
        "bash tests/lowest_versions.sh": "installs another torch of several GB",
        "bash tests/run.sh": THESE_TESTS,
        "python -m tests.benchmarks.": BENCHMARK,
        "python -m tests.support.rooms": "tests/test_rooms.py runs it",
        "python -m tests.fuzz": "a long run by hand; tests/fuzz/test_fuzz.py does a short one",
        "mkdocs serve": "runs until it is stopped; tests/docs/test_site.py builds the site",
        "python docs/make_pictures.py": "tests/docs/test_examples_and_pictures.py runs it, on a small run",
    },
    "security.md": {"segdist infer --model their.safetensors": "needs a stranger's model; test_trust.py has one"},
    "cluster.md": {
        "segdist submit pipeline --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit make-shards --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit train --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit infer --profile mycluster.toml": THAT_CLUSTER,
        "apt-get install": "tests/system_packages.sh installs the same packages",
        'eval "$(slurm/mini_cluster.sh start)"': MINI_CLUSTER,
        "segdist submit pipeline --profile mini": MINI_CLUSTER,
        "segdist queue demo": MINI_CLUSTER,
        "segdist status demo --follow": MINI_CLUSTER,
        "tail -F runs/demo/slurm/": MINI_CLUSTER,
        "slurm/mini_cluster.sh": MINI_CLUSTER,
    },
    "inference.md": {
        "segdist ": "tests/docs/test_inference_docs.py runs it",
        "torchrun ": "tests/docs/test_inference_docs.py runs it",
        "python -m tests.benchmarks.inference": BENCHMARK,
    },
    "cross-validation.md": {
        "segdist submit cross-validate": "tests/slurm/test_folds.py runs it, where there is a Slurm"
    },
    "monitoring.md": {
        "pip install -e '.[tensorboard]'": "needs the network; tests/run.sh installs this extra",
    },
}
"""By page and by how the command begins."""


@dataclass(frozen=True)
class Command:
    """A command as shown on the page, joined into one line, without its comment."""

    page: Path
    line: int
    text: str


def commands(page: Path) -> list[Command]:
    """All commands in a page's blocks, in order."""
    found: list[Command] = []
    fence = ""
    unfinished = ""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.startswith("```"):
            fence = "" if fence else line.removeprefix("```") or "text"
            continue
        shown = line if fence in ("bash", "sh") else line.removeprefix("    ") if line.startswith("    ") else ""
        if fence not in ("", "bash", "sh") or not shown.strip():
            continue
        text = re.sub(r"(^|\s)#\s.*$", "", shown).strip()
        # Two or more spaces start an explanation next to the command.
        text = re.split(r" {2,}(?=[^-\s])", text)[0] if not unfinished else text
        if unfinished:
            text = f"{unfinished} {text}"
        elif not text.split() or text.split()[0] not in PROGRAMS:
            continue
        unfinished = text.removesuffix("\\").rstrip() if text.endswith("\\") else ""
        if not unfinished:
            found.append(Command(page, number, text))
    return found


def inline_code(page: Path) -> list[str]:
    """The code spans in a page's text and tables, including those that span two lines."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def reason_not_to_run(page: Path, text: str) -> str | None:
    """Why a command isn't run here; None: it is."""
    reasons = NOT_RUN.get(page.name, {})
    return next((reason for beginning, reason in reasons.items() if text.startswith(beginning)), None)


def run_page(name: str, run: Callable[[str], object]) -> None:
    """Run what the page of that name shows, in its order."""
    page = next(page for page in PAGES if page.name == name)
    for command in commands(page):
        if reason_not_to_run(page, command.text) is None:
            run(command.text)
