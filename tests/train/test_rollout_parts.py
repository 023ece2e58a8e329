"""Parts of the rollout that need no environment: modes as numbers, costs that are off by default, the bar."""

import inspect

import pytest

from train import rollout
from train.evaluate import Evaluator
from train.rollout import BASE, MEAN, NOISE, SAMPLE, Mix, ResidualCosts, Roller


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (MEAN, (1.0, 0.0, 0.0, 0.05)),
        (SAMPLE, (1.0, 1.0, 0.0, 0.05)),
        (NOISE, (0.0, 0.0, 0.3, 0.05)),
        (BASE, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_a_mode_is_what_it_takes_of_mean_deviation_and_noise(mode, expected):
    assert Mix.of(mode, 0.05, noise=0.3)[:4] == expected


@pytest.mark.parametrize("build", [Mix.of, Roller, Roller.variant, Evaluator, Evaluator.variant])
def test_noise_is_off_unless_asked_for(build):
    assert inspect.signature(build).parameters["noise"].default == 0.0
    assert Mix.of(NOISE, 0.05).noise == 0


def test_residual_costs_nothing_by_default():
    assert ResidualCosts() == (0.0, 0.0)


@pytest.mark.parametrize(("steps", "silent"), [(1, True), (99, True), (100, False), (400, False)])
def test_only_a_long_rollout_may_show_a_bar_and_it_vanishes(monkeypatch, steps, silent):
    monkeypatch.setattr(rollout, "tqdm", lambda items, *_, **options: (items, options))
    items, options = rollout._counted(steps)
    assert list(items) == list(range(steps))
    assert options["disable"] is (True if silent else None)  # None: only where there is a terminal
    assert options["leave"] is False
