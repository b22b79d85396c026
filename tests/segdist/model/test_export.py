"""`segdist export`: onnxruntime and torch agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import export
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.model import export as exporter
from segdist.model.model_file import load_model
from tests.support.inference_parts import write_model

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("raw", [False, True])
def test_the_exported_file_agrees_with_the_network(tmp_path: Path, raw: bool) -> None:
    model = write_model(tmp_path / "run")
    out = tmp_path / "net.onnx"
    assert run_job(export.main, ["-m", str(model), "-o", str(out), *(["--raw"] if raw else [])]) == FINISHED
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    model, card = load_model(model)
    assert json.loads(session.get_modelmeta().custom_metadata_map["segdist"])["patch"] == card.patch
    tiles = np.random.default_rng(1).integers(0, 256, (5, 1, 24, 40)).astype(np.float32)
    with torch.inference_mode():
        expected = (exporter.Raw(model, card) if raw else model)(torch.from_numpy(tiles)).numpy()
    assert np.allclose(session.run(None, {"images": tiles})[0], expected, atol=1e-3 * np.abs(expected).max())


def test_an_export_that_disagrees_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "run")
    monkeypatch.setattr(exporter, "TOLERANCE", -1.0)
    assert run_job(export.main, ["-m", str(model)]) == USAGE
    assert "differs" in capsys.readouterr().err
    assert not (model / "best.onnx").exists()
