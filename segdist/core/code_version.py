"""The version of the submitted code, and whether the checkout has changed since.

A job imports its code from the checkout when it starts, and again at each requeue, so the running code can be newer
than the submitted code.
"""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ("jobs", "segdist", "shards", "slurm")


@dataclass(frozen=True)
class CodeVersion:
    """The state of the checkout at one moment."""

    commit: str
    """Git commit, with "+changes" if files differ from it; "unknown" outside git."""
    digest: str
    """Fingerprint of all Python files of the four rooms; needs no git."""

    def __str__(self) -> str:
        return f"{self.commit} (files {self.digest})"


def current_version(checkout: Path = CHECKOUT) -> CodeVersion:
    """The version of the code that this process would import now."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((checkout / room).rglob("*.py")):
            digest.update(f"{path.relative_to(checkout)}\0".encode() + path.read_bytes() + b"\0")
    return CodeVersion(commit(checkout, length=12), digest.hexdigest()[:16])


def commit(checkout: Path = CHECKOUT, *, length: int = 40) -> str:
    """The checkout's git commit, with "+changes" if tracked files differ from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = "+changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", f"--short={length}", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
