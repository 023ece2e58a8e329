"""Forward kinematics and geometric Jacobian of the arm, in JAX, with constants read from the MuJoCo model.

Rotations are kept as three column vectors and multiplied out by hand: everything fuses into one kernel for
thousands of arms, and no matrix unit (TF32) touches the result.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.scene import JOINTS

_CHAIN = ("base", "shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "moving_jaw_so101_v1")

Columns = tuple[jax.Array, jax.Array, jax.Array]


def _compose(rotation: Columns, constant: np.ndarray) -> Columns:
    """Columns of `rotation @ constant`."""
    x, y, z = rotation
    return tuple(x * float(c[0]) + y * float(c[1]) + z * float(c[2]) for c in constant.T)  # type: ignore[return-value]


def _apply(rotation: Columns, vector) -> jax.Array:
    return rotation[0] * vector[0] + rotation[1] * vector[1] + rotation[2] * vector[2]


@dataclasses.dataclass(frozen=True, eq=False)
class ArmKinematics:
    """Chain of the SO-101 in the world frame. Joint vectors are 6 long in the order of `scene.JOINTS`, rad."""

    offsets: np.ndarray  # [7, 3] position of each body in its parent, m
    rotations: np.ndarray  # [7, 3, 3] rotation of each body in its parent at zero joint angle
    lower: np.ndarray  # [6] joint target limits, rad
    upper: np.ndarray  # [6]
    end_effector: np.ndarray  # [3] site gripperframe in the gripper body, m
    fixed_fingertip: np.ndarray  # [3] centre of the fixed fingertip in the gripper body, m
    moving_fingertip: np.ndarray  # [3] centre of the moving fingertip in the jaw body, m
    fingertip_radius: float  # mean of the two, m

    @classmethod
    def from_model(cls, model: mujoco.MjModel) -> ArmKinematics:
        """Read the chain from a model made by `load_model`."""
        ids = [model.body(name).id for name in _CHAIN]
        rotations = np.zeros((len(ids), 9))
        for row, body in zip(rotations, ids, strict=True):
            mujoco.mju_quat2Mat(row, model.body_quat[body])
        return cls(
            offsets=model.body_pos[ids].copy(),
            rotations=rotations.reshape(-1, 3, 3),
            lower=np.array([model.actuator(name).ctrlrange[0] for name in JOINTS]),
            upper=np.array([model.actuator(name).ctrlrange[1] for name in JOINTS]),
            end_effector=model.site("gripperframe").pos.copy(),
            fixed_fingertip=model.geom("fixed_fingertip").pos.copy(),
            moving_fingertip=model.geom("moving_fingertip").pos.copy(),
            fingertip_radius=float(
                (model.geom("fixed_fingertip").size[0] + model.geom("moving_fingertip").size[0]) / 2
            ),
        )

    @property
    def pan_axis(self) -> np.ndarray:
        """[2] world x, y of the shoulder-pan axis, m."""
        return (self.offsets[0] + self.rotations[0] @ self.offsets[1])[:2]

    def frames(self, joints: jax.Array) -> list[tuple[jax.Array, Columns]]:
        """World position [3] and rotation (three columns) of base ... jaw, in chain order."""
        position = jnp.asarray(self.offsets[0], joints.dtype)
        rotation: Columns = tuple(jnp.asarray(c, joints.dtype) for c in self.rotations[0].T)  # type: ignore[assignment]
        out = [(position, rotation)]
        for i in range(len(JOINTS)):
            position = position + _apply(rotation, self.offsets[i + 1])
            x, y, z = _compose(rotation, self.rotations[i + 1])
            c, s = jnp.cos(joints[i]), jnp.sin(joints[i])
            rotation = (x * c + y * s, y * c - x * s, z)
            out.append((position, rotation))
        return out

    def end_effector_position(self, joints: jax.Array) -> jax.Array:
        """World position [3] of site gripperframe for joints [6]."""
        position, rotation = self.frames(joints)[5]
        return position + _apply(rotation, self.end_effector)

    def gripper_point(self, joints: jax.Array, local) -> tuple[jax.Array, Columns, jax.Array, jax.Array]:
        """A point fixed in the gripper body: world position [3], gripper rotation (columns), and the Jacobians
        [3, 5] of its position and of the gripper's orientation (world axes) for the five arm joints.

        Column i is z_i x (p - o_i) and z_i: Siciliano et al., Robotics, section 3.1.
        """
        frames = self.frames(joints)
        position, rotation = frames[5]
        point = position + _apply(rotation, local)
        axes = jnp.stack([rot[2] for _, rot in frames[1:6]])  # [5, 3]
        origins = jnp.stack([pos for pos, _ in frames[1:6]])
        return point, rotation, jnp.cross(axes, point - origins).T, axes.T

    def clearance(self, joints: np.ndarray) -> float:
        """Height (m) of the lower fingertip's lowest point over the table for joints [6] (rad)."""
        bodies = self.frames(jnp.asarray(joints, jnp.float32))[5:]
        tips = zip(bodies, (self.fixed_fingertip, self.moving_fingertip), strict=True)
        return float(min((at + _apply(turn, tip))[2] for (at, turn), tip in tips)) - self.fingertip_radius

    def jaw_point_in_gripper(self, grip: float, local: np.ndarray) -> np.ndarray:
        """A point of the jaw body [3], expressed in the gripper body, at gripper joint angle `grip` (rad)."""
        c, s = np.cos(grip), np.sin(grip)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return self.offsets[6] + self.rotations[6] @ turn @ local
