"""A small wrapper process that sees how each rank ends: `python -m slurm.witness ARGUMENTS OF PYTHON`.

A rank that is killed for memory, or that crashes in compiled code, can't report it. Its witness records the signal in
the file that the job's ledger reads. It starts in 50 ms and imports none of the libraries.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from segdist.core.launcher import LAUNCHER, REASON_FILE, note_reason, signal_reason
from slurm.ledger import reason_path

OF_A_JOB = "%j"
"""Last part of submitit's folder for jobs on Slurm: submitit replaces it with the id of the job or array task."""

HANDED_ON = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")


def main(arguments: list[str]) -> int:
    """Run Python with `arguments`, the last of which is submitit's folder; returns its exit code, 128 + n for signal
    n."""
    environ, folder = os.environ, Path(arguments[-1])
    if folder.name == OF_A_JOB:  # jobs on this machine, and those submitted by version 0.2.0, have none of their own
        folder = folder.parent
    # Slurm's signals reach every process of a step, including the rank; submitit's controller signals only us.
    local = environ.get("SUBMITIT_EXECUTOR") == "local"
    environ[LAUNCHER] = str(os.getpid())
    environ[REASON_FILE] = str(reason_path(folder, _job_id(local), environ.get("SLURM_RESTART_COUNT", "0")))
    told: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for rank in started if local else ():
            rank.send_signal(number)

    # Handlers, not SIG_IGN, which the rank would inherit; signals that are already ignored stay so for both.
    for number in (getattr(signal, name) for name in HANDED_ON):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)
    started.append(subprocess.Popen([sys.executable, *arguments]))
    code = started[0].wait()
    if code < 0 and -code not in told:  # no one asked for it
        note_reason(signal_reason(-code), int(environ["SUBMITIT_LOCAL_GLOBALID" if local else "SLURM_PROCID"]))
    return code if code >= 0 else 128 - code


def _job_id(local: bool) -> str:
    """The job id, as in submitit. Not imported from submitit, which takes ten times as long as everything else here."""
    if local:
        return os.environ["SUBMITIT_LOCAL_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
