"""Shared fixtures: compiled programs are cached in the checkout, and one environment of each kind is built per
session."""

import os
from pathlib import Path

from train.hardware import CACHE_FOLDERS, set_caches

# Everything that tests and the commands they start keep goes under .cache/tests, never into the user's own cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache" / "tests")
for name in CACHE_FOLDERS:
    os.environ.pop(name, None)
set_caches()  # before jax and warp are imported
# JAX writes its files in place: a second process would read them half written. Warp renames folders.
os.environ["JAX_COMPILATION_CACHE_DIR"] += "-" + os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# compiling takes most of the tests' time: level 1 takes a fifth off it, 0 makes them slower
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from mjx_so101 import ArmKinematics, PaperReturnEnv, SceneConfig, load_model  # noqa: E402
from policies.hand import HandConfig, approach_direction  # noqa: E402
from policies.ik import reach_point  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs come first, so that no process is left alone with one of them at the end."""
    first = ("train", "bench")
    items.sort(key=lambda item: first.index(item.path.parent.name) if item.path.parent.name in first else len(first))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the small files that tests compare with."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def model():
    """The scene without visuals."""
    return load_model(SceneConfig(visual=False))


@pytest.fixture(scope="session")
def kinematics(model):
    """Kinematics of the arm in the scene."""
    return ArmKinematics.from_model(model)


@pytest.fixture(scope="session")
def make_env():
    """`PaperReturnEnv`, native, a named preset; equal arguments give the same environment."""
    built = {}

    def make(num_envs=4, randomization="nominal", physics="native", **options) -> PaperReturnEnv:
        key = repr((num_envs, randomization, physics, sorted(options.items())))
        if key not in built:
            built[key] = PaperReturnEnv(num_envs, physics=physics, randomization=randomization, **options)
        return built[key]

    return make


@pytest.fixture(scope="session")
def joints_at(kinematics):
    """Function from fingertip position [3] (m) and gripper angle (rad) to six joints (rad), hand downwards."""

    @jax.jit
    def closer(joints, position):
        approach = approach_direction(kinematics, position[:2], HandConfig())
        return reach_point(kinematics, joints, kinematics.fixed_fingertip, position, approach, None)

    def solve(position, grip=-0.1745) -> np.ndarray:
        joints = jnp.array([0.0, -1.1, 0.8, 1.45, 1.6])
        for _ in range(30):
            joints = closer(joints, jnp.asarray(position, jnp.float32))
        return np.append(np.asarray(joints, np.float64), grip)

    return solve


@pytest.fixture
def with_sheet():
    """Function that gives a batched State with the sheet moved to `pose` [3] or [env, 3], history included."""

    def move(state, pose):
        pose = jnp.broadcast_to(jnp.asarray(pose, jnp.float32), (state.step.shape[0], 3))
        physics = state.physics.replace(qpos=state.physics.qpos.at[:, 6:].set(pose))
        return state.replace(
            physics=physics,
            sheet_history=jnp.broadcast_to(pose[:, None], state.sheet_history.shape),
            seen_sheet=pose,
            seen_sheet_before=pose,
        )

    return move
