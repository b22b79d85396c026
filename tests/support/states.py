"""Comparing the results of trainings: states bit for bit, metrics without timings."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from segdist.core.paths import LAST_MODEL, TIMES
from segdist.model.model_file import load_model
from segdist.runs.record import read_rows

TIMINGS = {"time", "samples_per_s", "data_wait", "memory_mb", "rank_s_median", "rank_s_max", "slowest_rank"}


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint of a run; 0 if there is none."""
    return max((int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*.pt")), default=0)


def ranks_of_starts(folder: Path) -> list[int]:
    """Number of ranks of each start of a run."""
    return [row["ranks"] for row in read_rows(folder / "events.jsonl") if "ranks" in row]


def flat(value: Any) -> list[Any]:
    """All tensors and numbers in a state, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def same(one: Any, other: Any) -> bool:
    """Whether two states have the same bits."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(flat(one), flat(other), strict=True)
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics rows of a run, without timings."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def final_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run, without timings and file positions."""
    path = max((folder / "checkpoints").glob("step-*.pt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    for name in ("seconds", "metrics_position"):
        state["counters"].pop(name)
    return state


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that metrics, final state and model files of two runs are identical, bit for bit."""
    assert metrics(one) == metrics(other)
    assert same(final_state(one), final_state(other))
    for name in ("best.safetensors", "last.safetensors"):
        models = [load_model(folder / name) for folder in (one, other)]
        assert same(*(model.state_dict() for model, _ in models))
        assert models[0][1].score == models[1][1].score


def digest(folder: Path) -> str:
    """SHA-256 of a run's weights, optimizer state, averages and metrics."""
    state = final_state(folder)
    learner = {key: value for key, value in state["learner"].items() if key != "loss_sums"}  # one row per rank
    whole = hashlib.sha256()
    for leaf in flat([learner, state["counters"]]):
        whole.update(leaf.contiguous().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    whole.update(json.dumps(metrics(folder)).encode())
    return whole.hexdigest()


def fold_results(folder: Path) -> dict[str, str]:
    """Checksums of a cross-validation's models, predictions and scores, independent of its name."""
    kept = [folder / "scores.json", *folder.glob(f"fold-*/{LAST_MODEL}")]
    kept += [
        path
        for path in (folder / "out-of-fold").rglob("*")
        if path.is_file() and path.suffix != ".html" and not {"state", TIMES} & set(path.parts)
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes().replace(f"runs/{folder.name}".encode(), b"")
        ).hexdigest()
        for path in kept
    }
