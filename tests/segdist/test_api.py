"""The public Python API: jobs as functions, called from users' programs."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import segdist
from segdist.core.terminal import as_library, warn
from segdist.model.config import ModelConfig
from tests.support.programs import environment, run, script
from tests.support.sets import add, labels, noise

DRAWN = {"train": 8, "test": 2, "width": 70, "height": 90}
PATCHES = {"size": 32, "per_image": 6}
TRAINING = {"preset": "paper", "steps": 2, "batch_size": 4, "device": "cpu", "tracking": {"wandb": "off"}}
TINY = {"width": 4, "depth": 2, "norm": "group"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> segdist.ShardSet:
    """A set in data/tiny of a fresh current folder."""
    monkeypatch.chdir(tmp_path)
    return segdist.make_shards(name="tiny", synthetic=DRAWN, patches=PATCHES, processes=1)


def trained(shards: segdist.ShardSet, **settings: object) -> "segdist.api.TrainedRun":
    return segdist.train(**{**TRAINING, "data": shards, "model": TINY, **settings})


def test_public_names_are_exported() -> None:
    names = {"make_shards", "train", "infer", "predict", "Predictor", "ShardSet", "UserError", "__version__"}
    assert set(segdist.__all__) == names
    assert names <= set(dir(segdist))
    assert all(getattr(segdist, name) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        segdist.nonsense  # noqa: B018  # an attribute that doesn't exist is the point


def test_importing_segdist_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, segdist; segdist.UserError; print({'torch', 'numpy', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_whole_pipeline_runs_without_output(
    tiny: segdist.ShardSet, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    run = trained(tiny, name="first")
    result = segdist.infer(model=run, data=tiny, device="cpu", tracking={"wandb": "off"})
    assert capfd.readouterr() == ("", "")
    assert [str(each.message) for each in recwarn if "segdist" in each.filename] == []
    assert tiny.folder == Path("data/tiny")
    assert tiny.manifest.samples("train") > 0
    assert (run.folder, run.state) == (Path("runs/first"), "finished")
    assert run.model.is_file()
    assert run.scores is not None
    assert len(run.scores["iou"]) == len(tiny.manifest.classes)
    assert result.scores is not None
    assert 0 <= result.scores["mean_iou_over_images"] <= 1
    assert (result.images, result.failures) == (2, [])
    assert len(list((result.folder / "masks").iterdir())) == 2


def test_calls_print_like_the_command_if_not_quiet(tiny: segdist.ShardSet, capfd: pytest.CaptureFixture[str]) -> None:
    run = trained(tiny, quiet=False)
    said = capfd.readouterr().out
    assert "runs/tiny: finished after step 2 of 2" in said
    segdist.infer(model=run, data=tiny, quiet=False, tracking={"wandb": "off"})
    assert "2 of 2 images segmented" in capfd.readouterr().out


def test_repeating_a_call_reuses_finished_work(tiny: segdist.ShardSet) -> None:
    first = trained(tiny)
    before = first.model.stat().st_mtime_ns
    again = trained(tiny)
    assert again == first
    assert again.model.stat().st_mtime_ns == before
    settings = {"model": first, "data": tiny, "tracking": {"wandb": "off"}}
    assert segdist.infer(**settings).reused == 0
    assert segdist.infer(**settings).reused == 2
    same = segdist.make_shards(name="tiny", synthetic=DRAWN, patches=PATCHES, processes=1)
    assert same.manifest == tiny.manifest


def test_the_auto_preset_chooses_like_the_command(tiny: segdist.ShardSet) -> None:
    run = trained(tiny, preset="", name="chosen", batch_size=8)
    text = (run.folder / "config.json").read_text()
    assert '"choices"' in text
    assert "segdist.train(preset='auto', steps=2, batch_size=8" in text


def test_settings_may_be_paths_dicts_dataclasses_numpy_numbers_and_scalars(tiny: segdist.ShardSet) -> None:
    model = ModelConfig(width=4, depth=2, norm="group")
    run = trained(tiny, data=tiny.folder, model=model, steps=np.int64(1), name=Path("runs/mixed"))
    assert run.folder == Path("runs/mixed")


def test_user_images_are_cut_and_segmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        add(tmp_path, f"{number}.png", noise(number), labels())
    shards = segdist.make_shards(
        name="own",
        images={"folder": Path("images")},
        masks={"folder": Path("masks"), "classes": ["background=0", "cell=255"]},
        patches={"size": 16, "per_image": 5, "scale": 1},
    )
    assert [info.name for info in shards.manifest.classes] == ["background", "cell"]
    run = trained(shards)
    result = segdist.infer(model="own", images=tmp_path / "images", out="segmented", tracking={"wandb": "off"})
    assert (result.folder, result.images, result.scores) == (Path("segmented"), 6, None)
    image = tmp_path / "images" / "0.png"
    probabilities = segdist.predict(run.folder, image)
    assert probabilities.shape == (2, 40, 30)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: segdist.train(stepz=3), r"segdist\.train\(\): unknown key stepz; did you mean steps\?"),
        (lambda: segdist.train(model={"widht": 3}), r"unknown key model\.widht; did you mean model\.width\?"),
        (lambda: segdist.train(optim={"lr": -1.0}), r"segdist\.train\(\): optim\.lr = -1\.0: must be above 0"),
        (lambda: segdist.train(steps="3"), r"segdist\.train\(\): wrong value\n  steps: .* got '3'"),
        (lambda: segdist.train(data=object()), r"segdist\.train\(\): data is a object; give text"),
        (lambda: segdist.train(epochs=3, minutes=3), "give the length of the training in only one"),
        (lambda: segdist.train(preset="slow"), "choose one of auto, fast, paper"),
        (lambda: segdist.train(data="nowhere", steps=1), "nowhere: no such shard set"),
        (lambda: segdist.make_shards(task="0/2"), "use the command"),
        (lambda: segdist.make_shards(name="a/b"), "not a name"),
        (lambda: segdist.infer(images="."), "name a run folder or a model file"),
        (lambda: segdist.infer(model="nowhere", images="."), "nowhere"),
    ],
)
def test_bad_settings_are_refused_with_a_user_error(
    call: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(segdist.UserError, match=words):
        call()  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_calls_leave_threads_random_numbers_and_algorithms_unchanged(tiny: segdist.ShardSet) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tiny, threads=threads + 1, deterministic=True)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_warnings_inside_a_call_are_python_warnings() -> None:
    with as_library(), pytest.warns(UserWarning, match="half of it is missing"):
        warn("half of it is missing")


def test_a_script_without_a_main_guard_can_cut_patches_in_several_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import segdist
        print("begin")
        shards = segdist.make_shards(name="tiny", synthetic={DRAWN}, patches={PATCHES}, processes=2)
        print(shards.manifest.samples("train"))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begin") == 1


def test_training_runs_in_a_thread_of_a_program(tiny: segdist.ShardSet) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(trained, tiny).result().state == "finished"


@pytest.mark.slow
def test_a_script_under_torchrun_runs_as_one_rank_of_several(tiny: segdist.ShardSet) -> None:
    Path("ranks.py").write_text(
        textwrap.dedent(f"""
        import segdist
        run = segdist.train(data="tiny", model={TINY}, **{TRAINING})
        result = segdist.infer(model=run, data="tiny", device="cpu", tracking={{"wandb": "off"}})
        print(run.state, run.scores["mean_iou"], result.scores["mean_iou_pixels"], result.images)
        """)
    )
    lines = run(script(Path("ranks.py"), [], ranks=2), Path.cwd()).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith("finished ")
    assert lines[0].endswith(" 2")
