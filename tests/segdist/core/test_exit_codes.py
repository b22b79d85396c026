"""Which errors count as a lost peer."""

import pytest

from segdist.core.exit_codes import is_communication_error


class DistNetworkError(RuntimeError):
    """Same name as torch's class."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13713"),
        RuntimeError("NCCL communicator was aborted on rank 0"),
        RuntimeError("[c10d] The client socket has timed out after 60000ms while trying to connect to (node1, 20001)."),
        RuntimeError("Application timeout caused pair closure"),
        DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_communication_errors_between_ranks_count_as_a_lost_peer(error: Exception) -> None:
    assert is_communication_error(error)
    wrapped = ValueError("while validating")
    wrapped.__cause__ = error
    assert is_communication_error(wrapped)


@pytest.mark.parametrize(
    "error",
    [ValueError("gloo"), RuntimeError("shape mismatch"), ConnectionRefusedError("the W&B server"), MemoryError(), None],
)
def test_other_errors_do_not(error: Exception | None) -> None:
    assert not is_communication_error(error)
