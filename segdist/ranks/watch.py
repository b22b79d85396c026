"""Track the position of every rank through the ranks' store, so that a late rank can be named.

Each rank writes its place (a step, and what it is doing there) to the store. If a rank makes no progress for most of
the time that ranks wait for each other, it reads all places twice: a rank whose beats have stopped is dead, frozen or
cut off; among those still beating, the one with the lowest step holds up the others. The lowest beating rank names it,
before the collectives give up and end the job.

The first rank of each node also maintains one file in the job's folder, which `segdist status` reads.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from segdist.core.files import write_json
from segdist.core.formats import stamped
from segdist.core.paths import HEARTBEATS
from segdist.core.terminal import clock, warn
from segdist.ranks.launchers import RankEnvironment

HEARTBEAT_VERSION = 1
LONGEST_BEAT = 10.0
"""Maximum seconds between two beats; shorter if ranks only wait for each other for minutes."""
PATIENCE = 0.7
"""Fraction of the ranks' time-out after which a rank without progress looks around."""
ANSWER, CLOSING = 5.0, 20.0
"""Seconds that the ranks' store has to respond before it counts as silent; also, that a thread has to end."""
MOST_NAMED = 8
"""Maximum number of late ranks to name individually."""


@dataclass(frozen=True)
class Place:
    """Where a rank was when it beat."""

    rank: int
    node: str
    process: int
    beat: int = 0
    step: int = 0
    doing: str = "starting"

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.node}), step {self.step}, {self.doing}"


class Watch:
    """Reports this rank's place until it is closed.

    Args:
        store: of all ranks, through a separate client; None for a single process, which waits for no one.
        timeout: how long ranks wait for each other in a collective.
    """

    def __init__(self, environment: RankEnvironment, store: dist.Store | None, timeout: timedelta) -> None:
        self.environment, self._store = environment, store
        self._place = Place(environment.rank, socket.gethostname(), os.getpid())
        self._patience = PATIENCE * timeout.total_seconds()
        self._every = min(LONGEST_BEAT, timeout.total_seconds() / 20)
        self._moved = time.monotonic()
        self._looked_around = False
        self._looking = threading.Lock()
        self._folder: Path | None = None
        self._done = threading.Event()
        # Two threads, because a call to a store whose rank is frozen never returns.
        self._threads = [self._in_a_thread(self._beat_on)]
        if store is not None:
            self._threads.append(self._in_a_thread(self._watch, store))

    def at(self, doing: str, step: int | None = None) -> None:
        """This rank now does `doing`, in step `step` (default: the same as before). Costs next to nothing."""
        self._place = replace(self._place, doing=doing, step=self._place.step if step is None else step)
        self._moved, self._looked_around = time.monotonic(), False

    def keep_file(self, run_dir: Path) -> None:
        """From now on, the first rank of each node maintains the node's file in `run_dir`."""
        folder = run_dir / HEARTBEATS
        if self.environment.rank == 0:
            # Remove files of nodes from an earlier start; a node that is alive rewrites its file at its next beat.
            for left in folder.glob("*.json"):
                left.unlink(missing_ok=True)
        if self.environment.local_rank == 0:
            self._folder = folder

    def close(self) -> None:
        """Stop beating and remove the node's file. Waits for a look around in progress."""
        if self._looking.acquire(timeout=3 * self._every + 2 * ANSWER):
            self._looking.release()
        self._done.set()
        for thread in self._threads:
            # A thread that is inside the store when the interpreter exits would crash the process.
            thread.join(CLOSING)
        if self._folder is not None:
            with suppress(OSError):  # the folder stays as long as other nodes have files in it
                self._file(self._folder).unlink(missing_ok=True)
                self._folder.rmdir()

    def _in_a_thread(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True, name="watch")
        thread.start()
        return thread

    def _beat_on(self) -> None:
        beat = 0
        while not self._done.wait(self._every if beat else 0):
            beat += 1
            # A full disk, or a store whose rank has ended, must not disturb the work.
            with suppress(OSError, RuntimeError, ValueError):
                self._beat(replace(self._place, beat=beat))

    def _watch(self, store: dist.Store) -> None:
        while not self._done.wait(self._every):
            waited = time.monotonic() - self._moved
            if waited > self._patience and not self._looked_around:
                with self._looking:
                    self._looked_around = True
                    self._look_around(store, waited)

    def _beat(self, place: Place) -> None:
        if self._store is not None:
            self._store.set(_key(place.rank), json.dumps(asdict(place)))
        if self._folder is not None and not self._done.is_set():
            self._write_file(self._folder, place)

    def _look_around(self, store: dist.Store, waited: float) -> None:
        """Name the rank that the others are waiting for, if it is this rank's turn to speak."""
        seen: list[dict[int, Place]] = []

        def look() -> None:
            with suppress(RuntimeError):
                seen.append(self._places(store))
                if not self._done.wait(3 * self._every):
                    seen.append(self._places(store))

        self._in_a_thread(look).join(3 * self._every + ANSWER)
        if self._done.is_set():
            return
        if len(seen) < 2:
            speaker, found = 1, ["rank 0, which hosts the ranks' store and doesn't respond"]
        else:
            before, after = seen
            beating = {rank for rank, place in after.items() if rank not in before or place.beat != before[rank].beat}
            beating.add(self._place.rank)
            speaker, found = min(beating), self._late(after, beating)
        if not found or speaker != self._place.rank:
            return
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        late = "; ".join(found[:MOST_NAMED]) + more
        message = f"the ranks have waited {clock(waited)} for {late}. Waiting: {self._place}"
        # Only a warning: a job aborted for a late rank is restarted, while a recorded reason would end it.
        warn(message)

    def _late(self, places: dict[int, Place], beating: set[int]) -> list[str]:
        """The ranks that hold up the others; none if all are in the same step."""
        missing = [rank for rank in range(self.environment.world_size) if rank not in places]
        found = [f"rank {rank}, which was never heard from" for rank in missing]
        found += [f"{places[rank]}, without a sign of life" for rank in sorted(set(places) - beating)]
        if not found:
            lowest, highest = (edge(place.step for place in places.values()) for edge in (min, max))
            found = [str(place) for place in places.values() if place.step == lowest < highest]
        return found

    def _places(self, store: dist.Store) -> dict[int, Place]:
        """The latest place of every rank that ever sent a beat."""
        keys = [(rank, _key(rank)) for rank in range(self.environment.world_size)]
        return {rank: Place(**json.loads(store.get(key))) for rank, key in keys if store.check([key])}

    def _write_file(self, folder: Path, place: Place) -> None:
        local = [place]
        if self._store is not None:
            first = place.rank - self.environment.local_rank
            keys = [_key(rank) for rank in range(first, first + self.environment.local_world_size)]
            known = [json.loads(self._store.get(key)) for key in keys if self._store.check([key])]
            local = [item for item in (Place(**values) for values in known) if item.node == place.node]
        behind = min(local, key=lambda item: item.step)
        values = {
            "node": place.node,
            "ranks": sorted(item.rank for item in local),
            "step": behind.step,
            "doing": behind.doing,
            "every": self._every,
            "time": time.time(),
        }
        write_json(self._file(folder), stamped(values, HEARTBEAT_VERSION))

    def _file(self, folder: Path) -> Path:
        return folder / f"{self._place.node}.json"


def _key(rank: int) -> str:
    return f"segdist/place/{rank}"
