"""Cross-validation on real Slurm: an interrupted fold resumes, and the bytes match those of a single machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.standing import Standing, standings
from tests.support.braked import Brake
from tests.support.cluster import Cluster, ended, wait_for, wait_until
from tests.support.programs import run
from tests.support.sets import tiny_set
from tests.support.states import fold_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BRAKED = "tests.support.braked:BrakedUNet"
TRAIN = {
    "preset": "paper",
    "steps": 40,
    "batch_size": 4,
    "threads": 1,
    "model": {"factory": BRAKED, "kwargs": {"width": 4, "depth": 2}},
    "checkpoint": {"every_steps": 4},
}
PROFILE = """
partition = "main"
memory_gb = 3
[environment]
OMP_NUM_THREADS = "1"
SEGDIST_TEST_BRAKE = "brake"
"""


def test_an_interrupted_fold_resumes_and_the_result_matches_a_single_machine(cluster: Cluster, tmp_path: Path) -> None:
    tiny_set(tmp_path / "data")
    (tmp_path / "profile.toml").write_text(PROFILE)
    brake = Brake(tmp_path / "brake")
    brake.set(0.3)
    settings = ["-f", "tiny", "--folds", "2", "--train", json.dumps(TRAIN), "--infer", '{"threads": 1}']
    settings += ["--tracking", '{"wandb": "off"}']
    segdist = [sys.executable, "-m", "jobs.cli"]
    submitted = [*segdist, "submit", "cross-validate", "--profile", "profile.toml", *settings]
    run(submitted, tmp_path, SLURM_CONF=os.environ["SLURM_CONF"])
    folder = tmp_path / "runs" / "tiny-cv"

    def now(name: str) -> Standing:
        return {item.record.name: item for item in standings(folder / "slurm")}[name]

    def both_train() -> bool:
        return all(list((folder / f"fold-{fold}" / "checkpoints").glob("step-*.pt")) for fold in (1, 2))

    # Both run at once: the brake keeps either from finishing before the other has its first checkpoint.
    wait_until("both folds train", both_train, ended(lambda: now("train")))
    assert not any((folder / f"fold-{fold}" / "last.safetensors").exists() for fold in (1, 2))
    subprocess.run(["scancel", "--signal=USR2", f"{now('train').record.job_id}_1"], check=True)
    wait_for("the second fold starts again", lambda it: it.starts == 2, lambda: now("train"))
    brake.release()
    end = wait_for("the scores", lambda it: it.finished and not it.alive, lambda: now("finish-folds"))
    assert end.starts == 1
    assert [len(ledger.starts) for ledger in now("train").ledgers] == [1, 2]
    assert "resumed" in (folder / "fold-2" / "events.jsonl").read_text()
    run([*segdist, "cross-validate", *settings, "--name", "here", "--processes", "1"], tmp_path)
    assert fold_results(tmp_path / "runs" / "here") == fold_results(folder)
