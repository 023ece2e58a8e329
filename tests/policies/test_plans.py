"""The scripted plans over whole episodes on the native backend: how often they succeed, and within which limits."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import TaskConfig
from policies.base import make_base

NUM_ENVS, STEPS = 64, 400
MEAN_OF_DATA = (0.01, 0.47, -0.15, 0.76, -2.11, 0.030)
"""Mean state of the real data: the hand low over the goal and turned round, see policies/start.py."""


@pytest.fixture(scope="module")
def episodes(make_env):
    """Function from a plan (and ' from the data') to 64 episodes under `plain`: first and last state, targets asked
    for and taken."""

    @functools.cache
    def play(plan):
        name, _, elsewhere = plan.partition(" from ")
        task = {"task": TaskConfig(home=MEAN_OF_DATA)} if elsewhere else {}
        env = make_env(NUM_ENVS, "plain", auto_reset=False, **task)
        policy = make_base(name, env.task)
        chunk = jax.jit(policy.chunk)
        state, carry, mask = env.reset(11), policy.init(NUM_ENVS), jnp.zeros(NUM_ENVS, bool)
        start, asked, taken = state, [], []
        for _ in range(STEPS):
            carry, targets = chunk(carry, env.observe(state), jax.random.PRNGKey(0), mask)
            state, _ = env.step(state, targets[:, 0])
            asked.append(np.asarray(targets[:, 0]))
            taken.append(np.asarray(state.target))
        return SimpleNamespace(env=env, start=start, last=state, asked=np.array(asked), taken=np.array(taken))

    return play


@pytest.fixture(params=["jacobian", "oracle", "jacobian from the data", "oracle from the data"])
def played(request, episodes):
    return episodes(request.param)


def success_rates(played):
    """{tolerance (m): share of the episodes}."""
    rates = np.asarray(played.last.succeeded).mean(0)
    return dict(zip(played.env.task.config.tolerances, rates, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", " from the data"])
def test_oracle_solves_nearly_all_at_five_millimetres(episodes, start):
    assert success_rates(episodes(f"oracle{start}"))[0.005] >= 0.90


@pytest.mark.parametrize("start", ["", " from the data"])
def test_jacobian_leaves_room_to_learn(episodes, start):
    assert 0.10 <= success_rates(episodes(f"jacobian{start}"))[0.005] <= 0.60


def test_episodes_start_from_the_other_pose(episodes):
    start = np.asarray(episodes("oracle from the data").start.physics.qpos[:, :6])
    assert np.abs(start - np.array(MEAN_OF_DATA)).max() <= 0.03 + 1e-6


def test_wider_tolerances_succeed_at_least_as_often(played):
    rates = success_rates(played)
    assert rates[0.005] <= rates[0.010] <= rates[0.020]
    assert rates[0.020] > 0.5


def test_targets_are_finite_and_within_the_motors_limits(played):
    kinematics = played.env.task.kinematics
    assert np.isfinite(played.asked).all()
    assert (played.taken >= kinematics.lower - 1e-6).all()
    assert (played.taken <= kinematics.upper + 1e-6).all()
    assert np.abs(played.asked - played.taken).max() < 0.2  # little is lost by clipping


def test_no_episode_goes_wrong(played):
    assert not np.asarray(played.last.nonfinite).any()
    assert not np.asarray(played.last.physics.overflow).any()
    assert (np.asarray(played.last.step) == STEPS).all()
    goal = played.env.task.geometry.goal
    offset = np.abs(np.asarray(played.last.physics.qpos[:, 6:8]) - goal).max(1)
    assert (offset < played.env.task.config.max_sheet_offset).all()


def test_most_sheets_come_closer(played):
    distance = jax.vmap(played.env.task.geometry.distance)
    before, after = distance(played.start.physics.qpos[:, 6:]), distance(played.last.physics.qpos[:, 6:])
    assert np.mean(np.asarray(after < 0.5 * before)) > 0.9


def test_solved_sheets_lie_inside_the_tape_by_our_own_measure(episodes):
    """Corners from plain numpy, at the end of the episode, for what was counted at 5 mm."""
    oracle = episodes("oracle")
    column = oracle.env.task.config.tolerances.index(0.005)
    poses = np.asarray(oracle.last.physics.qpos[:, 6:])[np.asarray(oracle.last.succeeded)[:, column]]
    c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    x, y = np.array([1, 1, -1, -1]) * 0.074, np.array([1, -1, -1, 1]) * 0.105
    corners_x = poses[:, :1] + c[:, None] * x - s[:, None] * y - 0.275
    corners_y = poses[:, 1:2] + s[:, None] * x + c[:, None] * y - 0.175
    inside = (np.abs(corners_x) <= 0.105 + 0.005) & (np.abs(corners_y) <= 0.074 + 0.005)
    assert inside.all(1).mean() > 0.95  # the plan rests once the sheet is home
