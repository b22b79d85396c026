"""Detect silent disk damage: verify each shard's checksum once per start of a run, in the background.

The ranks share the shards. A lowest-priority thread reads a piece, then sleeps for many times as long.
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
"""Bytes to read between two sleeps."""
REST = 19
"""Sleep as a multiple of the working time, so that this takes at most a twentieth of a core."""


class BackgroundCheck:
    """Checks this rank's part of the shards of `sets`; `problem` is what it found."""

    def __init__(self, sets: Sequence[ShardSet], rank: int, world_size: int) -> None:
        shards = [(item.folder / shard.file, shard.sha256) for item in sets for shard in item.manifest.shards]
        self._mine = shards[rank::world_size]
        self._thread: threading.Thread | None = None
        self.problem = ""
        """A damaged shard, and what to do; "" if none was found so far."""
        self.checked = 0
        """Number of shards read completely."""

    def start(self) -> None:
        """Start, unless already started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="background check of the shards")
            self._thread.start()

    def _work(self) -> None:
        if sys.platform.startswith("linux"):  # where each thread has its own priority
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        piece = memoryview(bytearray(PIECE))  # one for all: this must not fail when a step takes all the memory
        for path, expected in self._mine:
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    began = time.perf_counter()
                    while length := file.readinto(piece):
                        digest.update(piece[:length])
                        time.sleep(REST * (time.perf_counter() - began))
                        began = time.perf_counter()
            except OSError as error:
                self.problem = f"{path}: can no longer be read ({error.strerror}); copy it again"
                return
            if digest.hexdigest() != expected:
                self.problem = (
                    f"{path}: damaged: its bytes have changed since it was written (wrong checksum). Copy it again, or "
                    "rebuild the set; steps since the last start may have used wrong samples"
                )
                return
            self.checked += 1
