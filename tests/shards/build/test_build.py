"""Building gives the same bytes however the work is divided, and an unfinished set never passes for a complete one."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdist.core.errors import UserError
from shards.build import build
from shards.build.build import make_shards
from shards.build.config import PatchesConfig, SplitConfig, SyntheticConfig
from shards.build.work import find_work
from shards.manifest import IGNORE, read_manifest
from shards.read.reader import ShardSet
from shards.read.verify import verify
from tests.support.programs import ROOT
from tests.support.sets import contents, tiny_config

SETTINGS = [
    *("-f", "tiny"),
    *("--synthetic.train", "10", "--synthetic.test", "3", "--synthetic.width", "70", "--synthetic.height", "90"),
    *("--patches.size", "32", "--patches.per-image", "6"),
]


def command(root: Path, *more: str) -> list[str]:
    """The job's command line for the small set in `root`."""
    return [sys.executable, str(ROOT / "jobs" / "make_shards.py"), "--root", str(root), *SETTINGS, *more]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    for processes in (2, 3):
        root = tmp_path / str(processes)
        make_shards(tiny_config(root, processes=processes), quiet=True)
        assert contents(root / "tiny") == contents(small_set)


def test_tasks_of_an_array_give_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for task in ("2/3", "0/3", "1/3"):
        assert make_shards(replace(config, task=task), quiet=True) is None
        with pytest.raises(UserError, match="unfinished shard set"):
            read_manifest(config.folder)
    make_shards(replace(config, finish=True), quiet=True)
    assert contents(config.folder) == contents(small_set)


def test_finishing_names_missing_shards(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    make_shards(replace(config, task="0/2"), quiet=True)
    with pytest.raises(UserError, match=r"parts are missing \(train-00001"):
        make_shards(replace(config, finish=True), quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_build_killed_at_any_moment_finishes_with_the_same_bytes_when_run_again(
    small_set: Path, tmp_path: Path, processes: str
) -> None:
    folder, kills = tmp_path / "tiny", 0
    moments = np.random.default_rng().uniform(0, 0.25, 6)
    print("killed after", moments)
    for moment in moments:
        process = subprocess.Popen(command(tmp_path, "--processes", processes), stderr=subprocess.DEVNULL)
        # Count from when the folder appears; before that, the process is only starting.
        while not folder.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moment)
        process.kill()
        kills += process.wait() != 0
        if not (folder / "manifest.json").exists():
            with pytest.raises(UserError):
                ShardSet(folder)
    subprocess.run(command(tmp_path), check=True, stdout=subprocess.DEVNULL)
    assert kills
    found = {name: content for name, content in contents(folder).items() if not name.endswith(".tmp")}
    assert found == contents(small_set)
    assert verify(folder, quiet=True) == []


def test_complete_shards_are_kept_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    real, built = build.build_shard, []

    def crash_after_three(unit: build.Unit, *rest: object) -> None:
        if len(built) == 3:
            raise KeyboardInterrupt
        built.append(unit.name)
        real(unit, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "build_shard", crash_after_three)
    with pytest.raises(KeyboardInterrupt):
        make_shards(config, quiet=True)
    monkeypatch.setattr(build, "build_shard", lambda unit, *rest: (built.append(unit.name), real(unit, *rest)))
    make_shards(config, quiet=True)
    assert len(built) == len(set(built)) == len(find_work(config).units)


def test_a_shard_truncated_after_it_was_noted_is_rebuilt(small_set: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    make_shards(replace(config, task="0/1"), quiet=True)
    tar = config.folder / "train-00002.tar"
    tar.write_bytes(tar.read_bytes()[:-600])
    make_shards(config, quiet=True)
    assert contents(config.folder) == contents(small_set)


@pytest.mark.slow
def test_concurrent_builders_do_no_harm(small_set: Path, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    words = command(tmp_path, "--processes", "1")
    builders = [subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    said = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], "\n".join(said)
    assert contents(tmp_path / "tiny") == contents(small_set)


def test_a_finished_set_is_left_alone(small_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    manifest = make_shards(tiny_config(small_set.parent))
    assert manifest == read_manifest(small_set)
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before


def test_a_different_recipe_is_refused_with_the_differences(small_set: Path) -> None:
    before = contents(small_set)
    other = tiny_config(small_set.parent, seed=5, patches=PatchesConfig(size=32, per_image=7))
    with pytest.raises(UserError, match="a different recipe") as error:
        make_shards(other, quiet=True)
    assert "patches.per_image: 6 → 7" in str(error.value)
    assert "seed: 0 → 5" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert contents(small_set) == before


def test_a_different_recipe_is_also_refused_in_an_unfinished_set(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    make_shards(replace(config, task="0/2"), quiet=True)
    with pytest.raises(UserError, match="unfinished set with a different recipe"):
        make_shards(replace(config, task="1/2", seed=1), quiet=True)


def test_overwriting_leaves_nothing_of_the_old_set(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set(synthetic=SyntheticConfig(train=30, test=5, width=60, height=80))
    (folder / "notes.txt").write_text("mine")
    config = tiny_config(folder.parent, overwrite=True)
    make_shards(config, quiet=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list((folder / "source" / "test" / "images").iterdir())) == 3
    assert len(list(folder.glob("*.tar"))) == len(read_manifest(folder).shards)


def test_a_folder_that_is_not_a_shard_set_is_never_touched(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, overwrite=True)
    config.folder.mkdir()
    (config.folder / "thesis.tex").write_text("years of work")
    for overwrite in (True, False):
        with pytest.raises(UserError, match="not a shard set"):
            make_shards(replace(config, overwrite=overwrite), quiet=True)
    assert contents(config.folder) == {"thesis.tex": b"years of work"}


def test_the_manifest_has_the_statistics_of_the_train_split(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    manifest = shard_set.manifest
    sizes = shard_set.sizes("train")
    shard = np.repeat(np.arange(len(sizes)), sizes)
    record = np.concatenate([np.arange(size) for size in sizes])
    images, masks = shard_set.read("train", shard, record)
    assert manifest.mean == pytest.approx((images.mean(),), rel=1e-12)
    assert manifest.std == pytest.approx((images.std(),), rel=1e-9)
    assert list(manifest.pixels) == np.bincount(masks.ravel(), minlength=3).tolist()
    assert IGNORE not in masks


def test_splits_are_by_source_image(small_set: Path) -> None:
    manifest = read_manifest(small_set)
    images = {split: {pair.image for pair in pairs} for split, pairs in manifest.sources.items()}
    assert [len(images[split]) for split in ("train", "val", "test")] == [9, 1, 3]
    assert not images["train"] & images["val"]


def test_the_recipe_rebuilds_the_set(small_set: Path) -> None:
    recipe = read_manifest(small_set).recipe
    assert recipe["synthetic"] == {"train": 10, "test": 3, "width": 70, "height": 90}
    assert recipe["patches"]["size"] == 32
    assert recipe["seed"] == 0
    assert "processes" not in recipe


def test_a_full_disk_keeps_finished_work_and_says_so(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    make_shards(replace(config, task="0/3"), quiet=True)
    whole = contents(config.folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shards.build.writer.ShardWriter._write", full)
        with pytest.raises(UserError, match="No space left on device; finished work is kept"):
            make_shards(config, quiet=True)
    assert contents(config.folder).items() >= whole.items()
    make_shards(config, quiet=True)
    assert contents(config.folder) == contents(small_set)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_write_limit_ends_the_command_with_a_message(small_set: Path, tmp_path: Path, processes: str) -> None:
    def limit() -> None:  # no file can grow beyond 30 kB, as with a quota
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    arguments = command(tmp_path, "--processes", processes)
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "can't be written: File too large; finished work is kept" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match="unfinished"):
        ShardSet(tmp_path / "tiny")
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "tiny") == contents(small_set)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"name": "a/b"}, "--name"),
        ({"task": "3/3"}, "--task"),
        ({"task": "0/2", "finish": True}, "--finish"),
        ({"task": "0/2", "overwrite": True}, "--overwrite"),
        ({"patches": PatchesConfig(balance=2)}, "--patches.balance"),
        ({"split": SplitConfig(group="x")}, "--images.folder"),
        ({"synthetic": SyntheticConfig(train=0)}, "--synthetic.train"),
    ],
)
def test_wrong_settings_are_refused_with_the_flag(tmp_path: Path, changes: dict[str, object], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        tiny_config(tmp_path, **changes).validate()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "new", "--dry-run"), check=True, capture_output=True, text=True)
    assert "images: 9 train, 1 val, 3 test" in done.stdout
    assert "at most 60 of 32 x 32" in done.stdout
    assert not (tmp_path / "new").exists()


def test_an_unfinished_set_is_refused_with_how_to_finish_it(tmp_path: Path) -> None:
    make_shards(tiny_config(tmp_path, task="0/2"), quiet=True)
    with pytest.raises(UserError, match="run the same `segdist make-shards` again"):
        ShardSet(tmp_path / "tiny")


def test_a_manifest_of_a_newer_version_is_refused(fresh_set: Callable[..., Path]) -> None:
    path = fresh_set() / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        read_manifest(path.parent)
