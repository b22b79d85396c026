"""Cluster profiles: settings reach sbatch, and invalid ones are refused by name."""

from pathlib import Path

import pytest

from segdist.core.errors import UserError
from slurm.profiles import JOBS, examples, load_profile
from slurm.submit import Order, sbatch_script
from tests.support.cluster import toy


def written(tmp_path: Path, text: str) -> str:
    """Write a profile with this text; return its path."""
    path = tmp_path / "profile.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", examples())
def test_every_example_is_valid_for_every_job(name: str, job: str) -> None:
    assert load_profile(name, job).ranks_per_node >= 1


def test_a_jobs_table_overrides_the_defaults(tmp_path: Path) -> None:
    text = '[environment]\nA = "1"\n[jobs.train]\nnodes = 4\nenvironment = {B = "2"}'
    train, infer = (load_profile(written(tmp_path, text), job) for job in ("train", "infer"))
    assert (train.nodes, train.environment) == (4, {"A": "1", "B": "2"})
    assert (infer.nodes, infer.environment) == (1, {"A": "1"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partitoin = "gpu"', "unknown key partitoin; did you mean partition?"),
        ("[jobs.train]\ngpus = 8", "[jobs.train]: unknown key gpus"),
        ("nodes_min = 2", "nodes_min = 2 is more than nodes = 1"),
        ('nodes = 2\nnodes_min = 1\nnodelist = "a,b"', "combine nodes_min with exclude instead"),
        ("[jobs.trian]\nnodes = 2", "[jobs.trian]: no such job; did you mean train?"),
        ('nodes = "2"', "nodes: "),
        ("nodes = true", "nodes: "),
        ("nodes = 0", "nodes = 0: must be at least 1"),
        ('launcher = "mpirun"', "launcher: "),
        ("time_minutes = 2", "raise time_minutes"),
        ("nodes = = 2", "line 1"),
    ],
)
def test_a_wrong_profile_is_refused_with_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_profile(written(tmp_path, text), "train")
    assert words in str(caught.value)
    assert "profile.toml" in str(caught.value)


def test_a_missing_profile_is_refused_listing_the_examples() -> None:
    with pytest.raises(UserError, match=r"neither a file nor one of the examples \(gpu-node, gpu-nodes, local, mini\)"):
        load_profile("nowhere", "train")


def test_all_profile_settings_are_in_the_script(tmp_path: Path) -> None:
    text = """
        partition = "gpu"
        account = "lab"
        qos = "high"
        constraint = "a100"
        gpus_per_node = 8
        nodes = 2
        cpus_per_task = 12
        memory_gb = 400
        time_minutes = 90
        signal_seconds = 300
        exclusive = true
        container = ["--container-image=image.sqsh"]
        setup = ["module load cuda"]
        python = "apptainer exec image.sif python"
        environment = {NCCL_SOCKET_IFNAME = "ib 0"}
        sbatch = {mail-type = "FAIL"}
    """
    profile = load_profile(written(tmp_path, text), "train")
    script = sbatch_script(Order("train", (toy("greet", tmp_path),), profile, tmp_path / "slurm", after=("7", "8")))
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --qos=high",
        "#SBATCH --constraint=a100",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --mem=400GB",
        "#SBATCH --time=90",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --mail-type=FAIL",
        "#SBATCH --dependency=afterok:7:8",
        "#SBATCH --kill-on-invalid-dep=yes",
        "module load cuda",
        "export NCCL_SOCKET_IFNAME='ib 0'",
    ):
        assert line in script.splitlines()
    assert (
        "--kill-on-bad-exit=1 --cpus-per-task=12 --container-image=image.sqsh apptainer exec image.sif python" in script
    )


def test_a_job_can_accept_fewer_nodes(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, "nodes = 4\nnodes_min = 2\ntasks_per_node = 8"), "train")
    script = sbatch_script(Order("train", (toy("greet", tmp_path),), profile, tmp_path / "slurm")).splitlines()
    assert "#SBATCH --nodes=2-4" in script
    assert "#SBATCH --mincpus=8" in script
    assert not any(line.startswith("#SBATCH --ntasks") for line in script)
    assert "--ntasks-per-node=8" in next(line for line in script if line.startswith("srun "))


def test_torchrun_gets_one_slurm_task_per_node(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, 'gpus_per_node = 8\nlauncher = "torchrun"'), "train")
    assert (profile.tasks, profile.ranks_per_node) == (1, 8)
