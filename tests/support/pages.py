"""The commands that a page of the docs shows: fenced `bash` blocks, and indented blocks that begin like a command.

`…` stands for options that the page leaves to the reader. A command may go over several lines with a backslash.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INFERENCE_COMMANDS = re.findall(
    r"^    (segdist .*|torchrun .*)$", (ROOT / "docs" / "inference.md").read_text(), re.MULTILINE
)
"""What docs/inference.md shows; tests/docs/test_inference_docs.py runs it."""
PROGRAMS = ("segdist", "torchrun", "python", "bash", "wandb", "tensorboard", "pip", "for", "source", "eval", "tail")
PROGRAMS += ("mkdocs", "apt-get", "slurm/mini_cluster.sh", "export")
"""First words by which a line of an indented block is known as a command, and not as output or a file listing."""


@dataclass(frozen=True)
class Command:
    """A command as the page shows it, on one line, without its comment."""

    page: Path
    line: int
    text: str


def commands(page: Path) -> list[Command]:
    """All commands of a page's blocks, in their order."""
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
        # Two or more blanks begin an explanation beside the command.
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
    """The code spans of a page's running text and tables, those over two lines too."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
