"""Look at a shard set, or check every byte of it.

segdist shards inspect synthetic         figures, and contact_sheet.png beside the manifest
segdist shards verify data/synthetic     all checksums and records; exit code 3 where something is damaged

A set behind a URL is fetched into the cache first.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.entry import run_job
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.core.files import whole_file
from segdist.core.paths import CONTACT_SHEET, MANIFEST
from segdist.core.terminal import say


@dataclass(frozen=True)
class ShardsCommand:
    """What to do with which set."""

    action: Annotated[Literal["inspect", "verify"], tyro.conf.Positional]
    """inspect: print what is in it, write a contact sheet; verify: check every checksum and record."""
    shard_set: Annotated[str, tyro.conf.Positional]
    """Name of a set in `root`, its folder, or its URL."""
    root: Path = Path("data")
    """Where shard sets live."""
    split: Literal["train", "val"] = "train"
    """Split of the contact sheet."""
    seed: int = 0
    """Another seed shows other patches."""
    out: Path | None = None
    """File of the contact sheet; contact_sheet.png in the set's folder if left out."""

    def local_folder(self) -> Path:
        """The set's folder; that in the cache, with every file in it, for a URL."""
        if "://" in self.shard_set:
            from shards.read.remote import fetched_whole

            return fetched_whole(self.shard_set)
        path = Path(self.shard_set)
        return path if len(path.parts) > 1 or (path / MANIFEST).exists() else self.root / path


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    command = tyro.cli(ShardsCommand, args=argv, prog="segdist shards", description=__doc__)
    # Heavy imports come after the command line: --help must not wait for torch.
    folder = command.local_folder()
    if command.action == "verify":
        from shards.read.verify import verify

        problems = verify(folder)
        for problem in problems:
            say(f"damaged: {problem}")
        if problems:
            say("copy these files again, or build the set again with `segdist make-shards --overwrite`")
            return INCOMPLETE
        say(f"{folder}: every checksum and record is right")
        return FINISHED
    from shards.read.inspect import contact_sheet, summary
    from shards.read.reader import ShardSet

    shard_set = ShardSet(folder)
    say(summary(shard_set))
    if not shard_set.manifest.samples(command.split):
        raise UserError(f"{folder}: no patches in {command.split}; choose another --split")
    out = command.out or folder / CONTACT_SHEET
    with whole_file(out) as file:
        file.write(contact_sheet(shard_set, command.split, command.seed))
    say(f"  contact sheet: {out}")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
