"""Parts of an evaluation by hand, without an environment: what is kept of a step and of the last state, keys."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import SceneConfig, SheetGeometry, TaskConfig
from train.evaluate import Evaluator, _keep, episode_keys, final_state

GOAL = np.array([0.275, 0.175, np.pi / 2])


def test_what_is_kept_of_a_control_step():
    """The task's own terms until the first success, that step included; the residual's size; faults."""
    residual = np.array([[0.3, -0.3, 0.3, -0.3, 0.3, -0.3], [1, 0, 0, 0, 0, 0], [0] * 6])
    last = SimpleNamespace(
        succeeded=jnp.array([[False, True, True], [True, False, False], [True, False, False]]),
        bad_target=jnp.array([True, False, False]),
        nonfinite=jnp.array([True, True, False]),
        physics=SimpleNamespace(overflow=jnp.array([0, 2, -1]), qpos=jnp.arange(27.0).reshape(3, 9)),
    )
    terms = {
        "progress": jnp.array([0.5, 0.5, 0.5]),
        "time": jnp.full(3, -0.1),
        "residual_size": jnp.full(3, -7.0),
        "residual_change": jnp.full(3, -9.0),
    }
    result = SimpleNamespace(last=last, terms=terms, success=jnp.array([False, True, False]))
    kept = _keep(SimpleNamespace(residual=jnp.asarray(residual)), None, result)
    np.testing.assert_allclose(kept["reward"], [0.4, 0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(kept["residual"], [0.3, 1 / 6, 0], atol=1e-6)
    np.testing.assert_allclose(kept["square"], [0.09, 1 / 6, 0], atol=1e-6)
    assert kept["bad_target"].tolist() == [True, False, False]
    assert kept["nonfinite"].tolist() == [True, True, False]
    assert kept["overflow"].tolist() == [False, True, True]
    np.testing.assert_array_equal(kept["qpos"], last.physics.qpos)


def test_what_an_episode_makes_of_its_steps():
    steps = {
        "reward": np.array([[1.0, 0.5], [2.0, 0.25], [3.0, 0.0]]),
        "residual": np.array([[0.2, 0.0], [0.4, 0.3], [0.6, 0.0]]),
        "square": np.array([[0.25, 0.0], [0.25, 0.03], [0.25, 0.0]]),
        "bad_target": np.zeros((3, 2), bool),
        "nonfinite": np.array([[False, False], [True, False], [False, False]]),
        "overflow": np.array([[False, True], [False, True], [False, False]]),
    }
    stub = SimpleNamespace(_roller=SimpleNamespace(mix=SimpleNamespace(authority=0.05)))
    measured = Evaluator._measured(stub, steps)
    np.testing.assert_allclose(measured["total_reward"], [6.0, 0.75])
    np.testing.assert_allclose(measured["residual"], [0.02, 0.005])
    np.testing.assert_allclose(measured["residual_rms"], [0.5, 0.1])
    faults = {name: measured[name].tolist() for name in ("bad_target", "nonfinite", "overflow")}
    assert faults == {"bad_target": [False, False], "nonfinite": [True, False], "overflow": [False, True]}


def test_final_state_by_hand():
    """Poses: on the goal, 8 mm and 0.1 rad off, on the goal but invalid, on the goal but never held."""
    poses = np.tile(GOAL, (4, 1)) + np.array([[0, 0, 0], [0.008, 0, 0.1], [0, 0, 0], [0, 0, 0]])
    succeeded = jnp.array([[True] * 4, [True] * 4, [True] * 4, [False, False, True, True]])
    state = SimpleNamespace(
        physics=SimpleNamespace(qpos=jnp.asarray(np.hstack([np.ones((4, 6)), poses]), jnp.float32)),
        succeeded=succeeded,
        success_step=jnp.array([[9, 30, 20, 10], [9, 31, 21, 11], [9, 32, 22, 12], [-1, -1, 23, 13]]),
        invalid=jnp.array([False, False, True, False]),
    )
    task = SimpleNamespace(geometry=SheetGeometry.from_scene(SceneConfig()), config=TaskConfig())
    final = final_state(SimpleNamespace(task=task), state)
    yes, no = [True] * 3, [False] * 3
    assert np.asarray(final["succeeded"]).tolist() == [yes, yes, no, [False, True, True]]
    assert np.asarray(final["at_end"]).tolist() == [yes, [False, False, True], no, [False, True, True]]
    assert np.asarray(final["success_step"]).tolist() == [[30, 20, 10], [31, 21, 11], [-1] * 3, [-1, 23, 13]]
    np.testing.assert_allclose(final["final_distance"], [0, 0.008, 0, 0], atol=1e-6)
    np.testing.assert_allclose(final["final_yaw"], [0, 0.1, 0, 0], atol=1e-5)
    assert final["invalid"].tolist() == [False, False, True, False]


@pytest.mark.parametrize(("seed", "first"), [(3, 0), (3, 4), (4, 0)])
def test_key_of_an_episode_is_its_number_folded_into_the_seed(seed, first):
    batch, keys = episode_keys(seed, first, 4)
    expected = [jax.random.fold_in(jax.random.PRNGKey(seed), first + i) for i in range(4)]
    np.testing.assert_array_equal(keys, expected)
    others = [
        np.asarray(episode_keys(s, f, 1)[0]).tolist() for s, f in ((3, 0), (3, 4), (4, 0)) if (s, f) != (seed, first)
    ]
    assert np.asarray(batch).tolist() not in others
