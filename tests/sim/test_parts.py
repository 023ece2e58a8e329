"""A renderer of one number of environments draws any other number in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, SceneConfig
from mjx_so101.render.mujoco import MujocoRenderer
from mjx_so101.render.parts import InParts
from mjx_so101.render.quad.renderer import QuadRenderer

CAMERAS = ("wrist", "top")


@pytest.fixture(scope="module", params=[MujocoRenderer, QuadRenderer])
def pair(request):
    """Renderers of two and of five environments."""
    kind = request.param
    return tuple(kind(SceneConfig(detail="coarse"), CAMERAS, 16, 16, n, depth=kind is MujocoRenderer) for n in (2, 5))


@pytest.fixture(scope="module")
def state(make_env):
    return make_env(5, "nominal").reset(seed=3)


@pytest.mark.parametrize("rows", [None, [4, 0, 0, 2, 1]])
def test_pictures_are_those_of_a_renderer_of_that_number(pair, state, rows):
    two, five = pair
    envs = None if rows is None else jnp.array(rows)
    drawn = InParts(two, 5).frames(state, envs)
    jax.tree.map(np.testing.assert_array_equal, drawn, five.frames(state, envs))
    assert type(drawn.rgb) is type(five.render(state)) and drawn.rgb.dtype == np.uint8
    assert (drawn.depth is None) == (two.frames(state, jnp.arange(2)).depth is None)


def test_fewer_environments_than_the_renderer_s(pair, state):
    _, five = pair
    whole = five.render(state)
    np.testing.assert_array_equal(InParts(five, 1).render(state, np.array([3])), whole[3:4])
    first = jax.tree.map(lambda leaf: leaf[:3], state)
    np.testing.assert_array_equal(InParts(five, 3).render(first), whole[:3])


def test_every_part_asks_for_the_renderer_s_number(state):
    class Asked:
        name, cameras, width, height, num_envs, rows = "asked", CAMERAS, 4, 4, 2, []

        def render(self, state, envs=None):
            self.rows.append(np.asarray(envs).tolist())
            return np.zeros((2, 2, 4, 4, 3), np.uint8)

    assert InParts(Asked(), 5).render(state, jnp.array([4, 3, 1, 0, 2])).shape == (5, 2, 4, 4, 3)
    assert Asked.rows == [[4, 3], [1, 0], [2, 2]]


@pytest.mark.parametrize("cameras", [("top",), ("top", "wrist"), ("wrist",)])
def test_cameras_may_be_fewer_and_in_another_order(pair, state, cameras):
    two, five = pair
    columns = [CAMERAS.index(name) for name in cameras]
    drawn = InParts(two, 5, cameras)
    assert drawn.cameras == cameras
    np.testing.assert_array_equal(drawn.render(state), five.render(state)[:, np.array(columns)])


@pytest.mark.parametrize(
    ("num_envs", "cameras", "words"),
    [
        (0, None, "num_envs is 0; it must be at least 1"),
        (5, ("side",), "camera 'side' is unknown; valid cameras are wrist, top"),
        (5, ("top", "top"), "name one twice"),
    ],
)
def test_bad_requests_are_refused(pair, num_envs, cameras, words):
    with pytest.raises(ConfigError, match=words):
        InParts(pair[0], num_envs, cameras)


@pytest.mark.parametrize(
    ("envs", "words"),
    [
        (None, "5 environments to draw, but this .* was built for num_envs = 3"),
        ([0, 1], "2 environments to draw, but this .* was built for num_envs = 3"),
        ([0, 1, 5], "envs names row 5 of 5 environments"),
    ],
)
def test_another_number_or_row_is_refused(pair, state, envs, words):
    with pytest.raises(ConfigError, match=words):
        InParts(pair[0], 3).render(state, None if envs is None else jnp.array(envs))


def test_closing_leaves_the_renderer_to_the_others(state):
    renderer = MujocoRenderer(SceneConfig(detail="coarse"), CAMERAS, 16, 16, 5)
    one, other = InParts(renderer, 5), InParts(renderer, 5)
    one.close()
    assert other.render(state).any()
