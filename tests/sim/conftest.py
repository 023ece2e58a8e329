"""What the tests of pictures share: 16 random states, and one renderer of each kind that works here."""

from ctypes.util import find_library

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import SceneConfig
from mjx_so101.params import PRESETS
from mjx_so101.render.base import Frames
from mjx_so101.render.mujoco import MujocoRenderer
from mjx_so101.render.quad.renderer import QuadRenderer
from mjx_so101.render.warp import WarpRenderer
from mjx_so101.scene import load_visual_model

CAMERAS = ("top", "wrist")
SIZE = (96, 72)  # width, height
PLAIN = {"shadows": False, "specular": False}  # what the backends must agree on


@pytest.fixture(scope="session")
def opengl():
    """Skips a test where MuJoCo has no library to draw with."""
    if not (find_library("EGL") or find_library("OSMesa")):
        pytest.skip("needs libegl1 or libosmesa6")


@pytest.fixture(scope="session")
def states(make_env):
    """16 environments: arms up to 0.3 rad off home in every joint, sheets anywhere near the goal, nominal looks."""
    env, rng = make_env(16, "nominal"), np.random.default_rng(0)
    state = env.reset(0)
    arms = np.asarray(env.task.config.home) + rng.uniform(-0.3, 0.3, (16, 6))
    sheets = np.column_stack([np.add((0.275, 0.175), rng.uniform(-0.1, 0.1, (16, 2))), rng.uniform(-np.pi, np.pi, 16)])
    qpos = jnp.asarray(np.hstack([arms, sheets]), jnp.float32)
    return state.replace(physics=state.physics.replace(qpos=qpos))


@pytest.fixture(scope="session")
def rows_of():
    """Function from a batched State and row numbers to a State of these rows."""
    return lambda state, rows: jax.tree.map(lambda leaf: leaf[jnp.asarray(rows)], state)


@pytest.fixture(scope="session")
def quad_renderer():
    return QuadRenderer(SceneConfig(), CAMERAS, *SIZE, 16, depth=True, segmentation=True, **PLAIN)


@pytest.fixture(scope="session")
def warp_renderer():
    return WarpRenderer(SceneConfig(), CAMERAS, *SIZE, 16, depth=True, segmentation=True, **PLAIN)


@pytest.fixture(scope="session")
def mujoco_renderer(opengl):
    renderer = MujocoRenderer(SceneConfig(), CAMERAS, *SIZE, 16, depth=True, segmentation=True, **PLAIN)
    yield renderer
    renderer.close()


@pytest.fixture(scope="session", params=["quad", "warp", "mujoco"])
def renderer(request):
    """Each of the three in turn."""
    return request.getfixturevalue(f"{request.param}_renderer")


@pytest.fixture(scope="session")
def quad_frames(quad_renderer, states) -> Frames:
    return jax.tree.map(np.asarray, quad_renderer.frames(states))


@pytest.fixture(scope="session")
def warp_frames(warp_renderer, states) -> Frames:
    return jax.tree.map(np.asarray, warp_renderer.frames(states))


@pytest.fixture(scope="session")
def mujoco_frames(mujoco_renderer, states) -> Frames:
    return mujoco_renderer.frames(states)


@pytest.fixture(scope="session", params=["quad", "warp"])
def both(request, mujoco_frames) -> tuple[Frames, Frames]:
    """Frames of `states` by one of our batch renderers and by mujoco."""
    return request.getfixturevalue(f"{request.param}_frames"), mujoco_frames


@pytest.fixture(scope="module")
def scene_model():
    """The scene as renderers draw it, fine look."""
    return load_visual_model(SceneConfig())


@pytest.fixture(scope="module")
def sampled_looks():
    """EnvParams of five environments with random looks, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(3), 5)
    return jax.tree.map(np.asarray, jax.vmap(PRESETS["nominal+looks"].sample)(keys))
