"""Resolving rank and world size under torchrun, under Slurm and without a launcher."""

import os

import pytest
import torch

from segdist.core.errors import UserError
from segdist.ranks.device import choose_device
from segdist.ranks.launchers import Launcher, RankEnvironment, first_host, resolve_environment
from segdist.ranks.threads import default_threads

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node3",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_without_a_launcher_the_job_is_a_single_process() -> None:
    assert resolve_environment({}) == RankEnvironment("single")


def test_torchrun_variables_are_read() -> None:
    assert resolve_environment(TORCHRUN) == RankEnvironment("torchrun", 5, 1, 8, 4, "node3", 29500)


def test_srun_variables_are_read() -> None:
    environment = resolve_environment(SRUN)
    assert environment == RankEnvironment("slurm", 3, 1, 4, 2, "gpu003", 0, "41234.0.0")


def test_an_address_exported_by_the_submitter_is_used() -> None:
    environment = resolve_environment(SRUN | {"MASTER_ADDR": "gpu009", "MASTER_PORT": "21000"})
    assert (environment.master_addr, environment.master_port) == ("gpu009", 21000)


def test_torchrun_inside_a_slurm_task_wins() -> None:
    assert resolve_environment(SRUN | TORCHRUN).launcher == "torchrun"


def test_a_batch_script_without_srun_is_a_single_process() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu001"}
    assert resolve_environment(batch).launcher == "single"


@pytest.mark.parametrize("missing", TORCHRUN)
def test_half_a_torchrun_environment_is_refused(missing: str) -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    if missing == "RANK":
        environ.pop("MASTER_ADDR")
    with pytest.raises(UserError, match=f"half a torchrun environment.*{missing}"):
        resolve_environment(environ)


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"])
def test_half_a_slurm_step_is_refused(missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        resolve_environment({name: value for name, value in SRUN.items() if name != missing})


@pytest.mark.parametrize(("name", "value"), [("RANK", "eight"), ("RANK", "8"), ("LOCAL_RANK", "4")])
def test_impossible_ranks_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError):
        resolve_environment(TORCHRUN | {name: value})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[1-4]", "node1"),
        ("gpu[003,007-009]", "gpu003"),
        ("a1,b[2-3]", "a1"),
        ("rack[01-02]-n", "rack01-n"),
        ("127.0.0.[11-12]", "127.0.0.11"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_threads_are_shared_between_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads(RankEnvironment("single")) == 8
    assert default_threads(RankEnvironment("slurm", local_world_size=2)) == 4
    assert default_threads(RankEnvironment("torchrun", local_world_size=100)) == 1


def test_omp_num_threads_is_honored_unless_set_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads(RankEnvironment("single")) == 1
    assert default_threads(RankEnvironment("torchrun", local_world_size=2)) == 4
    # torchrun sets 1; any other number was set by the user.
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads(RankEnvironment("torchrun", local_world_size=2)) == 3


def test_a_step_with_fewer_tasks_than_the_job_counts_its_own() -> None:
    smaller = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    environment = resolve_environment(SRUN | smaller | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"})
    assert (environment.rank, environment.world_size, environment.local_world_size) == (1, 2, 1)


def test_a_rank_uses_only_the_cores_requested_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert default_threads(RankEnvironment("slurm", 0, 0, 2, 2)) == 3
    assert default_threads(RankEnvironment("slurm", 0, 0, 8, 8)) == 2
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert default_threads(RankEnvironment("slurm", 0, 0, 2, 2)) == 8


@pytest.mark.parametrize(
    ("launcher", "local_rank", "ranks", "gpus", "expected"),
    [
        ("single", 0, 1, 0, "cpu"),
        ("single", 0, 1, 4, "cuda:0"),
        ("torchrun", 3, 8, 8, "cuda:3"),
        ("torchrun", 1, 2, 1, "cpu"),  # NCCL refuses two ranks on one GPU
        ("torchrun", 0, 3, 2, "cpu"),
        ("slurm", 1, 2, 1, "cuda:0"),  # each task sees only its own GPU
        ("slurm", 1, 2, 2, "cuda:1"),
    ],
)
def test_every_rank_gets_its_own_gpu_or_none(
    monkeypatch: pytest.MonkeyPatch, launcher: Launcher, local_rank: int, ranks: int, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    environment = RankEnvironment(launcher, local_rank, local_rank, ranks, ranks)
    assert choose_device("auto", environment) == torch.device(expected)
    assert choose_device("cpu", environment) == torch.device("cpu")
    if gpus and expected == "cpu":
        with pytest.raises(UserError, match=f"{ranks} ranks on this node, but {gpus} GPUs"):
            choose_device("cuda", environment)


def test_idle_gpus_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    choose_device("auto", RankEnvironment("torchrun", 0, 0, 2, 2))
    assert "2 ranks on this node, but 1 GPUs: start one rank per GPU to use them" in capsys.readouterr().err
