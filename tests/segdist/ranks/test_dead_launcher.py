"""A rank whose torchrun died during start-up."""

import socket
from datetime import timedelta

import pytest

from segdist.core.errors import UserError
from segdist.ranks import process_group


def test_a_dead_launcher_is_given_up_sooner_than_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # bound but not listening
        silent.bind(("127.0.0.1", 0))
        port = str(silent.getsockname()[1])
        values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(process_group, "LAUNCHER_LIMIT", timedelta(seconds=1))
        with pytest.raises((UserError, RuntimeError)), process_group.ranks("cpu", timeout=timedelta(hours=1)):
            pass
