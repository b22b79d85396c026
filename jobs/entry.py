"""Turn a job's errors into messages, exit codes and the reason that its launcher reads."""

import errno
import gc
import os
import time
from collections.abc import Callable

from segdist.core.errors import UserError
from segdist.core.exit_codes import FAILED, INTERRUPTED, LOST_PEERS, STOPPED, USAGE, is_communication_error
from segdist.core.files import NO_ROOM, no_room
from segdist.core.launcher import end_with_launcher, note_reason
from segdist.core.terminal import outlive_the_terminal, show_error, show_traceback
from segdist.core.waiting import WaitEnded

NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""An unusable path: someone else's folder, a file where a folder is needed, …"""
TIME_FOR_RANK_0 = 10.0
"""Seconds that the other ranks give rank 0 to name bad input."""


def run_job(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call `main` and turn what it raises into one message and an exit code."""
    end_with_launcher()
    outlive_the_terminal()
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    rank = int(text) if text.isdigit() else 0
    try:
        code = main(argv)
        # What the job leaves behind may refer to itself and to the process group, whose threads must end before the
        # interpreter does: one that looks for it afterwards aborts the process.
        gc.collect()
        return code
    except UserError as error:
        # All ranks see the same bad input, and rank 0 reports it. Launchers stop the others once a rank exits, so other
        # ranks let rank 0 exit first, and report the error themselves if they are still running afterwards.
        if rank != 0 and not error.on_this_rank:
            time.sleep(TIME_FOR_RANK_0)
        return _refused(str(error), rank, USAGE)
    except OSError as error:
        if error.errno in NO_ROOM:
            return _refused(no_room(error.filename or "a file", error), rank, FAILED)
        if error.errno in NO_ACCESS and error.filename:
            message = f"{error.filename}: {error.strerror}; choose another place, or get access to it"
            return _refused(message, rank, USAGE)
        return _unexpected(error, rank)
    except WaitEnded as ended:
        show_error(f"{ended}; the same command resumes from the last checkpoint", rank)
        return STOPPED
    except KeyboardInterrupt:
        show_error("interrupted", rank)
        return INTERRUPTED
    except Exception as error:
        return _unexpected(error, rank)


def _refused(message: str, rank: int, code: int) -> int:
    note_reason(message, rank)
    show_error(message, rank)
    return code


def _unexpected(error: Exception, rank: int) -> int:
    show_traceback(error, rank)
    if is_communication_error(error):
        return LOST_PEERS  # the dead rank's reason is the cause
    note_reason(f"{type(error).__name__}: {error}", rank)
    return FAILED
