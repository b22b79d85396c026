"""The exit codes of jobs, for users, launchers and schedulers."""

import re

FINISHED = 0
FAILED = 1
"""An unexpected error, with a traceback."""
USAGE = 2
"""Bad input or settings; the message names the cause and the way out. Nothing was started."""
INCOMPLETE = 3
"""The job completed, but some inputs failed; the list of failures names them."""
STOPPED = 75
"""The job was stopped by a signal and saved its state: the same command resumes. sysexits.h: try again."""
LOST_PEERS = 76
"""The other ranks can't be reached: one has died, or the network failed. The same command resumes. sysexits.h: remote
error in protocol."""
INTERRUPTED = 130
"""Ctrl-C, by the shell's convention 128 + SIGINT."""

PEER_ERRORS = re.compile(r"gloo|NCCL|c10d|ProcessGroup|Application timeout caused pair closure")
"""Matches the messages of communication errors that torch raises as a plain RuntimeError. The last one is gloo's after
a time-out."""


def is_communication_error(error: BaseException | None) -> bool:
    """True if `error`, or its cause, came from communicating with other ranks."""
    while error is not None:
        # By name, so that this doesn't need torch.
        if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
            return True
        if isinstance(error, RuntimeError) and PEER_ERRORS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
