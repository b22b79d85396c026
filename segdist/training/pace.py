"""The length of a run: time a few steps at its start, and compute the number of steps that fit into the time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from segdist.core.machine import STARTED
from segdist.ranks.process_group import Ranks

WARM_UP, TRIALS, MOST_TRIALS = 2, 6, 200
"""Untimed steps; minimum and maximum number of timed steps."""
TRIAL_SECONDS = 3.0
"""Minimum duration of the timed steps; short steps are repeated more often."""
SUSTAINED = 1.08
"""Duration of a step in a run, relative to the first seconds: processors slow down under sustained load."""
END_SECONDS = 3.0
"""Allowance for the last checkpoint, the last model and the report."""
VALIDATION_SHARE = 0.06
"""Maximum fraction of the time spent on validation if the length is in minutes."""
VALIDATIONS = 10


@dataclass(frozen=True)
class Length:
    """The length of a run in steps."""

    steps: int
    validate_every: int


def since_start() -> float:
    """Seconds since this program started."""
    return time.monotonic() - STARTED


def timed(steps: Callable[[int], None], ranks: Ranks) -> float:
    """Seconds per step by the clock of rank 0; the same on all ranks. Collective.

    Args:
        steps: runs the given number of steps and waits for them to finish.
    """
    steps(WARM_UP)

    def seconds(count: int) -> float:
        began = time.monotonic()
        steps(count)
        return float(ranks.broadcast(time.monotonic() - began)) / count

    first = seconds(WARM_UP)
    return seconds(min(max(math.ceil(TRIAL_SECONDS / max(first, 1e-9)), TRIALS), MOST_TRIALS))


def fitting(minutes: float, spent: float, step: float, validation: float) -> Length:
    """The length of a run that ends after `minutes`.

    Args:
        spent: seconds already used.
        step, validation: seconds per step, as in the first seconds of the program, and per validation.
    """
    step *= SUSTAINED
    left = max(60 * minutes - spent - END_SECONDS, 0.0)
    # The last step always validates, whatever that costs.
    validations = min(max(int(VALIDATION_SHARE * left / max(validation, 1e-9)), 1), VALIDATIONS)
    steps = max(int((left - validations * validation) / max(step, 1e-9)), 1)
    return Length(steps, math.ceil(steps / validations))
