"""bench.repeat: evaluations of one policy on the same episodes, and what differs between them."""

import json

import jax
import numpy as np
import pytest

from bench import repeat
from bench.repeat import RepeatConfig, differences, shaken
from mjx_so101 import ConfigError
from policies.residual import Residual, ResidualConfig


def episodes(succeeded, distance):
    return type("Some", (), {"succeeded": np.array(succeeded)[:, None], "final_distance": np.array(distance)})()


def test_differences_are_counted_over_all_repeats():
    first = episodes([True, False, True, True], [1.0, 2.0, 3.0, 4.0])
    other = episodes([True, True, True, True], [1.0, 2.5, 3.0, 4.001])
    third = episodes([True, False, False, True], [1.0, 2.0, 3.0, 4.0])
    found = differences([first, other, third])
    assert found["episodes_whose_outcome_differs"] == 2 and found["episodes_that_differ"] == 2
    assert found["success"] == [0.75, 1.0, 0.5] and found["spread_of_success"] == 0.5
    assert found["largest_difference_mm"] == pytest.approx(500)


def test_shaken_residual_acts():
    residual = Residual(ResidualConfig(), 0)
    learner = residual.init(jax.random.PRNGKey(0))
    vectors = {name: np.ones((2, size), np.float32) for name, size in residual.sizes.items()}

    def mean(learner):
        return np.asarray(residual.distribution.mode(residual.logits(learner, vectors)))

    assert (mean(learner) == 0).all()
    assert np.abs(mean(shaken(learner, 0.1))).max() > 0.01
    np.testing.assert_array_equal(mean(shaken(learner, 0.1)), mean(shaken(learner, 0.1)))


def test_repeats_are_evaluated_and_recorded(monkeypatch, tmp_path):
    calls = []

    def evaluator(env, base, residual, blind):
        assert (env.num_envs, env.physics.name, base.name, blind) == (128, "native", "zero", False)

        def evaluate(learner, count, seed):
            calls.append((count, seed))
            done = episodes([len(calls) % 2, False], [0.1, 0.2])
            done.summary = lambda: {"mean_residual_rad": 0.02}
            return done

        return evaluate

    monkeypatch.setattr(repeat, "Evaluator", evaluator)
    config = RepeatConfig(base="zero", randomization="nominal", episodes=2, repeats=3, seed=5, physics="native",
                          out=tmp_path / "a.json")  # fmt: skip
    repeat.main(config)
    assert calls == [(2, 5)] * 3
    record = json.loads(config.out.read_text())
    values = {entry["name"]: entry["value"] for entry in record["headline"]}
    assert values == {"cpu_repeat_success_spread_5mm": 0.5, "cpu_repeat_outcomes_that_differ": 0.5,
                      "cpu_repeat_episodes_that_differ": 0.0}  # fmt: skip
    assert record["conditions"]["mean_residual_rad"] == 0.02 and record["seeds"] == [5]


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"repeats": 1}, "repeats is 1"), ({"episodes": 0}, "episodes is 0"), ({"shake": -1.0}, "shake is -1")],
)
def test_bad_values_are_named(bad, words):
    with pytest.raises(ConfigError, match=words):
        RepeatConfig(**bad)
