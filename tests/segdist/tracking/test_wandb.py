"""W&B offline and against a loopback server: real processes, killed as a cluster would kill them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segdist.tracking.wandb_pieces import STEP, rows_in
from tests.support.programs import ROOT, wait_until
from tests.support.run_example import write_predictions
from tests.support.wandb_server import WandbServer, wandb_server

pytestmark = pytest.mark.slow

KEY = "x" * 40


class Job:
    """`tracking_job.py` in its own process."""

    def __init__(self, folder: Path, server: str | None, **config: Any) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        environ |= {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
        if server:
            environ |= {"WANDB_BASE_URL": server, "WANDB_API_KEY": KEY}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "support" / "tracking_job.py", folder, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.said = self._read_until("open")
        _, self.run_id, last = self.said.pop().split()
        self.last_logged_step = int(last)

    def do(self, command: str) -> None:
        """Send a command and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = {
            "log": "logged",
            "picture": "logged",
            "table": "logged",
            "artifact": "logged",
            "safe": "safe",
            "finish": "finished",
        }
        self._read_until(answer[command.split()[0]])

    def end(self) -> str:
        """Let the process finish; return its standard error."""
        return self.process.communicate(timeout=60)[1]

    def kill(self) -> None:
        """SIGKILL, as if the node lost power."""
        self.process.kill()
        self.process.communicate()

    def _read_until(self, word: str) -> list[str]:
        lines: list[str] = []
        assert self.process.stdout is not None
        while not lines or not lines[-1].startswith(word):
            line = self.process.stdout.readline()
            if not line:
                pytest.fail(f"the job ended: {self.process.communicate()[1]}")
            lines.append(line.rstrip("\n"))
        return lines


def children(process: int) -> list[int]:
    """Ids of a process's children."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


def steps_offline(folder: Path) -> list[int]:
    """The step of every row in the pieces of a run, in the order in which the pieces were written."""
    pieces = sorted((folder / "wandb").glob("offline-run-*"), key=lambda piece: piece.stat().st_mtime)
    return [row.step for piece in pieces for row in rows_in(piece)]


def steps_online(server: WandbServer, run_id: str) -> list[int]:
    """The step of every row on the server, in order."""
    return [row[STEP] for row in server.runs[run_id].history]


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_an_offline_run_has_scalars_config_masks_and_class_names(tmp_path: Path) -> None:
    job = Job(tmp_path, server=None)
    job.do("log 1 6")
    job.do("picture 7")
    job.do("table 8")
    job.do("finish finished")
    assert job.end() == ""
    (piece,) = (tmp_path / "wandb").glob("offline-run-*")
    rows = {row.step: row.values for row in rows_in(piece)}
    assert rows[5] == {"train/loss": 0.2, "val/mean_iou": 0.05}
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
    records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"optim":{"lr":0.01}' in records
    assert "predictions/patch 0.masks.truth.path" in records
    assert "tables/worst images" in records
    assert {"background", "line", "ignored"} <= set(records.replace('"', " ").split())
    assert len(list(piece.glob("files/media/images/mask/**/*.png"))) == 2


def test_an_offline_resume_after_sigkill_has_every_step_once_and_one_run_id(tmp_path: Path) -> None:
    first = Job(tmp_path, server=None)
    first.do("log 1 20")
    first.do("safe")
    first.do("log 21 200")
    first.kill()
    second = Job(tmp_path, server=None)
    assert second.run_id == first.run_id
    assert second.last_logged_step >= 20
    second.do("log 11 230")  # the checkpoint is from step 10
    second.do("finish finished")
    second.end()
    assert steps_offline(tmp_path) == list(range(1, 231))


def test_sigterm_to_the_whole_process_group_loses_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, server=None)
    job.do("log 1 20")
    for process in children(job.process.pid):  # Slurm signals every process of a step
        os.kill(process, signal.SIGTERM)
    job.do("log 21 40")
    job.do("finish stopped")
    assert "Traceback" not in job.end()
    assert steps_offline(tmp_path) == list(range(1, 41))
    again = Job(tmp_path, server=None)
    again.do("log 31 50")
    again.do("finish finished")
    again.end()
    assert steps_offline(tmp_path) == list(range(1, 51))


def test_a_finished_run_whose_wandb_file_is_gone_goes_on_without_gaps_or_duplicates(tmp_path: Path) -> None:
    with wandb_server() as server:
        first = Job(tmp_path, server.url)
        first.do("log 1 20")
        first.do("finish finished")
        first.end()
        for file in (tmp_path / "wandb").glob("run-*/*.wandb"):
            file.unlink()
        second = Job(tmp_path, server.url)
        second.do("log 11 50")
        second.do("finish finished")
        second.end()
        assert steps_online(server, first.run_id) == list(range(1, 51))


def test_the_death_of_wandbs_own_process_online_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with wandb_server() as server:
        job = Job(tmp_path, server.url)
        job.do("log 1 20")
        wait_until(lambda: steps_online(server, job.run_id) == list(range(1, 21)))
        (file,) = (tmp_path / "wandb").glob("run-*/*.wandb")
        for process in children(job.process.pid):
            os.kill(process, signal.SIGKILL)
        with file.open("r+b") as log:  # as if the last flush had come too late
            log.truncate(file.stat().st_size * 3 // 4)
        job.do("log 21 40")
        job.do("finish finished")
        job.end()
        assert steps_online(server, job.run_id) == list(range(1, 41))


def test_logged_rows_reach_the_disk_within_seconds(tmp_path: Path) -> None:
    job = Job(tmp_path, server=None)
    job.do("log 1 50")
    job.do("safe")
    job.kill()
    assert steps_offline(tmp_path) == list(range(1, 51))


def test_an_online_run_sends_rows_pictures_config_and_state(tmp_path: Path) -> None:
    with wandb_server() as server:
        job = Job(tmp_path, server.url, project="cells", tags=["demo"], group="pipeline 1")
        assert any("W&B: online" in line for line in job.said)
        job.do("log 1 20")
        job.do("picture 21")
        job.do("finish finished")
        assert job.end() == ""
        run = server.runs[job.run_id]
        assert steps_online(server, job.run_id) == list(range(1, 22))
        assert run.project == "cells"
        assert run.properties["groupName"] == "pipeline 1"
        assert run.properties["tags"] == ["demo"]
        assert run.config["optim"]["value"] == {"lr": 0.01}
        assert run.summary["state"] == "finished"
        assert run.exit_code == 0
        assert sum("mask" in name for name in run.files) == 2


def test_an_online_resume_after_sigkill_continues_the_run_without_gaps_or_duplicates(tmp_path: Path) -> None:
    with wandb_server() as server:
        first = Job(tmp_path, server.url)
        first.do("log 1 30")
        first.do("safe")
        first.do("log 31 60")
        first.kill()
        second = Job(tmp_path, server.url)
        assert second.run_id == first.run_id
        second.do("log 25 80")
        second.do("finish finished")
        second.end()
        assert list(server.runs) == [first.run_id]
        assert steps_online(server, first.run_id) == list(range(1, 81))


@pytest.mark.parametrize("in_file", [0, 10])
def test_rows_that_reached_the_server_but_not_the_file_are_not_sent_again(tmp_path: Path, in_file: int) -> None:
    with wandb_server() as server:
        first = Job(tmp_path, server.url)
        if in_file:
            first.do(f"log 1 {in_file}")
        first.do("safe")
        (file,) = (tmp_path / "wandb").glob("run-*/*.wandb")
        flushed = file.read_bytes()
        first.do(f"log {in_file + 1} 30")
        wait_until(lambda: steps_online(server, first.run_id) == list(range(1, 31)))
        for process in children(first.process.pid):  # it would complete the file
            os.kill(process, signal.SIGKILL)
        first.kill()
        file.write_bytes(flushed)  # as if the last flush had come too late
        second = Job(tmp_path, server.url)
        second.do("log 1 50")
        second.do("finish finished")
        second.end()
        assert steps_online(server, first.run_id) == list(range(1, 51))


def test_a_stopped_run_is_distinguished_from_a_finished_one(tmp_path: Path) -> None:
    with wandb_server() as server:
        job = Job(tmp_path, server.url)
        job.do("log 1 5")
        job.do("finish stopped")
        job.end()
        assert server.runs[job.run_id].summary["state"] == "stopped"
        assert server.runs[job.run_id].exit_code == 1


def test_a_server_that_refuses_connections_means_offline_with_one_line(tmp_path: Path) -> None:
    job = Job(tmp_path, f"http://127.0.0.1:{free_port()}")
    (line,) = job.said
    assert line.startswith("W&B: offline (")
    assert "Connection refused" in line
    assert "wandb sync" in line
    job.do("log 1 5")
    job.do("finish finished")
    assert job.end() == ""
    assert steps_offline(tmp_path) == [1, 2, 3, 4, 5]


def test_a_server_that_never_answers_means_offline(tmp_path: Path) -> None:
    with wandb_server() as server:
        server.hang = True
        job = Job(tmp_path, server.url, start_timeout=1.0)
        assert "didn't answer within 1 s" in job.said[-1]
        job.do("log 1 5")
        job.do("finish finished")
        assert job.end() == ""


def test_a_key_rejected_by_the_server_means_offline(tmp_path: Path) -> None:
    with wandb_server() as server:
        server.refuse_key = True
        job = Job(tmp_path, server.url)
        assert job.said[-1].startswith("W&B: offline (")
        job.do("finish finished")
        job.end()


@pytest.mark.timeout(120)
def test_a_server_that_dies_delays_nothing_and_gets_its_rows_at_the_next_start(tmp_path: Path) -> None:
    with wandb_server() as server:
        first = Job(tmp_path, server.url, finish_timeout=2.0)
        first.do("log 1 10")
        first.do("safe")
        server.hang = True
        first.do("log 11 400")
        first.do("picture 401")
        first.do("finish stopped")
        first.end()  # within a minute
        server.hang = False
        second = Job(tmp_path, server.url)
        second.do("log 402 420")
        second.do("finish finished")
        second.end()
        assert steps_online(server, first.run_id) == [*range(1, 401), *range(402, 421)]


@pytest.mark.timeout(120)
def test_a_table_for_a_hanging_server_costs_only_a_warning(tmp_path: Path) -> None:
    with wandb_server() as server:
        job = Job(tmp_path, server.url, finish_timeout=2.0)
        server.hang = True
        job.do("table 1")
        job.do("finish finished")
        assert "no answer within 2 s" in job.end()


def test_offline_pieces_are_merged_by_wandb_sync_with_every_step_once(tmp_path: Path) -> None:
    first = Job(tmp_path, server=None)
    first.do("log 1 20")
    first.do("safe")
    first.kill()
    second = Job(tmp_path, server=None)
    second.do("log 11 30")
    second.do("finish finished")
    second.end()
    pieces = sorted(map(str, (tmp_path / "wandb").glob("offline-run-*")))
    assert len(pieces) == 2
    with wandb_server() as server:
        environ = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        for _ in range(2):  # the second time there is nothing left to send
            subprocess.run([sys.executable, "-m", "wandb", "sync", *pieces], cwd=tmp_path, env=environ, check=True)
        assert steps_online(server, first.run_id) == list(range(1, 31))


def test_model_files_are_artifacts_on_request(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"weights")
    job = Job(tmp_path, server=None, artifacts=True)
    job.do("log 1 2")
    job.do(f"artifact {tmp_path / 'best.safetensors'}")
    job.do("finish finished")
    assert job.end() == ""
    (piece,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
    records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "a-name--with--anything-" in records


def test_tables_and_models_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"weights")
    with wandb_server() as server:
        job = Job(tmp_path, server.url, artifacts=True)
        job.do("log 1 2")
        job.do("table 3")
        job.do(f"artifact {tmp_path / 'best.safetensors'}")
        job.do("finish finished")
        assert job.end() == ""
        model, table = sorted(server.artifacts, key=lambda item: item.type)  # sent in parallel
        assert (table.type, model.type) == ("run_table", "model")
        assert table.committed
        assert model.committed
        (content,) = (file for name, file in table.files.items() if name.endswith(".table.json"))
        assert json.loads(content)["data"] == [["a.png", 0.5]]
        assert model.files["best.safetensors"] == b"weights"


LOG_SCORES = """
import json, pathlib, sys
from segdist.tracking import TrackingConfig
from segdist.tracking.job_log import log_scores
folder = pathlib.Path(sys.argv[1])
scores = json.loads((folder / "scores.json").read_text())
log_scores(TrackingConfig(wandb="offline"), folder, {}, scores, group="training run")
"""


def test_scores_of_an_inference_job_are_a_run_in_its_trainings_group(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "cells", ["first", "second"])
    subprocess.run([sys.executable, "-c", LOG_SCORES, folder], check=True)
    (piece,) = (folder / "wandb").glob("offline-run-*")
    scalars = rows_in(piece)[0].values
    assert scalars["test/mean_iou_over_images"] == pytest.approx(0.86)
    assert scalars["test/iou/nucleus"] == pytest.approx(0.86)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
    records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for text in (
        '"run_group":"training run"',
        '"job_type":"infer"',
        "tables/images",
        "figures/second",
        "confusion_matrix",
    ):
        assert text in records


def test_a_checkpoint_in_a_new_folder_keeps_its_run_id(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "tracking_job.py", tmp_path, '{"wandb": "offline"}', "abc12345"],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "open abc12345 -1" in process.stdout
