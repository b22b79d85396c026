"""What a job's exit code means, and the one place where errors become messages."""

import os
import time
from collections.abc import Callable

from segdist.core.errors import UserError
from segdist.core.terminal import show_error, show_traceback
from slurm.requeue import is_communication_error

FINISHED = 0
FAILED = 1
"""An unexpected error; a traceback says where."""
USAGE = 2
"""Bad input or settings; the message names the cause and the way out. Nothing was started."""
INCOMPLETE = 3
"""The job ran to its end, but some inputs failed; the list of failures says which."""
STOPPED = 75
"""Asked to stop (signal) and stopped in good order: the same command continues. sysexits.h calls 75 "try again"."""
LOST_PEERS = 76
"""The other ranks can't be reached any more: one has died, or the network. The same command continues."""

TIME_FOR_RANK_0 = 10.0
"""Seconds that the other ranks leave to rank 0 to name bad input."""


def run_job(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call `main` and turn what it raises into one message and an exit code."""
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    rank = int(text) if text.isdigit() else 0
    try:
        return main(argv)
    except UserError as error:
        # On several ranks all see the same bad input; rank 0 speaks for them. Launchers end the others when the first
        # rank leaves, so that one lets it finish, and speaks itself if it is still there afterwards.
        if rank != 0 and not error.on_this_rank:
            time.sleep(TIME_FOR_RANK_0)
        show_error(str(error), rank)
        return USAGE
    except KeyboardInterrupt:
        show_error("interrupted", rank)
        return 130
    except Exception as error:
        show_traceback(error, rank)
        return LOST_PEERS if is_communication_error(error) else FAILED
