"""Differential inverse kinematics of the five arm joints by damped least squares, in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mjx_so101.geometry import wrap
from mjx_so101.kinematics import ArmKinematics


def solve_spd(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solve A x = b for a small symmetric positive definite A [n, n] by an unrolled Cholesky factorization.

    Unrolled because thousands of 5 x 5 systems then run as one fused kernel instead of library calls.
    """
    n = vector.shape[0]
    lower = [[jnp.zeros(())] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            rest = matrix[i, j] - sum((lower[i][k] * lower[j][k] for k in range(j)), jnp.zeros(()))
            lower[i][j] = jnp.sqrt(rest) if i == j else rest / lower[j][j]
    y: list[jax.Array] = []
    for i in range(n):
        y.append((vector[i] - sum((lower[i][k] * y[k] for k in range(i)), jnp.zeros(()))) / lower[i][i])
    x = [jnp.zeros(())] * n
    for i in reversed(range(n)):
        x[i] = (y[i] - sum((lower[k][i] * x[k] for k in range(i + 1, n)), jnp.zeros(()))) / lower[i][i]
    return jnp.stack(x)


def heading_of(rotation) -> jax.Array:
    """Azimuth (rad) of the gripper's x axis, along which the two fingertips lie."""
    return jnp.arctan2(rotation[0][1], rotation[0][0])


def scaled_to(step: jax.Array, largest: float) -> jax.Array:
    """The step, shortened as a whole so that no entry exceeds `largest`: its direction stays."""
    return step * jnp.minimum(1.0, largest / (jnp.max(jnp.abs(step)) + 1e-9))


def reach_point(
    kinematics: ArmKinematics,
    joints: jax.Array,
    local,
    position: jax.Array,
    approach: jax.Array,
    heading: jax.Array | None,
    iterations: int = 3,
    damping: float = 0.005,
    rotation_weight: float = 0.01,
    max_step: float = 0.3,
) -> jax.Array:
    """Arm joints [5] that bring a point of the gripper to `position` with the hand pointing along `approach`.

    joints: start [5], rad; local: the point in the gripper body [3], m; position [3], m; approach: unit vector [3]
    of the hand's -z axis; heading: azimuth of the gripper's x axis (rad), or None to leave the wrist roll alone.
    rotation_weight (m/rad) trades orientation against position. Damped least squares: Buss, "Introduction to
    inverse kinematics with Jacobian transpose, pseudoinverse and damped least squares methods" (2004), eq. 11.
    """
    lower, upper = jnp.asarray(kinematics.lower[:5]), jnp.asarray(kinematics.upper[:5])
    for _ in range(iterations):
        point, rotation, linear, angular = kinematics.gripper_point(joints, local)
        turn = jnp.cross(-rotation[2], approach)
        if heading is None:
            linear, angular = linear.at[:, 4].set(0.0), angular.at[:, 4].set(0.0)
            pitch_axis = angular[:, 3]  # without the roll the hand tilts in the arm's plane only
            turn = pitch_axis * jnp.sum(pitch_axis * turn)
        else:
            turn = turn.at[2].add(wrap(heading - heading_of(rotation)))
        jacobian = jnp.concatenate([linear, rotation_weight * angular])  # [6, 5]
        error = jnp.concatenate([position - point, rotation_weight * jnp.clip(turn, -0.5, 0.5)])
        normal = (jacobian[:, :, None] * jacobian[:, None, :]).sum(0) + damping**2 * jnp.eye(5)
        step = solve_spd(normal, (jacobian * error[:, None]).sum(0))
        joints = jnp.clip(joints + scaled_to(step, max_step), lower, upper)
    return joints
