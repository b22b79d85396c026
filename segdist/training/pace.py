"""The length of a training: steps timed at its start, and the number of steps that fits into the time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from segdist.core.machine import STARTED
from segdist.ranks.process_group import Ranks

WARM_UP, TRIALS, MOST_TRIALS = 2, 6, 200
"""Steps before the clock starts, and on it."""
TRIAL_SECONDS = 3.0
"""What the trials should take at least, by more of them where steps are short."""
END_SECONDS = 3.0
"""Last checkpoint, last model, report."""
VALIDATION_SHARE = 0.06
"""Of the time: what a run in minutes may spend on validating."""
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
    """Seconds of a step, by the clock of rank 0; the same on all ranks. Collective.

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
        spent: seconds that are gone already.
        step, validation: seconds of one.
    """
    left = max(60 * minutes - spent - END_SECONDS, 0.0)
    # The last step validates whatever that costs.
    validations = min(max(int(VALIDATION_SHARE * left / max(validation, 1e-9)), 1), VALIDATIONS)
    steps = max(int((left - validations * validation) / max(step, 1e-9)), 1)
    return Length(steps, math.ceil(steps / validations))
