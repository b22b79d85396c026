"""How a run stands."""

from typing import Literal

State = Literal["waiting", "running", "silent", "finished", "stopped", "failed"]
"""waiting: nothing is written yet; silent: running without a sign of life; stopped: on request, to be resumed."""

ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
"""The states in which no process works on the run."""
