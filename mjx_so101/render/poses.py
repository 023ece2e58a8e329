"""World poses of everything that is drawn, from qpos: the only kinematics that renderers need, in pure JAX.

Products are sums over an axis, not matrix products: an H100 would round those to TF32, which put cameras and shapes off
by up to 0.25 mm and 1.2 mrad.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.errors import ConfigError


class Poses(NamedTuple):
    """World positions (m) and rotation matrices of one environment."""

    geom_xpos: jax.Array  # [geom, 3]
    geom_xmat: jax.Array  # [geom, 3, 3]
    cam_xpos: jax.Array  # [camera, 3]
    cam_xmat: jax.Array  # [camera, 3, 3], columns right, up, back
    light_xpos: jax.Array  # [light, 3]
    light_xdir: jax.Array  # [light, 3]


def rotation_matrix(quat: jax.Array) -> jax.Array:
    """[..., 3, 3] from unit quaternions [..., 4], w first."""
    w, x, y, z = jnp.moveaxis(quat, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def about_axis(axis: jax.Array, angle: jax.Array) -> jax.Array:
    """[3, 3] rotation by `angle` (rad) about the unit vector `axis` [3] (Rodrigues)."""
    x, y, z = axis
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    square = axis[:, None] * axis[None, :] - jnp.eye(3)  # of `skew`
    return jnp.eye(3) + jnp.sin(angle) * skew + (1 - jnp.cos(angle)) * square


def turned(mat: jax.Array, vector: jax.Array | np.ndarray) -> jax.Array:
    """mat [..., 3, 3] times vector [..., 3], in full float32 on every device."""
    return jnp.sum(mat * vector[..., None, :], -1)


def product(left: jax.Array, right: jax.Array | np.ndarray) -> jax.Array:
    """left [..., 3, 3] times right [..., 3, 3], in full float32 on every device."""
    return jnp.sum(left[..., :, :, None] * right[..., None, :, :], -2)


class SceneKinematics:
    """Maps qpos [nq] and model fields (see `render.looks`) to `Poses`. For models of hinge and slide joints."""

    def __init__(self, model: mujoco.MjModel):
        hinge, slide = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
        if not set(model.jnt_type.tolist()) <= {int(hinge), int(slide)}:
            raise ConfigError("only hinge and slide joints can be drawn; the scene holds another kind.")
        self._parent = model.body_parentid.tolist()
        self._body_pos = np.array(model.body_pos, np.float32)
        self._body_mat = np.asarray(rotation_matrix(jnp.asarray(model.body_quat)), np.float32)
        self._joints = [
            [
                (model.jnt_type[j] == hinge, int(model.jnt_qposadr[j]), np.array(model.jnt_axis[j], np.float32),
                 np.array(model.jnt_pos[j], np.float32), float(model.qpos0[model.jnt_qposadr[j]]))
                for j in range(adr, adr + count)
            ]
            for adr, count in zip(model.body_jntadr, model.body_jntnum, strict=True)
        ]  # fmt: skip
        self._geom_body = np.array(model.geom_bodyid)
        self._geom_pos = np.array(model.geom_pos, np.float32)
        self._geom_mat = np.asarray(rotation_matrix(jnp.asarray(model.geom_quat)), np.float32)
        self._cam_body = np.array(model.cam_bodyid)
        self._light_body = np.array(model.light_bodyid)

    def __call__(self, qpos: jax.Array, fields: dict[str, jax.Array]) -> Poses:
        """Poses of one environment. fields: cam_pos, cam_quat, light_pos, light_dir; vmap for more."""
        xpos, xmat = self._bodies(qpos)

        def place(body, pos):
            return xpos[body] + turned(xmat[body], pos)

        return Poses(
            geom_xpos=place(self._geom_body, self._geom_pos),
            geom_xmat=product(xmat[self._geom_body], self._geom_mat),
            cam_xpos=place(self._cam_body, fields["cam_pos"]),
            cam_xmat=product(xmat[self._cam_body], rotation_matrix(fields["cam_quat"])),
            light_xpos=place(self._light_body, fields["light_pos"]),
            light_xdir=turned(xmat[self._light_body], fields["light_dir"]),
        )

    def _bodies(self, qpos: jax.Array) -> tuple[jax.Array, jax.Array]:
        xpos, xmat = [jnp.zeros(3)], [jnp.eye(3)]
        for body in range(1, len(self._parent)):
            parent = self._parent[body]
            pos = xpos[parent] + turned(xmat[parent], self._body_pos[body])
            mat = product(xmat[parent], self._body_mat[body])
            for is_hinge, adr, axis, anchor, zero in self._joints[body]:
                moved = qpos[adr] - zero
                if is_hinge:
                    world_anchor = pos + turned(mat, anchor)
                    mat = product(mat, about_axis(jnp.asarray(axis), moved))
                    pos = world_anchor - turned(mat, anchor)
                else:
                    pos = pos + turned(mat, axis) * moved
            xpos.append(pos)
            xmat.append(mat)
        return jnp.stack(xpos), jnp.stack(xmat)
