"""Tracker rules that need no W&B process: modes, probing the server, fan-out, TensorBoard."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdist.core.errors import UserError
from segdist.tracking import Trackers, TrackingConfig, open_trackers
from segdist.tracking.confusion_picture import confusion_picture
from segdist.tracking.wandb_mode import choose_mode, has_key, probe
from segdist.tracking.wandb_pieces import StateFile
from shards.manifest import ClassInfo
from tests.support.programs import environment
from tests.support.wandb_server import wandb_server

NOWHERE = "http://127.0.0.1:9"
CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("line", (230, 159, 0)))


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never replies."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Recorder:
    """A tracker that records the names of its calls, or fails in all of them."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._failure = failure

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self.calls.append(name)
            if self._failure:
                raise self._failure

        if name.startswith("log") or name in ("catch_up", "flush", "finish"):
            return call
        raise AttributeError(name)


def call_everything(trackers: Trackers) -> None:
    """Call each method once."""
    mask = np.zeros((4, 6), np.uint8)
    trackers.log({"train/loss": 1.0}, 1)
    trackers.log_prediction("patch 0", mask, mask, mask, 1)
    trackers.log_figure("contact sheet", np.zeros((4, 6, 3), np.uint8), 1)
    trackers.log_confusion(np.eye(2, dtype=np.int64), ["a", "b"], 1)
    trackers.log_table("worst", ["image"], [["a.png"]], 1)
    trackers.log_artifact(Path("best.safetensors"), "best")
    trackers.state()
    trackers.finish("finished")


def test_no_key_means_offline_at_once(tmp_path: Path) -> None:
    assert choose_mode(TrackingConfig(), NOWHERE, {"HOME": str(tmp_path)}) == ("offline", "no W&B key")


def test_online_without_a_key_is_an_error_that_lists_the_fixes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"WANDB_API_KEY.*wandb login.*--wandb offline"):
        choose_mode(TrackingConfig(wandb="online"), NOWHERE, {"HOME": str(tmp_path)})


@pytest.mark.parametrize(("value", "mode"), [("offline", "offline"), ("disabled", "off")])
def test_wandb_mode_in_the_environment_applies_to_auto(tmp_path: Path, value: str, mode: str) -> None:
    environ = {"HOME": str(tmp_path), "WANDB_MODE": value, "WANDB_API_KEY": "x" * 40}
    assert choose_mode(TrackingConfig(), NOWHERE, environ)[0] == mode


def test_online_on_the_command_line_beats_the_environment(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40}
    with wandb_server() as server:
        assert choose_mode(TrackingConfig(wandb="online"), server.url, environ) == ("online", "")


def test_a_key_in_netrc_applies_only_to_its_server(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    environ = {"HOME": str(tmp_path)}
    assert has_key("https://api.wandb.ai", environ)
    assert not has_key("https://wandb.example.org", environ)


def test_any_http_answer_counts_as_a_live_server(tmp_path: Path) -> None:
    with wandb_server() as server:
        assert probe(server.url, 5) == ""
        server.refuse_key = True
        assert probe(server.url, 5) == ""


def test_the_probe_distinguishes_refusal_from_silence() -> None:
    assert "Connection refused" in probe(NOWHERE, 5)
    with silent_server() as url:
        # Either the socket's timeout or ours, whichever comes first.
        assert probe(url, 0.2) in (f"{url} didn't answer within 0.2 s", f"{url} can't be reached (timed out)")


def test_ranks_other_than_0_track_nothing_and_write_no_file(tmp_path: Path) -> None:
    trackers = open_trackers(TrackingConfig(wandb="online"), tmp_path, {}, is_main=False)
    call_everything(trackers)
    assert trackers.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_a_failing_tracker_affects_neither_the_run_nor_other_trackers(capsys: pytest.CaptureFixture[str]) -> None:
    broken, sound = Recorder(RuntimeError("disk full\nat line 3")), Recorder()
    trackers = Trackers({"broken": broken, "sound": sound}, artifacts=True)  # type: ignore[dict-item]
    for step in range(3):
        trackers.log({"train/loss": 1.0}, step)
    call_everything(trackers)
    assert capsys.readouterr().err.count("broken: log failed (RuntimeError: disk full); the run continues") == 1
    assert sound.calls[-1] == "finish"


def test_images_none_blocks_every_picture_of_the_data() -> None:
    recorder = Recorder()
    call_everything(Trackers({"recorder": recorder}, images=False))  # type: ignore[dict-item]
    assert recorder.calls == ["log", "log_confusion", "log_table", "flush", "finish"]


def test_inference_joins_its_trainings_group_and_reveals_no_more() -> None:
    from segdist.core.parsing import to_dict
    from segdist.tracking.job_log import tracking_of_inference

    trained = to_dict(TrackingConfig(wandb="offline", project="cells", group="first", tags=("a",), images="none"))
    assert tracking_of_inference(TrackingConfig(), trained) == TrackingConfig(
        wandb="offline", project="cells", group="first", tags=("a",), images="none"
    )
    told = TrackingConfig(wandb="online", project="other", tags=("b",))
    assert tracking_of_inference(told, trained) == TrackingConfig(
        wandb="online", project="other", group="first", tags=("b",), images="none"
    )
    assert tracking_of_inference(told, {}) == told
    assert tracking_of_inference(TrackingConfig(), to_dict(TrackingConfig(wandb="online"))).wandb == "auto"


def test_tracker_names_are_separated_by_commas() -> None:
    assert TrackingConfig(trackers="wandb, tensorboard").names == ("wandb", "tensorboard")
    assert TrackingConfig(trackers="none").names == ()
    with pytest.raises(UserError, match=r"no tracker 'mlflow'; choose from wandb, tensorboard, none"):
        TrackingConfig(trackers="wandb,mlflow").validate()


def test_an_infinite_timeout_is_refused() -> None:
    with pytest.raises(UserError, match=r"--tracking\.finish-timeout 0"):
        TrackingConfig(finish_timeout=0).validate()


@pytest.mark.parametrize("classes", [1, 2, 12, 40])
def test_a_confusion_picture_works_for_any_number_of_classes(classes: int) -> None:
    picture = confusion_picture(np.eye(classes, dtype=np.int64), [f"class {k}" for k in range(classes)])
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_tensorboard_has_scalars_and_pictures_without_duplicates_after_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TENSORBOARD MISSING: pip install tensorboard"
    )
    config = TrackingConfig(trackers="tensorboard")
    mask = np.ones((8, 12), np.uint8)
    first = open_trackers(config, tmp_path, {}, classes=CLASSES)
    for step in range(1, 21):
        first.log({"train/loss": 1 / step}, step)
    first.finish("stopped")
    second = open_trackers(config, tmp_path, {}, classes=CLASSES)
    for step in range(11, 31):
        second.log({"train/loss": 1 / step}, step)
    second.log_prediction("patch 0", mask * 40, mask, mask * 0, 30)
    second.log_confusion(np.eye(2, dtype=np.int64), ["background", "line"], 30)
    second.log_table("worst", ["image", "IoU"], [["a|b.png", 0.5]], 30)
    second.finish("finished")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 31))
    assert {"predictions/patch 0", "confusion_matrix"} == set(events.Tags()["images"])
    assert events.Images("predictions/patch 0")[0].width == 3 * 12


class Hanging:
    """A tracker whose first call never returns."""

    def __init__(self) -> None:
        self.calls, self.abandoned = 0, False
        self.forever = threading.Event()

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        self.forever.wait()

    flush = finish = log

    def abandon(self) -> None:
        self.abandoned = True
        self.forever.set()


def test_a_hanging_tracker_is_abandoned_and_delays_no_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hanging = Hanging()
    trackers = Trackers({"wandb": hanging}, patience=0.2)  # type: ignore[dict-item]
    for step in range(100):
        trackers.log({"train/loss": 1.0}, step)
    assert trackers.state()["run_id"] is None
    assert not hanging.abandoned  # nothing has waited so far
    trackers.finish("finished")
    assert hanging.abandoned
    assert hanging.calls == 1
    assert "wandb: no answer for 0.2 s, abandoned" in capsys.readouterr().err


FROZEN = """
import os, signal, sys, time
from pathlib import Path
from segdist.tracking.config import TrackingConfig
from segdist.tracking.trackers import open_trackers
trackers = open_trackers(TrackingConfig(finish_timeout=2), Path("run"), {})
trackers._patience = 2
trackers.log({"train/loss": 1.0}, 1)
trackers.state()
time.sleep(3)  # W&B writes its file once a second
import wandb
os.kill(wandb.setup()._connection._proc._process.pid, signal.SIGSTOP)
for step in range(2, 2000):  # more than any socket takes
    trackers.log({f"train/{number}": float(step) for number in range(200)}, step)
trackers.state()
print("checkpoint", flush=True)
trackers.finish("stopped")
print("end", flush=True)
"""


@pytest.mark.slow
def test_a_frozen_wandb_service_delays_neither_the_run_nor_its_end(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FROZEN],
        cwd=tmp_path,
        env=environment(WANDB_MODE="offline"),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == ["checkpoint", "end"]
    assert "abandoned" in done.stderr
    assert "Traceback" not in done.stderr
    # The next start finds what the frozen process had written.
    assert StateFile(tmp_path / "run" / "wandb" / "state.json").read(None, takes_sweeps_id=False).last_step == 1
