"""What a job's exit code means, to a person, a launcher and a scheduler."""

import re

FINISHED = 0
FAILED = 1
"""An unexpected error; a traceback says where."""
USAGE = 2
"""Bad input or settings; the message names the cause and the way out. Nothing was started."""
INCOMPLETE = 3
"""The job ran to its end, but some inputs failed; the list of failures says which."""
STOPPED = 75
"""A signal asked the job to stop, and it saved its state first: the same command resumes. sysexits.h: try again."""
LOST_PEERS = 76
"""The other ranks can't be reached: one has died, or the network has. The same command resumes. sysexits.h: remote
error in protocol."""
INTERRUPTED = 130
"""Ctrl-C, by the shell's convention 128 + SIGINT."""

PEER_ERRORS = re.compile(r"gloo|NCCL|c10d|ProcessGroup|Application timeout caused pair closure")
"""What the messages of communication errors contain that torch raises as a plain RuntimeError. The last is gloo's for
what follows a time-out."""


def is_communication_error(error: BaseException | None) -> bool:
    """Whether `error`, or what led to it, came from talking to other ranks."""
    while error is not None:
        # By name, so that nobody has to import torch for the question.
        if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
            return True
        if isinstance(error, RuntimeError) and PEER_ERRORS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
