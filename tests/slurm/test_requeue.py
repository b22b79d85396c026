"""What is taken for a lost peer, and that both rooms mean the same by an exit code."""

import pytest

from jobs import exit_codes
from slurm import requeue
from slurm.requeue import is_communication_error


class DistNetworkError(RuntimeError):
    """Named as torch's."""


def test_the_rooms_agree_on_the_exit_codes() -> None:
    assert (requeue.STOPPED, requeue.LOST_PEERS) == (exit_codes.STOPPED, exit_codes.LOST_PEERS)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13713"),
        RuntimeError("NCCL communicator was aborted on rank 0"),
        RuntimeError("[c10d] The client socket has timed out after 60000ms while trying to connect to (node1, 20001)."),
        DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_errors_of_the_communication_between_ranks_are_known(error: Exception) -> None:
    assert is_communication_error(error)
    wrapped = ValueError("while validating")
    wrapped.__cause__ = error
    assert is_communication_error(wrapped)


@pytest.mark.parametrize(
    "error",
    [ValueError("gloo"), RuntimeError("shape mismatch"), ConnectionRefusedError("the W&B server"), MemoryError(), None],
)
def test_other_errors_are_not(error: Exception | None) -> None:
    assert not is_communication_error(error)


def test_a_job_that_lost_its_peers_says_so_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def lonely(argv: list[str] | None) -> int:
        raise RuntimeError("[gloo] Connection closed by peer")

    assert exit_codes.run_job(lonely) == exit_codes.LOST_PEERS
    assert "Connection closed by peer" in capsys.readouterr().err
