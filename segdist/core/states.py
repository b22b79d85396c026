"""The states of a run."""

from typing import Literal

State = Literal["waiting", "running", "silent", "finished", "stopped", "failed"]
"""waiting: nothing is written yet; silent: running, but without a sign of life; stopped: on request, can be resumed."""

ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
"""The states in which no process is working on the run."""
