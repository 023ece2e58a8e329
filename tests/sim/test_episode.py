"""Life of an episode: reward terms, time-out, the end by success or by a lost sheet, and the next episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import TaskConfig
from policies.base import make_base

GOAL = np.array([0.275, 0.175, np.pi / 2])
HOLD = TaskConfig().hold_steps


@pytest.fixture(scope="module")
def played(make_env):
    """150 steps of `oracle` with automatic resets: the environment, [step, env] rewards, terms and results."""
    env = make_env(8, "nominal", task=TaskConfig(episode_steps=120))
    policy = make_base("oracle", env.task)
    chunk = jax.jit(policy.chunk)
    state, carry, ended, results = env.reset(3), policy.init(8), jnp.zeros(8, bool), []
    starts = [state]
    for _ in range(150):
        carry, targets = chunk(carry, env.observe(state), jax.random.PRNGKey(0), ended)
        state, result = env.step(state, targets[:, 0])
        ended = result.done
        starts.append(state)
        results.append(result)
    return env, starts, results


def first_episodes(played):
    """For each environment: its start state, and the results of its first episode."""
    _, starts, results = played
    done = np.array([result.done for result in results])
    for i in range(8):
        length = int(np.argmax(done[:, i])) + 1
        yield i, starts[0], results[:length]


def test_return_is_the_sum_of_its_named_terms(played):
    _, _, results = played
    total = sum(np.asarray(result.reward, np.float64) for result in results)
    terms = {name: sum(np.asarray(r.terms[name], np.float64) for r in results) for name in results[0].terms}
    assert set(terms) == {"progress", "time", "success", "left", "invalid"}
    np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-5)


def test_terms_of_an_episode_follow_from_what_happened(played):
    env, *_ = played
    config, potential = env.task.config, env.task.geometry.potential
    kinds = set()
    for i, start, results in first_episodes(played):
        terms = {name: sum(float(r.terms[name][i]) for r in results) for name in results[0].terms}
        gained = potential(results[-1].last.physics.qpos[i, 6:]) - potential(start.physics.qpos[i, 6:])
        assert terms["progress"] == pytest.approx(config.progress_weight * float(gained), abs=1e-3)
        solved = bool(results[-1].last.succeeded[i, 0])
        inside = [float(env.task.geometry.overshoot(r.last.physics.qpos[i, 6:])) <= config.tolerance for r in results]
        before = int(results[-1].last.success_step[i, 0]) if solved else len(results)
        left = len(results) - before - sum(inside[before:])
        assert terms["time"] == pytest.approx(-config.time_cost * (before + left), rel=1e-4)
        assert terms["left"] == pytest.approx(-config.leave_cost * left, rel=1e-4)
        assert terms["success"] == pytest.approx(config.success_bonus * solved)
        assert terms["invalid"] == 0
        kinds.add(solved)
    assert True in kinds  # at least one episode was solved, so the bonus was seen


def test_a_training_episode_goes_on_after_success(played):
    _, starts, results = played
    went_on = 0
    for step, result in enumerate(results):
        success = np.asarray(result.success)
        assert not np.asarray(result.terminated).any()
        assert np.asarray(result.last.succeeded)[success, 0].all()
        alive = success & ~np.asarray(result.truncated)
        assert np.asarray(starts[step + 1].succeeded)[alive, 0].all()
        went_on += alive.sum()
    assert went_on


def almost_home(env, with_sheet):
    """Every sheet on the goal, one control step before its hold is complete at the training tolerance."""
    state = with_sheet(env.reset(0), GOAL)
    return state.replace(held=state.held.at[:, 0].set(HOLD - 1))


def test_the_stated_share_of_episodes_goes_on_after_success(make_env, with_sheet):
    env = make_env(64, "nominal", task=TaskConfig(stay_share=0.5))
    state = almost_home(env, with_sheet)
    new, result = env.step(state, state.target)
    assert np.asarray(result.success).all()
    stays = np.asarray(state.stays)
    assert 16 < stays.sum() < 48
    np.testing.assert_array_equal(result.terminated, ~stays)
    np.testing.assert_array_equal(new.step == 0, ~stays)


@pytest.mark.parametrize("far", [0.02, 0.008])  # 8 mm is out of the tightest tolerance alone
def test_staying_is_free_and_leaving_costs_until_the_sheet_is_back(make_env, with_sheet, far):
    env = make_env(4, "nominal")
    state = almost_home(env, with_sheet)
    state, _ = env.step(state, state.target)
    config, step = env.task.config, {}
    for name, shift in (("home", 0.0), ("away", far), ("back", 0.0)):
        state = with_sheet(state, GOAL + np.array([shift, 0.0, 0.0]))
        state, step[name] = env.step(state, state.target)
    for name, time, left in (("home", 0, 0), ("away", config.time_cost, config.leave_cost), ("back", 0, 0)):
        np.testing.assert_allclose(step[name].terms["time"], -time, atol=1e-7)
        np.testing.assert_allclose(step[name].terms["left"], -left, atol=1e-7)
        assert not np.asarray(step[name].terms["success"]).any()  # the bonus comes once
    assert not np.asarray(step["away"].terminated).any()


def test_time_out_truncates_and_starts_a_new_episode(make_env):
    env = make_env(4, "plain", task=TaskConfig(episode_steps=3))
    state, lengths = env.reset(0), []
    for _ in range(7):
        before = state
        state, result = env.step(state, state.target)
        lengths.append(int(result.truncated[0]))
        assert not np.asarray(result.terminated).any()
        np.testing.assert_array_equal(result.truncated, result.last.step == 3)
        np.testing.assert_array_equal(result.last.params.kp_scale, before.params.kp_scale)
        np.testing.assert_array_equal(env.observe(state).new_episode, result.done)
    assert lengths == [0, 0, 1, 0, 0, 1, 0]


def test_environments_end_on_their_own(make_env):
    env = make_env(4, "plain", task=TaskConfig(episode_steps=3))
    state = env.reset(0)
    state = state.replace(step=jnp.array([0, 1, 2, 0], jnp.int32))
    new, result = env.step(state, state.target)
    np.testing.assert_array_equal(result.done, [False, False, True, False])
    np.testing.assert_array_equal(new.step, [1, 2, 0, 1])
    kept = np.asarray(new.params.kp_scale == state.params.kp_scale)
    np.testing.assert_array_equal(kept, [True, True, False, True])


def test_without_automatic_reset_an_episode_runs_on(make_env, with_sheet):
    env = make_env(4, "plain", auto_reset=False, task=TaskConfig(episode_steps=5))
    state = with_sheet(env.reset(0), GOAL)
    start, bonus = state, 0.0
    for step in range(1, 2 * HOLD):
        state, result = env.step(state, state.target)
        bonus += float(result.terms["success"].sum())
        assert (np.asarray(state.step) == step).all()
        assert np.asarray(result.truncated).all() == (step >= 5)
    np.testing.assert_array_equal(state.params.kp_scale, start.params.kp_scale)
    assert (np.asarray(state.success_step) == HOLD).all()
    assert bonus == pytest.approx(4 * env.task.config.success_bonus)


@pytest.mark.parametrize("spoil", ["thrown", "nan position", "inf velocity"])
def test_lost_sheet_and_broken_state_end_the_episode_and_recover(make_env, spoil, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there
    env = make_env(4, "plain")
    state = env.reset(0)
    qpos, qvel = state.physics.qpos, state.physics.qvel
    if spoil == "thrown":
        qpos = qpos.at[2, 6].add(0.6)
    elif spoil == "nan position":
        qpos = qpos.at[2, 1].set(jnp.nan)
    else:
        qvel = qvel.at[2, 0].set(jnp.inf)
    broken = state.replace(physics=state.physics.replace(qpos=qpos, qvel=qvel))
    new, result = env.step(broken, state.target)
    expected = np.array([False, False, True, False])
    np.testing.assert_array_equal(result.invalid, expected)
    np.testing.assert_array_equal(result.terminated, expected)
    np.testing.assert_array_equal(result.last.nonfinite, expected & (spoil != "thrown"))
    np.testing.assert_allclose(result.terms["invalid"], -env.task.config.invalid_cost * expected)
    assert np.isfinite(np.asarray(result.reward)).all()
    assert int(new.step[2]) == 0
    for _ in range(3):
        new, result = env.step(new, new.target)
    assert not np.asarray(result.invalid).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_state_blown_up_by_physics_is_taken_back(make_env):
    env = make_env(4, "plain")
    state = env.task.reset(jax.random.PRNGKey(0))
    wrong = state.physics.replace(qpos=state.physics.qpos.at[0].set(jnp.nan), warmstart=jnp.full(9, jnp.nan))
    new, verdict = env.task.advance(state, wrong)
    assert bool(verdict.invalid) and bool(verdict.terminated) and bool(new.nonfinite)
    np.testing.assert_array_equal(new.physics.qpos, state.physics.qpos)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    assert float(verdict.terms["progress"]) == 0


def test_describe_names_what_a_result_depends_on(make_env):
    record = make_env(4, "plain").describe()
    assert record["physics"] == "native"
    assert record["sheet_friction"] == "dry"
    assert record["num_envs"] == 4
    assert record["randomization"]["ranges"]["action_delay"] == [0, 2]


# -- targets that are not finite -----------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("physics", ["native", pytest.param("warp", marks=pytest.mark.slow)])
def test_a_target_that_is_not_finite_is_not_taken_and_ends_the_episode(make_env, physics, bad):
    env = make_env(4, "nominal", physics=physics)
    state = env.reset(0)
    target = state.target.at[2, 3].set(bad)
    asked = jax.jit(lambda s, t: env.begin_step(s, t))(state, target)
    np.testing.assert_array_equal(asked[0].target[2], state.target[2])  # all six joints hold
    assert np.isfinite(asked[2]).all()
    new, result = env._finish(asked[0], env.physics.step(asked[0].physics, *asked[1:]))
    expected = np.array([False, False, True, False])
    for flags in (result.invalid, result.terminated, result.last.bad_target, result.last.nonfinite):
        np.testing.assert_array_equal(flags, expected)
    assert not np.asarray(result.last.physics.overflow).any()  # no buffer was full
    np.testing.assert_array_equal(new.step == 0, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    new, result = env.step(new, new.target)
    assert not np.asarray(result.last.bad_target | result.invalid).any()


def test_a_bad_target_is_no_less_bad_where_physics_breaks_too(make_env):
    env = make_env(4, "nominal")
    state = env.reset(0)
    state, fields, ctrl = env.begin_step(state, state.target * jnp.nan)
    broken = env.physics.step(state.physics, fields, ctrl)
    broken = broken.replace(qpos=jnp.asarray(broken.qpos).at[1].set(jnp.nan))
    _, result = env._finish(state, broken)
    assert np.asarray(result.last.nonfinite & result.invalid & result.terminated).all()


@pytest.mark.parametrize("spoil", ["target", "thrown"])
def test_an_invalid_episode_never_succeeds(make_env, with_sheet, spoil):
    """Neither after the sheet has come back, nor where it had succeeded before."""
    env = make_env(4, "nominal", auto_reset=False)
    state = almost_home(env, with_sheet)
    target = jnp.asarray(state.target)
    if spoil == "thrown":
        lost = with_sheet(state, GOAL + np.array([0.6, 0.0, 0.0]))
        state, _ = env._finish(*spoiled_step(env, lost, target))
        state = with_sheet(state, GOAL)
    else:
        state, _ = env._finish(*spoiled_step(env, state, target * jnp.nan))
    assert np.asarray(state.invalid).all()
    for _ in range(2 * HOLD):
        state, result = env.step(state, target)
        assert not np.asarray(result.success).any()
    assert np.asarray(state.held >= HOLD).all()  # it rests on the goal all the time
    assert np.asarray(state.invalid).all() and not np.asarray(state.succeeded).any()


def spoiled_step(env, state, target):
    begun, fields, ctrl = env._begin(state, target)
    return begun, env.physics.step(begun.physics, fields, ctrl)
