"""Every `Any` in the packages' types says why: `# Any: reason` on its line, or a docstring below a type alias."""

import ast
import re
from itertools import pairwise

import pytest

from tests.support import rooms

QUOTED = re.compile(r"(^|[\[|,] ?)Any($|[\],]| \|)")


def without_reason(source: str) -> list[int]:
    """The lines with an unexplained `Any`."""
    tree, lines = ast.parse(source), source.splitlines()
    pairs = pairwise(tree.body)
    documented = {one.lineno for one, then in pairs if isinstance(one, ast.Assign) and isinstance(then, ast.Expr)}
    found = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr) and is_any(node)}
    return sorted(line for line in found - documented if "# Any: " not in lines[line - 1])


def is_any(node: ast.expr) -> bool:
    """True for `Any`, `typing.Any`, and quoted types with `Any`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(QUOTED.search(node.value))
    return getattr(node, "id", None) == "Any" or getattr(node, "attr", None) == "Any"


def test_every_any_says_why() -> None:
    found = {str(path): without_reason(path.read_text()) for path in rooms.modules().values()}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("bare", ["def f(x: Any): ...", "x: 'list[Any]' = []", "x: typing.Any", "Alias = list[Any]"])
def test_a_bare_any_is_found(bare: str) -> None:
    assert without_reason(f"from typing import Any\n{bare}\n") == [2]
    assert without_reason(f"from typing import Any\n{bare}  # Any: no types\n") == []
