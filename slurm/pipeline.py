"""Submit a chain of jobs, each started once the previous one has succeeded; finished work is not repeated."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
from submitit.core.utils import environment_variables

from segdist.core.errors import UserError
from segdist.core.owner import owned
from slurm.children import children
from slurm.ledger import Ledger, last_reason, ledger_path
from slurm.standing import Standing, standings
from slurm.submit import Cluster, Order, Record, submit

Say = Callable[[str], None]
PATIENCE = 120.0
"""Seconds that a submission waits for another one in the same folder. Slurm can take many seconds per job."""


@dataclass(frozen=True)
class Link:
    """One job of the chain."""

    order: Order
    product: str
    """A file that exists once the link is finished; if it is missing, the link has to run again."""


@dataclass(frozen=True)
class Placed:
    """What became of a link at submission."""

    link: Link
    record: Record
    what: str
    """"submitted", "queued already", "finished already"."""


def submit_chain(links: Sequence[Link], cluster: Cluster, say: Say) -> list[Placed]:
    """As `_submit_chain`, but one submission at a time: the second of two concurrent ones finds the first one's jobs.

    Raises:
        UserError: also, without Slurm, if the jobs of another submission are running here.
    """
    with owned(links[0].order.folder, "segdist submit", wait=PATIENCE if cluster == "slurm" else 0.0):
        return _submit_chain(links, cluster, say)


def _submit_chain(links: Sequence[Link], cluster: Cluster, say: Say) -> list[Placed]:
    """Submit `links` so that each waits for the previous one; without Slurm, run them here, one after another.

    A link is kept if it was submitted before with the same arguments and settings, all links before it are kept too,
    and it is finished (with its product in place) or still waiting or running.

    Raises:
        UserError: a link of an earlier submission is in the way; without Slurm, also if a link failed.
    """
    placed: list[Placed] = []
    changed = False
    for link in links:
        earlier = {standing.record.name: standing for standing in standings(link.order.folder)}
        before = earlier.get(link.order.name)
        kept = None if changed else _keep(link, before, cluster)
        if kept is not None and before is not None:
            placed.append(Placed(link, before.record, kept))
            say(f"{link.order.name}: {kept} (job {before.record.job_id})")
            continue
        changed = True
        if before is not None and before.alive and cluster == "slurm":
            raise UserError(
                f"{link.order.name}: job {before.record.job_id} of an earlier submission is still {before.state}; "
                f"wait for it, or `scancel {before.record.job_id}` and submit again"
            )
        if cluster == "slurm":
            waiting_for = [item.record.job_id for item in placed[-1:] if item.what != "finished already"]
            record, _ = submit(replace(link.order, after=tuple(waiting_for)), cluster)
            say(f"{link.order.name}: submitted as job {record.job_id}")
        else:
            record = _run_here(link.order, cluster, say)
        placed.append(Placed(link, record, "submitted"))
    return placed


def _keep(link: Link, before: Standing | None, cluster: Cluster) -> str | None:
    if before is None:
        return None
    commands = [list(task.arguments) for task in link.order.tasks]
    if (before.record.arguments, before.record.settings) != (commands, link.order.settings):
        return None
    if before.finished and Path(link.product).exists():
        return "finished already"
    if cluster == "slurm" and before.record.cluster == "slurm" and before.alive:
        return "queued already"
    return None


def _run_here(order: Order, cluster: Cluster, say: Say) -> Record:
    """Run a link on this machine and wait for it to end."""
    started = time.monotonic()
    say(f"{order.name}: started here; logs in {order.folder}")
    with _only_we_hear_ctrl_c() if cluster == "local" else nullcontext():
        record, (job,) = submit(order, cluster)
    # Not in this process: submitit would set up the job's environment only in `results()`, which ends in pdb.
    with environment_variables(**({"SUBMITIT_DEBUG_JOB_ID": job.job_id} if cluster == "debug" else {})):
        try:
            error = job.exception()
        except KeyboardInterrupt:
            if cluster == "local":
                say(f"{order.name}: stopping and saving its state (Ctrl-C again to stop immediately)")
                _stop(job)
            say(f"{order.name}: stopped; the same command resumes from the saved state")
            raise
    if error is not None:
        noted = Ledger.read(ledger_path(order.folder, record.job_id)).reason
        reason = noted or last_reason(order.folder, record.job_id) or str(error)
        raise UserError(
            f"{order.name} failed: {reason}\nIts log is {job.paths.stderr}; the later jobs were not started"
        )
    say(f"{order.name}: finished in {time.monotonic() - started:.0f} s")
    return record


@contextmanager
def _only_we_hear_ctrl_c() -> Iterator[None]:
    """Make processes started in this context ignore Ctrl-C: submitit's controller would kill the job a second later."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(job: submitit.Job[str]) -> None:
    """Stop a job on this machine cleanly, and wait for it; another Ctrl-C ends it immediately."""
    controller = int(job.job_id)  # forwards SIGTERM to the job's processes, and ends after them
    try:
        os.kill(controller, signal.SIGTERM)
        job.wait()
    except KeyboardInterrupt:
        for process in [*children(controller), controller]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
