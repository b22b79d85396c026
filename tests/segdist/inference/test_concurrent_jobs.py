"""Two inference jobs that meet in one output folder."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from jobs import infer
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.inference import job
from tests.support.inference_parts import checksums, write_images, write_model


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_that_another_job_made_meanwhile_are_discarded_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    model, images = write_model(tmp_path / "run"), write_images(tmp_path / "images", {"odd": (61, 83)})
    out, enter = tmp_path / "out", job._owned
    words = ["-m", str(model), "-i", str(images), "-o", str(out), "--quiet", "--output.figures", "0"]
    found: list[dict[str, str]] = []

    def another_job_first(*arguments: Any) -> AbstractContextManager[None]:
        if not found:
            found.append({})  # the other job comes here too
            assert run_job(infer.main, words) == FINISHED
            found[0] = checksums(out)
        return enter(*arguments)

    monkeypatch.setattr(job, "_owned", another_job_first)
    more = ["--output.confidence", *(["--overwrite"] if overwrite else [])]
    assert run_job(infer.main, [*words, *more]) == (FINISHED if overwrite else USAGE)
    assert (out / "confidence").exists() == overwrite
    assert (checksums(out) == found[0]) != overwrite
