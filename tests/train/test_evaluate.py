"""Evaluation: episodes that depend on their seed alone, run full length, and are summarized as documented."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, PaperReturnEnv
from train.evaluate import Episodes, Evaluator, final_state
from train.evaluate import episode_keys as evaluate_keys
from train.loop import REPORT_SEED, SELECTION_SEED
from train.rollout import NOISE, SAMPLE
from train.statistics import wilson_interval


@pytest.fixture(scope="module")
def learner(uninterrupted, shaken):
    """A policy that corrects a little."""
    return shaken(uninterrupted.trainer.residual.init(jax.random.PRNGKey(0)), 0.02)


@pytest.fixture(scope="module")
def evaluator(uninterrupted):
    """Six episodes at once under `plain`, with the residual over `jacobian`."""
    return uninterrupted.trainer.evaluator


@pytest.fixture(scope="module")
def episodes(evaluator, learner) -> Episodes:
    return evaluator(learner, 8, 11)


def episode_keys(seed, first, count):
    """Keys of `count` episodes from number `first` on."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.PRNGKey(seed), i))(np.arange(first, first + count))


RESULTS = (
    "succeeded",
    "at_end",
    "invalid",
    "success_step",
    "final_distance",
    "final_yaw",
    "total_reward",
    "residual",
    "residual_rms",
)


def assert_same_episodes(a, b, results=RESULTS):
    for name in results:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_same_seed_gives_the_same_episodes(evaluator, learner, episodes):
    assert_same_episodes(evaluator(learner, 8, 11), episodes)


def test_other_seed_gives_other_episodes(evaluator, learner, episodes):
    assert (evaluator(learner, 4, 12).final_distance != episodes.final_distance[:4]).all()


@pytest.fixture(scope="module")
def easier(uninterrupted):
    """Six episodes at once with an easier training tolerance."""
    trainer = uninterrupted.trainer
    task = dataclasses.replace(trainer.config.task_config(training=False), tolerance=0.02)
    env = PaperReturnEnv(6, "native", "plain", trainer.config.scene_config(), task, auto_reset=False)
    return Evaluator(env, trainer.base, trainer.residual)


@pytest.fixture(scope="module")
def easier_episodes(easier, learner):
    return easier(learner, 8, 11)


def test_training_tolerance_decides_nothing_but_the_return(easier_episodes, episodes):
    same = [name for name in RESULTS if name != "total_reward"]
    assert_same_episodes(easier_episodes, episodes, same)
    assert (easier_episodes.total_reward != episodes.total_reward).any()


def test_an_episode_is_the_same_however_many_are_asked_for(evaluator, learner, episodes):
    """Bit for bit, also in a batch that is filled up, and when the episodes are run in two goes."""
    assert len(episodes) == 8
    assert all(len(getattr(episodes, name)) == 8 for name in RESULTS)
    few = evaluator(learner, 1, 11)
    rest = evaluator(learner, 2, 11, first=6)
    for name in RESULTS:
        np.testing.assert_array_equal(getattr(few, name), getattr(episodes, name)[:1], err_msg=name)
        np.testing.assert_array_equal(getattr(rest, name), getattr(episodes, name)[6:], err_msg=name)


def test_every_episode_has_every_figure(episodes):
    """... one number or row each, and a healthy simulation counts no fault."""
    figures = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(Episodes)}
    arrays = {name: value for name, value in figures.items() if isinstance(value, np.ndarray) and name != "qpos"}
    assert {len(value) for value in arrays.values()} == {8}
    for fault in ("invalid", "bad_target", "nonfinite", "overflow"):
        assert arrays[fault].dtype == bool and not arrays[fault].any(), fault
    assert (episodes.residual > 0).all() and (episodes.residual <= 0.05 * episodes.residual_rms + 1e-6).all()
    assert 0 < episodes.seconds < 3600


def test_episodes_go_on_from_whole_batches_only(evaluator, learner):
    with pytest.raises(ConfigError, match="first is 4; it must be a multiple of the batch, 6"):
        evaluator(learner, 2, 11, first=4)


def test_a_batch_draws_from_no_episodes_key():
    batch, episodes = evaluate_keys(11, 6, 6)
    assert not (np.asarray(episodes) == np.asarray(batch)).all(1).any()
    assert len(np.unique(np.asarray(episodes), axis=0)) == 6


def test_states_are_those_of_the_first_batch(evaluator, episodes):
    assert episodes.qpos.shape == (400, 6, 9)
    geometry = evaluator.env.task.geometry
    left = jax.vmap(geometry.translation_left)(episodes.qpos[-1, :, 6:])
    np.testing.assert_allclose(np.linalg.norm(left, axis=-1), episodes.final_distance[:6], rtol=1e-5)


def test_success_at_the_end_is_a_success_that_is_still_inside(evaluator, episodes):
    task = evaluator.env.task
    over = np.asarray(jax.vmap(task.geometry.overshoot)(episodes.qpos[-1, :, 6:]))
    inside = over[:, None] <= np.array(episodes.tolerances)
    np.testing.assert_array_equal(episodes.at_end[:6], episodes.succeeded[:6] & inside)
    assert episodes.at_end.any()


def test_invalid_episodes_are_no_successes(evaluator, learner):
    env = evaluator.env
    state = env.reset(evaluate_keys(11, 0, 6)[1])
    state = state.replace(
        invalid=jnp.array([True, False] * 3),
        succeeded=jnp.ones_like(state.succeeded),
        success_step=jnp.full_like(state.success_step, 30),
    )
    final = final_state(env, state)
    for name, good, bad in (("succeeded", True, False), ("success_step", 30, -1)):
        np.testing.assert_array_equal(final[name], [[bad] * 3, [good] * 3] * 3)
    assert not np.asarray(final["at_end"])[0].any()
    np.testing.assert_array_equal(final["invalid"], state.invalid)


def test_rollout_goes_on_after_success_and_counts_every_tolerance(episodes):
    assert episodes.succeeded.any()  # or the test says nothing
    assert episodes.tolerances == (0.005, 0.010, 0.020)
    tight, loose = episodes.succeeded[:, :-1], episodes.succeeded[:, 1:]
    assert (loose | ~tight).all()
    np.testing.assert_array_equal(episodes.success_step >= 0, episodes.succeeded)
    both = tight & loose
    assert (episodes.success_step[:, :-1] >= episodes.success_step[:, 1:])[both].all()
    assert (episodes.success_step[episodes.succeeded] >= 10).all()
    assert (episodes.success_step < 400).all()


def test_policies_in_other_modes_run(evaluator, learner, episodes):
    for mode in (SAMPLE, NOISE):
        other = evaluator.variant(mode, 0.5)(learner, 4, 11)
        assert (other.total_reward != episodes.total_reward[:4]).any(), mode
        assert np.isfinite(other.total_reward).all() and not other.nonfinite.any()
    noisy = evaluator.variant(NOISE, 0.2)(learner, 4, 11)
    np.testing.assert_allclose(noisy.residual_rms, 0.2, rtol=0.1)
    np.testing.assert_allclose(noisy.residual, 0.05 * 0.2 * np.sqrt(2 / np.pi), rtol=0.1)


def test_distance_at_the_start_is_that_of_the_reset(evaluator, episodes):
    env = evaluator.env
    sheet = env.reset(evaluate_keys(11, 0, 6)[1]).physics.qpos[:, 6:]
    left = np.linalg.norm(np.asarray(jax.vmap(env.task.geometry.translation_left)(sheet)), axis=-1)
    np.testing.assert_allclose(episodes.start_distance[:6], left, rtol=1e-6)


def test_an_environment_that_resets_itself_is_refused(uninterrupted):
    trainer = uninterrupted.trainer
    with pytest.raises(ConfigError, match="auto_reset=False"):
        Evaluator(trainer.env, trainer.base, trainer.residual)


@pytest.mark.parametrize("count", [0, -3])
def test_no_episodes_are_refused(evaluator, learner, count):
    with pytest.raises(ConfigError, match=f"episodes is {count}"):
        evaluator(learner, count, 0)


def test_episodes_that_choose_the_checkpoint_are_not_those_reported(uninterrupted):
    assert SELECTION_SEED != REPORT_SEED
    env = uninterrupted.trainer.eval_env

    def starts(seed):
        return np.concatenate([env.reset(episode_keys(seed, first, 6)).physics.qpos for first in (0, 6)])

    distances = np.abs(starts(SELECTION_SEED)[:, None] - starts(REPORT_SEED)[None]).max(-1)
    assert distances.min() > 1e-4


# -- the summary ---------------------------------------------------------------------------------------------------
def made_up(**changes):
    values = {
        "succeeded": np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], bool),
        "at_end": np.array([[0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]], bool),
        "success_step": np.array([[50, 40, 30], [-1, 60, 20], [-1, -1, 100], [-1, -1, -1]]),
        "start_distance": np.array([0.101, 0.072, 0.083, 0.110]),
        "final_distance": np.array([0.001, 0.002, 0.003, 0.010]),
        "final_yaw": np.radians([1.0, 2.0, 3.0, 6.0]),
        "total_reward": np.array([4.0, 3.0, 1.0, 0.0]),
        "residual": np.array([0.01, 0.02, 0.03, 0.02]),
        "residual_rms": np.array([0.3, 0.4, 0.0, 0.0]),
        "invalid": np.array([False, False, False, True]),
        "bad_target": np.array([True, True, True, False]),
        "nonfinite": np.array([False, True, False, False]),
        "overflow": np.array([False, True, True, False]),
        "tolerances": (0.005, 0.010, 0.020),
        "seconds": 2.5,
    }
    return Episodes(**{**values, **changes})


def test_summary_has_the_promised_entries():
    summary = made_up().summary()
    assert summary["episodes"] == 4
    assert set(summary["success"]) == {"5", "10", "20"}
    for tolerance, count in (("5", 1), ("10", 2), ("20", 3)):
        entry = summary["success"][tolerance]
        assert entry["rate"] == count / 4
        assert (entry["low"], entry["high"]) == wilson_interval(count, 4)
    for tolerance, count in (("5", 0), ("10", 1), ("20", 3)):
        low, high = wilson_interval(count, 4)
        assert summary["success_at_end"][tolerance] == {"rate": count / 4, "low": low, "high": high}
    assert summary["success"]["20"]["median_steps"] == 30
    assert summary["median_gained_mm"] == pytest.approx(90)  # of 100, 70, 80 and 100
    assert (summary["invalid_episodes"], summary["bad_target_episodes"]) == (1, 3)
    assert summary["final_distance_mm"] == pytest.approx(4.0)
    assert summary["final_yaw_deg"] == pytest.approx(3.0)
    assert summary["mean_return"] == pytest.approx(2.0)
    assert summary["mean_residual_rad"] == pytest.approx(0.02)
    assert summary["residual_rms"] == pytest.approx(0.25)
    assert (summary["nonfinite_episodes"], summary["overflow_episodes"]) == (1, 2)


def test_summary_of_no_success_is_still_json(read_json):
    summary = made_up(succeeded=np.zeros((4, 3), bool), success_step=np.full((4, 3), -1)).summary()
    assert read_json(json.dumps(summary)) == summary
    assert summary["success"]["5"] == {"rate": 0.0, "low": 0.0, "high": wilson_interval(0, 4)[1], "median_steps": None}


def test_return_counts_up_to_the_first_success(easier, easier_episodes, episodes):
    """Progress from the start to within 20 mm, the bonus, and the cost of the steps until then."""
    task, solved = easier.env.task, easier_episodes.succeeded[:, 2]
    assert solved.any()  # or the test says nothing
    keys = episode_keys(11, 0, 8)
    start = np.asarray(jax.vmap(task.geometry.potential)(easier.env.reset(keys).physics.qpos[:, 6:]))
    time = -task.config.time_cost * easier_episodes.success_step[:, 2]
    gained = (easier_episodes.total_reward - task.config.success_bonus - time)[solved]
    most = -task.config.progress_weight * start[solved]  # to the goal itself, where the potential is 0
    assert (gained <= most + 1e-4).all()
    assert (gained >= most - task.config.progress_weight * (10 * 0.06 + 2 * np.sqrt(0.06))).all()
    unsolved = easier_episodes.total_reward[~solved]
    assert (unsolved <= -task.config.time_cost * 400 - task.config.progress_weight * start[~solved]).all()
    # an episode never solved at 5 mm counts all its steps there, and only those before success at 20 mm here
    late = solved & ~episodes.succeeded[:, 0]
    after = episodes.total_reward + task.config.success_bonus - easier_episodes.total_reward
    assert late.any() and np.abs(after[late]).min() > 0.05
