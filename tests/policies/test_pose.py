"""The pose network: what it answers, how its answer becomes what is seen, and that pictures teach it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mjx_so101.geometry import wrap_half_turn
from mjx_so101.render import RenderConfig, make_renderer
from policies.pose import PoseNetwork

RENDER = RenderConfig(width=32, height=32, detail="coarse")
GOAL = (0.275, 0.175)


@pytest.fixture(scope="module")
def network():
    return PoseNetwork(RENDER, GOAL, channels=8, hidden=32)


@pytest.fixture(scope="module")
def seen(make_env):
    """Pictures, measured joints and true poses of 64 states."""
    states = make_env(64, "plain").reset(0)
    renderer = make_renderer(RENDER, num_envs=len(states.step))
    joints = states.physics.qpos[:, :6] + states.params.joint_bias
    return {"pixels/top": renderer.render(states)[:, 0]}, joints, states.physics.qpos[:, 6:]


class Sees(PoseNetwork):
    """A network that answers given poses."""

    def __init__(self, poses):
        super().__init__(RENDER, GOAL)
        self.poses = jnp.asarray(poses, jnp.float32)

    def estimate(self, parameters, pictures, joints):
        return self.poses


def test_a_fresh_network_answers_near_the_goal(network, seen):
    pictures, joints, _ = seen
    poses = network.estimate(network.init(jax.random.PRNGKey(0)), pictures, joints)
    assert poses.shape == (len(joints), 3) and poses.dtype == jnp.float32
    assert np.abs(poses[:, :2] - np.array(GOAL)).max() < 0.5
    assert (poses[:, 2] >= 0).all() and (poses[:, 2] <= np.pi + 1e-6).all()


@pytest.mark.parametrize("size", [(64, 64), (40, 24), (30, 17), (128, 128)])
def test_any_size_and_two_cameras(size):
    render = RenderConfig(cameras=("wrist", "top"), width=size[0], height=size[1])
    network = PoseNetwork(render, GOAL, channels=4, hidden=8)
    blank = jnp.zeros((3, size[1], size[0], 3), jnp.uint8)
    pictures, joints = {"pixels/top": blank, "pixels/wrist": blank}, jnp.zeros((3, 6))
    parameters = network.init(jax.random.PRNGKey(0))
    assert network.estimate(parameters, pictures, joints).shape == (3, 3)
    other = network.estimate(parameters, {**pictures, "pixels/wrist": blank + 200}, joints)
    assert (other != network.estimate(parameters, pictures, joints)).any()  # both are seen, each in its place
    swapped = network.estimate(parameters, {**pictures, "pixels/top": blank + 200}, joints)
    assert (other != swapped).any()


def test_loss_is_the_error_in_cm(network, seen):
    """Of an answer that is off by a known pose; half a turn is no error."""
    pictures, joints, _ = seen
    parameters = network.init(jax.random.PRNGKey(0))
    found = network.estimate(parameters, pictures, joints)
    without = network.loss(parameters, pictures, joints, found)
    for shift, expected in (((0.03, 0.04, 0.0), 5.0), ((0.0, 0.0, np.pi), 0.0)):
        off = network.loss(parameters, pictures, joints, found + jnp.array(shift))
        assert float(off - without) == pytest.approx(expected, abs=0.15)


def test_pictures_teach_it(network, seen):
    """200 steps on 64 pictures: it learns them, and with other pictures' labels it would not pass."""
    pictures, joints, truth = seen
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(parameters, state):
        gradient = jax.grad(network.loss)(parameters, pictures, joints, truth)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, change), state

    parameters = network.init(jax.random.PRNGKey(0))
    state = optimizer.init(parameters)
    for _ in range(200):
        parameters, state = step(parameters, state)
    found = network.estimate(parameters, pictures, joints)
    assert np.median(np.linalg.norm(found[:, :2] - truth[:, :2], axis=1)) < 0.005
    assert np.median(np.abs(wrap_half_turn(found[:, 2] - truth[:, 2]))) < 0.06
    blank = network.estimate(parameters, jax.tree.map(jnp.zeros_like, pictures), joints)
    assert np.median(np.linalg.norm(blank[:, :2] - truth[:, :2], axis=1)) > 0.02


def test_what_it_finds_is_what_is_seen(make_env):
    """The seen pose is the estimate whatever noise, latency and truth are; the speed is that of the estimates."""
    env = make_env(64, "real")
    old, new = jnp.tile(jnp.array([0.2, 0.1, 1.5]), (64, 1)), jnp.tile(jnp.array([0.21, 0.1, 1.4]), (64, 1))
    state = dataclasses.replace(env.reset(0), step=jnp.full(64, 7), seen_sheet_before=old)
    looked = Sees(new).look(None, state, {}, None)
    seen = env.observe(looked)
    np.testing.assert_allclose(seen.sheet, new, atol=1e-6)
    np.testing.assert_allclose(seen.sheet_vel, (new - old) * env.task.control_hz, atol=1e-4)
    np.testing.assert_array_equal(looked.physics.qpos, state.physics.qpos)  # the truth stays


def test_an_episode_begins_at_rest(make_env):
    state = make_env(64, "real").reset(0)
    looked = Sees(jnp.tile(jnp.array([0.2, 0.1, 1.5]), (64, 1))).look(None, state, {}, None)
    np.testing.assert_array_equal(looked.seen_sheet, looked.seen_sheet_before)


@pytest.mark.parametrize(("before", "found", "seen"), [(3.1, 0.02, 3.1616), (0.02, 3.13, -0.0116), (4.0, 0.9, 4.0416)])
def test_turns_go_on_without_a_jump(make_env, before, found, seen):
    """Half a turn is the same sheet, but a jump by it would be a speed of 94 rad/s."""
    state = make_env(64, "nominal").reset(0)
    old, new = (jnp.tile(jnp.array([0.2, 0.1, yaw]), (64, 1)) for yaw in (before, found))
    state = dataclasses.replace(state, step=jnp.full(64, 7), seen_sheet_before=old)
    np.testing.assert_allclose(Sees(new).look(None, state, {}, None).seen_sheet[:, 2], seen, atol=1e-3)
