"""The one place where a job's errors become messages, exit codes and the reason that its launcher reads."""

import os
import time
from collections.abc import Callable

from segdist.core.errors import UserError
from segdist.core.exit_codes import FAILED, INTERRUPTED, LOST_PEERS, USAGE, is_communication_error
from segdist.core.files import NO_ROOM, no_room
from segdist.core.launcher import end_with_launcher, note_reason
from segdist.core.terminal import outlive_the_terminal, show_error, show_traceback

TIME_FOR_RANK_0 = 10.0
"""Seconds that the other ranks leave to rank 0 to name bad input."""


def run_job(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call `main` and turn what it raises into one message and an exit code."""
    end_with_launcher()
    outlive_the_terminal()
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    rank = int(text) if text.isdigit() else 0
    try:
        return main(argv)
    except UserError as error:
        # On several ranks all see the same bad input; rank 0 speaks for them. Launchers end the others when the first
        # rank leaves, so that one lets it finish, and speaks itself if it is still there afterwards.
        if rank != 0 and not error.on_this_rank:
            time.sleep(TIME_FOR_RANK_0)
        note_reason(str(error), rank)
        show_error(str(error), rank)
        return USAGE
    except OSError as error:
        if error.errno not in NO_ROOM:
            return _unexpected(error, rank)
        reason = no_room(error.filename or "a file", error)
        note_reason(reason, rank)
        show_error(reason, rank)
        return FAILED
    except KeyboardInterrupt:
        show_error("interrupted", rank)
        return INTERRUPTED
    except Exception as error:
        return _unexpected(error, rank)


def _unexpected(error: Exception, rank: int) -> int:
    show_traceback(error, rank)
    if is_communication_error(error):
        return LOST_PEERS  # whose reason is that of the rank that is gone
    note_reason(f"{type(error).__name__}: {error}", rank)
    return FAILED
