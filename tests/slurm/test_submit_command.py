"""`segdist submit` and `segdist queue` up to the submission: plans, refusals and dry runs, without Slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import show_queue, submit
from jobs.config import SubmitFoldsConfig
from jobs.links import Submission, fold_links, infer_links, pipeline_links, shard_links, train_links
from segdist.core.errors import UserError
from slurm.submit import job_folder, sbatch_script
from slurm.submit import submit as submit_order
from tests.support.programs import environment

MINI = Submission("mini", "slurm")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def commands(links: list) -> list[list[tuple[str, ...]]]:  # type: ignore[type-arg]
    """The commands of each link."""
    return [[task.arguments for task in link.order.tasks] for link in links]


def test_shards_are_made_by_an_array_and_a_finishing_job() -> None:
    links = shard_links(Submission("mini", "slurm", tasks=2), ["-f", "cells"])
    assert [link.order.name for link in links] == ["make-shards", "finish-shards"]
    assert commands(links) == [
        [("make-shards", "-f", "cells", "--task", "0/2"), ("make-shards", "-f", "cells", "--task", "1/2")],
        [("make-shards", "-f", "cells", "--finish")],
    ]


def test_off_slurm_an_array_becomes_one_process() -> None:
    links = shard_links(Submission("local", "local", tasks=8), ["-f", "cells"])
    assert commands(links) == [[("make-shards", "-f", "cells")]]


def test_inference_over_an_array_ends_with_the_merge_by_a_single_rank() -> None:
    links = infer_links(Submission("mini", "slurm", tasks=2), ["-m", "cells", "-f", "cells"])
    plain = ("infer", "-m", "cells", "-f", "cells")
    assert commands(links) == [[(*plain, "--task", "0/2"), (*plain, "--task", "1/2")], [plain]]
    assert [(link.order.profile.nodes, link.order.profile.ranks_per_node) for link in links] == [(1, 1), (1, 1)]


def test_a_trainings_checkpoints_show_its_progress_and_its_run_holds_the_logs() -> None:
    (link,) = train_links(MINI, ["-f", "cells", "--name", "first"])
    assert link.order.folder == Path("runs/first/slurm").absolute()
    assert link.order.tasks[0].progress == ("runs/first/checkpoints/step-*.pt",)
    assert (link.order.profile.nodes, link.order.profile.ranks_per_node) == (2, 2)


def test_staging_keeps_the_names_of_set_and_run() -> None:
    (link,) = train_links(Submission("mini", "slurm", stage_to="$TMPDIR"), ["-f", "cells"])
    task = link.order.tasks[0]
    assert task.stage == str(Path("data/cells").absolute())
    assert task.arguments[-4:] == ("--data", task.stage, "--name", "runs/cells")


def test_folds_are_tasks_of_one_array_with_the_profiles_ranks_and_one_wandb_group() -> None:
    config = SubmitFoldsConfig(data="cells", folds=3, train={"preset": "fast", "seed": 7})
    links = fold_links(MINI, config, Path("runs/cells-cv/pipeline"))
    assert [link.order.name for link in links] == ["train", "infer-out-of-fold", "finish-folds"]
    trainings, (inference,), (finish,) = commands(links)
    file = trainings[0][2]
    for number, training in enumerate(trainings, start=1):
        own = ("--name", f"runs/cells-cv/fold-{number}", "--fold", f"{number}/3", "--preset", "fast")
        assert training == ("train", "--config", file, "-f", "cells", *own)
    told = json.loads(Path(file).read_text())
    assert (told["seed"], told["tracking"]["group"]) == (7, "cells-cv")
    assert [task.progress for task in links[0].order.tasks] == [
        (f"runs/cells-cv/fold-{number}/checkpoints/step-*.pt",) for number in (1, 2, 3)
    ]
    assert (links[0].order.profile.nodes, links[0].order.profile.ranks_per_node) == (2, 2)
    assert inference[3:] == (
        *("-m", "runs/cells-cv", "-f", "cells", "--out-of-fold", "--no-calibrated"),
        *("--out", "runs/cells-cv/out-of-fold"),
    )
    assert finish == (
        *("cross-validate", "-f", "cells", "--name", "cells-cv", "--folds", "3", "--finish"),
        *("--train", '{"seed": 7}'),
    )
    assert links[2].order.profile.ranks_per_node == links[2].order.profile.nodes == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "not a name"),
        ({"data": "https://there/set"}, "behind a URL"),
        ({"minutes": 5, "train": {"steps": 9}}, "give the length of the training once"),
        ({"train": {"fold": "1/2"}}, "train: fold can't be set here"),
        ({"infer": {"calibrated": True, "out": "x"}}, "infer: calibrated, out can't be set here"),
        ({"infer": {"output": {"probabilities": "none"}}}, "the scores need output.probabilities"),
        ({"infer": {"output": {"probability_format": "tiff"}}}, "the scores need output.probabilities"),
    ],
)
def test_impossible_cross_validations_are_refused_before_submission(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SubmitFoldsConfig(**settings).validate()


def test_a_jobs_own_tracking_settings_override_the_shared_ones() -> None:
    own = {"tracking": {"wandb": "offline"}}
    tables = SubmitFoldsConfig(data="cells", train=own, tracking={"wandb": "off"}).tables()
    assert tables["train"]["tracking"] == {"group": "cells-cv", "wandb": "offline"}
    assert tables["infer"]["tracking"] == {"group": "cells-cv", "wandb": "off"}


def test_off_slurm_the_folds_run_one_after_another() -> None:
    links = fold_links(Submission("local", "local"), SubmitFoldsConfig(data="cells", folds=2), Path("settings"))
    assert [link.order.name for link in links] == ["train-1", "train-2", "infer-out-of-fold", "finish-folds"]


def test_the_pipeline_passes_each_job_its_table_in_the_run_folder() -> None:
    folder = Path("runs/demo/pipeline")
    train = {"preset": "fast", "epochs": 2}
    links = pipeline_links(MINI, "demo", {"seed": 3}, train, {}, infer_tasks=1, settings=folder)
    shards_file, train_file = sorted(folder.iterdir())
    assert [link.order.name for link in links] == ["make-shards", "train", "infer", "report"]
    assert json.loads(train_file.read_text()) == {"format_version": 1, "epochs": 2}
    assert commands(links) == [
        [("make-shards", "--config", str(shards_file), "-f", "demo")],
        [("train", "--config", str(train_file), "--preset", "fast", "-f", "demo", "--name", "demo")],
        [("infer", "-m", "runs/demo", "-f", "demo")],
        [("report", "runs/demo")],
    ]
    assert {link.order.folder for link in links} == {Path("runs/demo/slurm").absolute()}


def test_different_settings_make_a_new_job_and_do_not_change_queued_ones() -> None:
    folder = Path("runs/demo/pipeline")
    for epochs in (2, 3):
        pipeline_links(MINI, "demo", {}, {"epochs": epochs}, {}, infer_tasks=1, settings=folder)
    assert sorted(json.loads(file.read_text())["epochs"] for file in folder.iterdir()) == [2, 3]
    config = Path("mine.toml")
    seen = set()
    for text in ("epochs = 2", "epochs = 3", "epochs = 2"):
        config.write_text(text)
        (link,) = train_links(MINI, ["-f", "cells", "--config", str(config)])
        seen.add(link.order.settings)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--", "-f", "cells"], "--profile: name your cluster's profile"),
        (["train", "--profile", "mini", "--", "-f", "cells", "--dry-run"], "put it before --"),
        (["train", "--profile", "nowhere", "--", "-f", "cells"], "--profile nowhere"),
        (["train", "--profile", "mini", "--", "-f", "cells", "-e", "0"], "--epochs"),
        (["make-shards", "--profile", "mini", "--", "-f", "cells", "--task", "0/2"], "--task and --finish are set by"),
        (["make-shards", "--profile", "mini", "--tasks", "0", "--", "-f", "cells"], "--tasks 0: must be at least 1"),
        (["infer", "--profile", "mini", "--", "-m", "x", "-f", "x", "--task", "0/2"], "--task is set by --tasks"),
        (["pipeline", "--profile", "mini", "--", "-e", "3"], "those of all jobs from --config, but none after --"),
        (["pipeline", "--profile", "mini", "--name", "a/b"], "--name a/b"),
        (["paint", "--profile", "mini"], "choose from make-shards, train, infer, cross-validate, pipeline"),
        (
            ["train", "--profile", "mini", "--stage-to", "x", "--", "-f", "a", "b", "--epoch-steps", "5"],
            "--stage-to copies one shard set",
        ),
    ],
)
def test_impossible_submissions_are_refused_before_queueing(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        submit.main([*arguments[:1], "--dry-run", *arguments[1:]])
    assert words in str(caught.value)


def test_the_dry_run_prints_a_script_for_each_link_and_submits_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["make-shards", "--profile", "gpu-nodes", "--tasks", "3", "--dry-run", "--", "-f", "cells"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash") == 2
    assert "##### finish-shards, after make-shards" in printed
    assert "#SBATCH --array=0-2%3" in printed
    assert "#SBATCH --partition=cpu" in printed
    assert submit.main(["pipeline", "--profile", "mini", "--dry-run", "--train", '{"epochs": 2}']) == 0
    assert not Path("runs").exists()


def test_an_empty_queue_is_reported_and_an_unknown_run_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_queue.main([]) == 0
    assert "nothing was submitted from this folder" in capsys.readouterr().out
    with pytest.raises(UserError, match="cells: nothing was submitted for a run with that name"):
        show_queue.main(["cells"])


def test_missing_inputs_cause_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    (Path("data") / "here").mkdir(parents=True)
    Path("data/here/manifest.json").touch()
    submit.main(["train", "--profile", "mini", "--dry-run", "--", "-f", "here", "there", "--epoch-steps", "5"])
    submit.main(["infer", "--profile", "mini", "--dry-run", "--", "-m", "nowhere", "-f", "s3://bucket/set"])
    submit.main(
        [
            "make-shards",
            "--profile",
            "mini",
            "--dry-run",
            "--",
            "--images.folder",
            "x",
            "--masks.folder",
            "data",
            "--masks.classes",
            "a",
            "b",
        ]
    )
    warned = capsys.readouterr().err
    assert "--images.folder x does not exist" in warned
    assert "--data data/there does not exist" in warned
    assert "--model runs/nowhere does not exist" in warned
    assert warned.count("does not exist") == 3


def test_a_percent_sign_which_slurm_would_expand_is_refused() -> None:
    with pytest.raises(UserError, match="runs/50%j: submitted jobs can't have a %"):
        submit.main(["train", "--dry-run", "--profile", "mini", "--", "-f", "cells", "--name", "50%j"])


def test_submitting_a_pipeline_twice_at_once_queues_it_once(tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    # A slow sbatch; squeue lists the jobs it accepted, and sacct none.
    (fake / "sbatch").write_text(
        f"#!/bin/sh\nsleep 0.3\nid=$(mktemp -u XXXXXX | cksum | cut -c1-6)\necho $id >>{tmp_path}/queue\n"
        "echo Submitted batch job $id\n"
    )
    (fake / "squeue").write_text(
        f'#!/bin/sh\ntouch {tmp_path}/queue\nwhile read id; do echo "$id|PENDING|None|0:00|"; done <{tmp_path}/queue\n'
    )
    for name in ("srun", "sacct"):
        (fake / name).write_text("#!/bin/sh\n")
    for program in fake.iterdir():
        program.chmod(0o755)
    command = [sys.executable, "-m", "jobs.cli", "submit", "pipeline", "--profile", "mini", "--name", "demo"]
    variables = environment(PATH=f"{fake}:{os.environ['PATH']}")
    both = [subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted((process.communicate(timeout=100)[0] for process in both), key=lambda text: "queued already" in text)
    assert [process.returncode for process in both] == [0, 0], said
    assert (said[0].count("submitted as job"), said[0].count("queued already")) == (4, 0)
    assert (said[1].count("submitted as job"), said[1].count("queued already")) == (0, 4)
    assert len((tmp_path / "queue").read_text().split()) == 4


def test_submitit_writes_the_script_shown_by_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch_script` calls private functions of submitit, whose public ones need Slurm to write the script."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 4711\n")
    (fake / "srun").write_text("#!/bin/sh\n")
    for program in fake.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    for tasks in (1, 3):
        links = shard_links(Submission("gpu-nodes", "slurm", tasks=tasks), ["-f", "cells"])
        submit_order(links[0].order, "slurm")
        written = job_folder(links[0].order.folder, "4711") / "4711_submission.sh"
        assert written.read_text() == sbatch_script(links[0].order)
        written.unlink()
