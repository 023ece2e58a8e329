"""Where the sheet is and how far it has to go, against explicit numpy and hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import SceneConfig, SheetGeometry
from mjx_so101.geometry import path_to_goal, wrap, wrap_half_turn

GOAL = np.array([0.275, 0.175])
QUARTER = np.pi / 2


@pytest.fixture(scope="module")
def geometry():
    return SheetGeometry.from_scene(SceneConfig())


def corners_by_hand(pose):
    c, s = np.cos(pose[2]), np.sin(pose[2])
    ends = np.array([[0.074, 0.105], [0.074, -0.105], [-0.074, -0.105], [-0.074, 0.105]])
    return pose[:2] + ends @ np.array([[c, s], [-s, c]])


def overshoot_by_hand(pose):
    return (np.abs(corners_by_hand(pose) - GOAL) - (0.105, 0.074)).max()


@pytest.fixture(scope="module")
def poses():
    rng = np.random.default_rng(2)
    return np.concatenate([GOAL + rng.uniform(-0.2, 0.2, (200, 2)), rng.uniform(-7, 7, (200, 1))], 1)


@pytest.mark.parametrize("yaw", [QUARTER, -QUARTER, 3 * QUARTER])
def test_goal_pose_fits_exactly_also_turned_around(geometry, yaw):
    goal = jnp.array([*GOAL, yaw])
    assert float(geometry.overshoot(goal)) == pytest.approx(0, abs=1e-7)
    assert float(geometry.distance(goal)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("yaw", [0.0, np.pi])
def test_sheet_across_the_opening_does_not_fit(geometry, yaw):
    assert float(geometry.overshoot(jnp.array([*GOAL, yaw]))) == pytest.approx(0.031, abs=1e-6)


@pytest.mark.parametrize("shift", [(0.006, 0), (-0.006, 0), (0, 0.006), (0, -0.006), (0.006, 0.003)])
def test_six_millimetres_of_shift_are_six_outside(geometry, shift):
    pose = jnp.array([*(GOAL + shift), QUARTER])
    assert float(geometry.overshoot(pose)) == pytest.approx(0.006, abs=1e-7)


def test_corners_and_overshoot_against_numpy(geometry, poses):
    np.testing.assert_allclose(jax.vmap(geometry.corners)(poses), [corners_by_hand(p) for p in poses], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(geometry.overshoot)(poses), [overshoot_by_hand(p) for p in poses], atol=1e-6)


def test_rotation_left_ignores_half_turns(geometry):
    for missing in (-1.5, -0.3, 0.0, 0.02, 1.5):
        for turns in (-3, -1, 0, 1, 2):
            pose = jnp.array([*GOAL, QUARTER - missing + turns * np.pi])
            assert float(geometry.rotation_left(pose)) == pytest.approx(missing, abs=3e-6)


def test_wrapped_angles_stay_in_their_interval():
    angles = np.linspace(-20, 20, 2001)
    full, half = np.asarray(wrap(angles)), np.asarray(wrap_half_turn(angles))
    assert (-np.pi <= full).all() and (full <= np.pi).all()
    assert (-np.pi / 2 <= half).all() and (half <= np.pi / 2).all()
    np.testing.assert_allclose(np.exp(1j * full), np.exp(1j * angles), atol=1e-5)
    np.testing.assert_allclose(np.exp(2j * half), np.exp(2j * angles), atol=1e-5)


def test_potential_rises_all_the_way_to_the_goal(geometry):
    rng = np.random.default_rng(3)
    potential = jax.jit(jax.vmap(geometry.potential))
    for _ in range(100):
        start = np.array([*(GOAL + rng.uniform(-0.15, 0.15, 2)), QUARTER + rng.uniform(-0.7, 0.7)])
        path = path_to_goal(geometry, start)
        np.testing.assert_allclose(path[0], start)
        assert overshoot_by_hand(path[-1]) < 1e-6
        assert (np.diff(potential(jnp.asarray(path))) > 0).all()


def test_potential_is_the_published_formula(geometry, poses):
    rotation = np.abs((QUARTER - poses[:, 2] + QUARTER) % np.pi - QUARTER)
    distance = np.linalg.norm(poses[:, :2] - GOAL, axis=1) + 0.07 * rotation
    expected = -10 * distance - 2 * np.sqrt(distance)
    np.testing.assert_allclose(jax.vmap(geometry.potential)(poses), expected, rtol=1e-4)
