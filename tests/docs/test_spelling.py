"""American spelling in code, messages and docs."""

import re
import subprocess
from pathlib import Path

from tests.support.programs import ROOT

BRITISH = re.compile(
    r"colour|grey|neighbour|behaviour|favour|honour|centre|labell|modell|licence|catalogue|artefact|anticlockwise"
    r"|(normal|quant|summar|initial|synchron|minim|maxim|optim|recogn|serial|organ|general|real|visual|regular|penal"
    r"|util|equal|standard|random|custom|special)is(e|es|ed|er|ing|ation)\b",
    re.IGNORECASE,
)
KEPT = ("unlabelled", "labelledby")
"""A setting in users' files, and an HTML attribute."""


def british(text: str) -> set[str]:
    """Words in `text` with British spelling."""
    words = (match for match in re.finditer(r"\w+", text) if BRITISH.search(match[0]))
    return {match[0] for match in words if not any(kept in match[0].lower() for kept in KEPT)}


def test_british_words_are_found() -> None:
    assert british("Colours of a labelled neighbour, normalised") == {"Colours", "labelled", "neighbour", "normalised"}


def test_spelling_is_american() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    suffixes = (".py", ".md", ".toml", ".sh", ".j2", ".sbatch", ".cfg")
    texts = [ROOT / name for name in tracked.splitlines() if name.endswith(suffixes)]
    assert len(texts) > 100
    found = {str(path.relative_to(ROOT)): british(path.read_text()) for path in texts if path != Path(__file__)}
    assert not {name: words for name, words in found.items() if words}
