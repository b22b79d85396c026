"""`segdist bench`: what it concludes from made-up figures."""

import pytest

from segdist.bench import StepFigures, TilerFigures, bottleneck, rank_counts

ONE = StepFigures(ranks=1, units=2, batch=8, loader=4000.0, step=0.2, summing=0.0)
TILER = TilerFigures(side=500, tiling=0.5, files=0.01)


def on_two(step: float = 0.25, summing: float = 0.01, loader: float = 4000.0) -> StepFigures:
    return StepFigures(ranks=2, units=2, batch=8, loader=loader, step=step, summing=summing)


def test_a_machine_that_computes_most_of_the_time_is_limited_by_the_model() -> None:
    assert bottleneck(on_two(), TILER) == (
        "Training on 2 ranks is limited by the model (the loader can deliver 125 times the samples/s, and a sum of all "
        "gradients takes 4.0% of a step), and inference by the model (reading and writing take 2.0% of the time)."
    )
    assert bottleneck(ONE, TILER).startswith(
        "Training on 1 rank is limited by the model (the loader can deliver 100 times the samples/s), and inference "
    )


def test_a_loader_that_is_hardly_faster_than_the_steps_is_the_limit() -> None:
    assert "limited by the loader (the loader can deliver 1.2 times" in bottleneck(on_two(loader=38.0), TILER)
    assert "limited by the model (the loader can deliver 1.3 times" in bottleneck(on_two(loader=42.0), TILER)


def test_sums_that_take_half_of_a_step_are_the_limit() -> None:
    assert "limited by the sum of gradients over ranks (" in bottleneck(on_two(summing=0.13), TILER)
    assert "limited by the model (" in bottleneck(on_two(summing=0.12), TILER)


def test_a_step_that_waits_for_the_loader_is_not_blamed_on_the_sums() -> None:
    assert "limited by the loader (" in bottleneck(on_two(summing=0.13, loader=33.0), TILER)


def test_files_that_take_longer_than_tiles_are_the_limit_of_inference() -> None:
    assert "inference by reading and writing (" in bottleneck(ONE, TilerFigures(side=500, tiling=0.5, files=0.6))
    assert TILER.megapixels == pytest.approx(0.5)


def test_efficiency_compares_samples_per_thread_or_gpu() -> None:
    assert ONE.efficiency(ONE) == 1
    assert on_two().efficiency(ONE) == pytest.approx(0.8)  # the same two threads, a fifth slower
    two_gpus = StepFigures(ranks=2, units=2, batch=16, loader=1e5, step=0.01, summing=0.001)
    one_gpu = StepFigures(ranks=1, units=1, batch=16, loader=1e5, step=0.016, summing=0.0)
    assert two_gpus.efficiency(one_gpu) == pytest.approx(0.8)


def test_ranks_double_up_to_the_machine_and_each_keeps_two_samples() -> None:
    assert rank_counts(1, 8) == [1]
    assert rank_counts(2, 8) == [1, 2]
    assert rank_counts(6, 16) == [1, 2, 4, 6]
    assert rank_counts(64, 8) == [1, 2, 4]
    assert rank_counts(8, 2) == [1]
