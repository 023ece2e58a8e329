"""Where the sheet is and how far it still has to go: corners, error, success area and the potential Phi."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.scene import SceneConfig

LEVER = 0.07
"""Length (m) that turns a yaw error into a distance: about the sheet's radius of gyration."""


def wrap(angle: jax.Array) -> jax.Array:
    """Angle in [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


def wrap_half_turn(angle: jax.Array) -> jax.Array:
    """Angle modulo pi, in [-pi/2, pi/2): a sheet turned by 180 degrees is the same sheet."""
    return jnp.mod(angle + jnp.pi / 2, jnp.pi) - jnp.pi / 2


def rotate(angle: jax.Array, vector: jax.Array) -> jax.Array:
    """Rotate vectors [..., 2] by `angle`."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    x, y = vector[..., 0], vector[..., 1]
    return jnp.stack([c * x - s * y, s * x + c * y], -1)


def cross(a: jax.Array, b: jax.Array) -> jax.Array:
    """z component of the cross product of plane vectors [..., 2]."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


@dataclasses.dataclass(frozen=True)
class SheetGeometry:
    """Tape rectangle and sheet as plane shapes. A pose is (x, y, yaw) in the world: m, m, rad."""

    goal: tuple[float, float]
    goal_half: tuple[float, float]  # half of the inner opening along world x, y
    sheet_half: tuple[float, float]  # half of the sheet along its own x, y

    @classmethod
    def from_scene(cls, scene: SceneConfig) -> SheetGeometry:
        """The shapes of a scene."""
        inner, sheet = scene.goal_inner, scene.sheet_size
        return cls(scene.goal_center, (inner[0] / 2, inner[1] / 2), (sheet[0] / 2, sheet[1] / 2))

    def translation_left(self, pose: jax.Array) -> jax.Array:
        """[2] from the sheet's centre to the goal, m."""
        return jnp.asarray(self.goal) - pose[:2]

    def rotation_left(self, pose: jax.Array) -> jax.Array:
        """Rotation still to do, modulo 180 degrees, rad. The long sides are parallel at yaw +-90 degrees."""
        return wrap_half_turn(jnp.pi / 2 - pose[2])

    def corners(self, pose: jax.Array) -> jax.Array:
        """[4, 2] corners in the world, m."""
        signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
        return pose[:2] + rotate(pose[2], signs * jnp.asarray(self.sheet_half))

    def overshoot(self, pose: jax.Array) -> jax.Array:
        """How far the outermost corner lies outside the inner rectangle, m; 0 or less is inside."""
        outside = jnp.abs(self.corners(pose) - jnp.asarray(self.goal)) - jnp.asarray(self.goal_half)
        return jnp.max(outside)

    def distance(self, pose: jax.Array) -> jax.Array:
        """Translation left plus `LEVER` times rotation left, m."""
        return jnp.linalg.norm(self.translation_left(pose)) + LEVER * jnp.abs(self.rotation_left(pose))

    def potential(self, pose: jax.Array) -> jax.Array:
        """Phi = -10 d - 2 sqrt(d): rises towards the goal, the root keeps a slope close to it."""
        d = self.distance(pose)
        return -10.0 * d - 2.0 * jnp.sqrt(d)


def path_to_goal(geometry: SheetGeometry, pose: np.ndarray, points: int = 50) -> np.ndarray:
    """[points, 3] poses on the straight way from `pose` to the goal."""
    left = np.append(geometry.translation_left(jnp.asarray(pose)), geometry.rotation_left(jnp.asarray(pose)))
    return np.asarray(pose) + np.linspace(0, 1, points)[:, None] * left
