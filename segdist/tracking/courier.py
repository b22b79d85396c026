"""Run a tracker's calls in a separate thread, so that a hanging call can be abandoned and delays nothing."""

import queue
import threading
import time
from collections.abc import Callable

Call = Callable[[], None]


class Courier:
    """Runs calls one after another, in the order in which they were submitted.

    Args:
        name: name of the thread.
        on_error: called in the thread with the name and the exception of a failed call.
    """

    def __init__(self, name: str, on_error: Callable[[str, Exception], None]) -> None:
        self._on_error = on_error
        self._calls: queue.SimpleQueue[tuple[str, Call] | None] = queue.SimpleQueue()
        self._left = 0
        self._dismissed = False
        self._changed = threading.Condition()
        self._began: float | None = None
        threading.Thread(target=self._work, daemon=True, name=f"courier of {name}").start()

    def hand_over(self, what: str, call: Call) -> None:
        """Run `call` after the calls before it."""
        with self._changed:
            self._left += 1
        self._calls.put((what, call))

    def seconds_at_it(self) -> float:
        """How long the current call has taken so far; 0 if there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def wait(self, limit: float) -> bool:
        """Return when everything is done (True), or when one call takes longer than `limit` seconds (False)."""
        with self._changed:
            while self._left:
                if self.seconds_at_it() > limit:
                    return False
                self._changed.wait(0.1)
        return True

    def dismiss(self) -> None:
        """Drop all pending calls; the thread ends after the current one."""
        self._dismissed = True
        self._calls.put(None)

    def _work(self) -> None:
        while (handed := self._calls.get()) is not None:
            if self._dismissed:
                return
            what, call = handed
            self._began = time.monotonic()
            try:
                call()
            # Catch anything that a tracker's library raises after hours of training: the run matters more.
            except Exception as error:
                self._on_error(what, error)
            self._began = None
            with self._changed:
                self._left -= 1
                self._changed.notify_all()
