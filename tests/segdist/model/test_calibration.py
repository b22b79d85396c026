"""Fitting a temperature to class probabilities, and measuring the gap between confidence and accuracy."""

from collections.abc import Iterator

import numpy as np
import pytest

from segdist.model.calibration import HOTTEST, Block, Blocks, Reliability, fit_temperature, tempered


def drawn(temperature: float, pixels: int = 20_000, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of a model overconfident by `temperature`, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(4)
    true_logits = rng.normal(0, 2, (classes, pixels))
    chance = tempered(true_logits, 1)
    labels = (rng.random(pixels) > chance.cumsum(axis=0)).sum(axis=0)
    return np.log(tempered(true_logits * temperature, 1)), labels


def cut(logs: np.ndarray, labels: np.ndarray, size: int) -> Blocks:
    def blocks() -> Iterator[Block]:
        for start in range(0, len(labels), size):
            yield logs[:, start : start + size], labels[start : start + size]

    return blocks


def reliability(logs: np.ndarray, labels: np.ndarray, temperature: float) -> Reliability:
    found = Reliability()
    found.add(tempered(logs, temperature), labels)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_true_temperature_is_recovered(temperature: float) -> None:
    logs, labels = drawn(temperature)
    assert fit_temperature(cut(logs, labels, 1000)) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_better_brier_score() -> None:
    logs, labels = drawn(2.5)
    labels[:400] = (labels[:400] + 1) % 3  # likelihood and Brier score disagree where the model is very wrong
    best = fit_temperature(cut(logs, labels, 5000))
    factors = (0.5, 0.9, 0.99, 1, 1.01, 1.1, 2)
    scores = [reliability(logs, labels, best * factor).brier for factor in factors]
    assert min(scores) == scores[3]
    assert scores == sorted(scores[:4], reverse=True) + sorted(scores[4:])


def test_cutting_pixels_into_blocks_changes_only_rounding() -> None:
    logs, labels = drawn(2.0, 5000)
    assert fit_temperature(cut(logs, labels, 7)) == pytest.approx(fit_temperature(cut(logs, labels, 5000)), rel=1e-9)


def test_an_uninformative_model_gets_the_hottest_temperature_and_no_pixels_give_1() -> None:
    logs = np.log(np.array([[0.9] * 10, [0.1] * 10]))
    assert fit_temperature(cut(logs, np.array([0, 1] * 5), 10)) == pytest.approx(HOTTEST, rel=0.01)
    assert fit_temperature(list) == 1


def test_calibration_halves_the_error_and_never_worsens_the_brier_score() -> None:
    logs, labels = drawn(3.0)
    before = reliability(logs, labels, 1)
    after = reliability(logs, labels, fit_temperature(cut(logs, labels, 1000)))
    assert before.calibration_error > 0.05
    assert after.calibration_error < before.calibration_error / 2
    assert after.brier < before.brier


def test_the_figures_match_their_definitions() -> None:
    probabilities = np.array([[0.8, 0.7, 0.4], [0.2, 0.3, 0.6]])
    found = Reliability()
    found.add(probabilities, np.array([0, 1, 1]))
    assert found.calibration_error == pytest.approx((0.2 + 0.7 + 0.4) / 3)
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.7**2 + 2 * 0.4**2) / 3)
    assert found.nll == pytest.approx(-np.log([0.8, 0.3, 0.6]).mean())
