"""Inspect a shard set, or verify every byte of it.

segdist shards inspect synthetic         figures, and contact_sheet.png next to the manifest
segdist shards verify data/synthetic     all checksums and records; exit code 3 if anything is damaged

A set behind a URL is fetched into the cache first.
"""

import sys
from pathlib import Path

from jobs.command_line import parse_options
from jobs.config import ShardsCommand
from jobs.entry import run_job
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.core.files import whole_file
from segdist.core.paths import CONTACT_SHEET, MANIFEST
from segdist.core.terminal import say


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    command = parse_options(ShardsCommand, argv, "shards", __doc__ or "")
    # Heavy imports come after parsing, so that --help doesn't wait for torch.
    folder = _local_folder(command)
    if command.action == "verify":
        from shards.read.verify import verify

        problems = verify(folder)
        for problem in problems:
            say(f"damaged: {problem}")
        if problems:
            say("copy these files again, or rebuild the set with `segdist make-shards --overwrite`")
            return INCOMPLETE
        say(f"{folder}: all checksums and records are correct")
        return FINISHED
    from shards.read.inspect import contact_sheet, summary
    from shards.read.reader import ShardSet

    shard_set = ShardSet(folder)
    say(summary(shard_set))
    if not shard_set.manifest.samples(command.split):
        raise UserError(f"{folder}: no patches in {command.split}; choose another --split")
    out = command.out or folder / CONTACT_SHEET
    sheet = contact_sheet(shard_set, command.split, command.seed)
    try:
        with whole_file(out) as file:
            file.write(sheet)
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); name another file with --out") from None
    say(f"  contact sheet: {out}")
    return FINISHED


def _local_folder(command: ShardsCommand) -> Path:
    """The set's folder; for a URL, the cache folder with all files fetched."""
    if "://" in command.shard_set:
        from shards.read.remote import fetched_whole

        return fetched_whole(command.shard_set)
    path = Path(command.shard_set)
    return path if len(path.parts) > 1 or (path / MANIFEST).exists() else command.root / path


if __name__ == "__main__":
    sys.exit(run_job(main))
