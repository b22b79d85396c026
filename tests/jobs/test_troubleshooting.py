"""Every message explained on the troubleshooting page exists in the program."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@cache
def texts() -> list[str]:
    """All strings in the program, with values replaced by `…`."""
    found = []
    for room in ("shards", "segdist", "jobs", "slurm"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def says(text: str, heading: str) -> bool:
    """Whether `text` contains the heading's fixed parts in order."""
    parts = [re.escape(part) for part in heading.split("…")]
    return re.search(".*?".join(parts), text, re.DOTALL) is not None


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_program_has_this_message(heading: str) -> None:
    assert any(says(text, heading) for text in texts()), f"no message like {heading!r} in the program any more"


def test_the_page_explains_many_messages() -> None:
    assert len(HEADINGS) > 35
