"""Wait for something external: with a limit, a line that says what for, and an end if this process is told to stop."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from segdist.core.terminal import warn

FIRST_LINE = 10.0
"""Seconds after which a wait is reported."""
LOOK_EVERY = 0.2
"""Seconds between checks for a stop request."""

Result = TypeVar("Result")

stop_requested = threading.Event()
"""Set by the signal handler; ends every wait in `patiently`."""


class WaitEnded(Exception):
    """This process was told to stop while waiting; the message says for what."""


def patiently(call: Callable[[], Result], what: str, limit: float) -> Result:
    """The result (or exception) of `call`, if it finishes within `limit` seconds. Runs in a separate thread.

    Raises:
        TimeoutError: it takes longer; the thread is abandoned.
        WaitEnded: this process was told to stop in the meantime.
    """
    found: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:  # handed over, not hidden
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name=f"waiting for {what}")
    began = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY)
        waited = time.monotonic() - began
        if stop_requested.is_set():
            raise WaitEnded(f"told to stop while waiting for {what}")
        if waited > limit:
            raise TimeoutError(f"no answer within {limit:g} s")
        if waited > FIRST_LINE:
            warn(f"waiting for {what}, up to {limit:g} s")
    if errors:
        raise errors[0]
    return found[0]
