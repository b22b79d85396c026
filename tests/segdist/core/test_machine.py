"""What the machine offers, also on systems that have less to say than Linux."""

import os
import sys

import pytest

from segdist.core import machine


def test_a_process_that_is_bound_to_cores_uses_no_others() -> None:
    assert machine.usable_cores() == len(os.sched_getaffinity(0))


def test_outside_linux_all_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cores() == 6


def test_memory_is_told_in_mb_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < machine.peak_memory_mb() < 1e5
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory_mb() != machine.peak_memory_mb()
