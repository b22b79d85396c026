"""Cores and memory of the machine, including systems that report less than Linux."""

import os
import sys

import pytest

from segdist.core import machine


def test_a_pinned_process_uses_only_its_cores() -> None:
    assert machine.usable_cores() == len(os.sched_getaffinity(0))


def test_without_affinity_all_cores_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cores() == 6


def test_peak_memory_is_in_mb_or_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < machine.peak_memory_mb() < 1e5
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory_mb() != machine.peak_memory_mb()
