"""Silent damage on the disk: each shard's checksum, once per start of a run, beside the work and at its mercy.

The ranks share the shards. A thread of the lowest priority reads a piece, and rests for many times as long.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from shards.read.reader import ShardSet

PIECE = 1 << 20
"""Bytes between two rests."""
REST = 19
"""Times the duration of the work: at most a twentieth of a core, at the lowest priority."""


class BackgroundCheck:
    """Checks the shards of `sets` whose turn it is on this rank; `problem` is what it has found."""

    def __init__(self, sets: Sequence[ShardSet], rank: int, world_size: int) -> None:
        shards = [(item.folder / shard.file, shard.sha256) for item in sets for shard in item.manifest.shards]
        self._mine = shards[rank::world_size]
        self._thread: threading.Thread | None = None
        self.problem = ""
        """A damaged shard, and what to do; "" for none so far."""
        self.checked = 0
        """Shards that were read whole."""

    def start(self) -> None:
        """Begin, unless it has begun before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="background check of the shards")
            self._thread.start()

    def _work(self) -> None:
        if sys.platform.startswith("linux"):  # where threads have priorities of their own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for path, expected in self._mine:
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    began = time.perf_counter()
                    while piece := file.read(PIECE):
                        digest.update(piece)
                        time.sleep(REST * (time.perf_counter() - began))
                        began = time.perf_counter()
            except OSError as error:
                self.problem = f"{path}: can't be read any more ({error.strerror}); copy it again"
                return
            if digest.hexdigest() != expected:
                self.problem = (
                    f"{path}: damaged: its bytes are not those that were written (wrong checksum). Copy it again, or "
                    "build the set again; steps since the last start may have seen wrong samples"
                )
                return
            self.checked += 1
