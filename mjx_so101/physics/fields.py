"""Which fields of a MuJoCo model an `EnvParams` sets: one pure function for all physics backends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.params import EnvParams
from mjx_so101.scene import JOINTS, SHEET_JOINTS


class ModelFields:
    """Maps EnvParams to model fields. Nominal values come from the given model."""

    NAMES = (
        "body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_damping",
        "dof_frictionloss", "pair_friction", "actuator_gainprm", "actuator_biasprm", "actuator_forcerange",
    )  # fmt: skip

    def __init__(self, model: mujoco.MjModel):
        self.nominal = {name: np.array(getattr(model, name), np.float32) for name in self.NAMES}
        self.sheet_body = model.body("paper").id
        self.sheet_dofs = np.array([model.joint(name).dofadr[0] for name in SHEET_JOINTS])
        self.arm_dofs = np.array([model.joint(name).dofadr[0] for name in JOINTS])
        self.sheet_pairs = np.array([i for i in range(model.npair) if "paper" in model.pair(i).name])

    def __call__(self, params: EnvParams) -> dict[str, jax.Array]:
        """Fields of one environment; vmap over [env].

        A sheet that weighs s times as much has s times the inertia and 1/s of the inverse weights, as
        mj_setConst would compute: the sheet is alone in its kinematic tree.
        """
        new = {name: jnp.asarray(value) for name, value in self.nominal.items()}
        sheet, mass = self.sheet_body, params.sheet_mass_scale
        extra = self.nominal["body_mass"][sheet] * (mass - 1)
        new["body_mass"] = new["body_mass"].at[sheet].multiply(mass)
        new["body_inertia"] = new["body_inertia"].at[sheet].multiply(mass)
        new["body_subtreemass"] = new["body_subtreemass"].at[jnp.array([0, sheet])].add(extra)
        new["body_invweight0"] = new["body_invweight0"].at[sheet].divide(mass)
        new["dof_invweight0"] = new["dof_invweight0"].at[self.sheet_dofs].divide(mass)
        damping = new["dof_damping"].at[self.sheet_dofs].multiply(params.sheet_damping_scale)
        new["dof_damping"] = damping.at[self.arm_dofs].multiply(params.joint_damping_scale)
        new["dof_frictionloss"] = new["dof_frictionloss"].at[self.sheet_dofs].multiply(params.sheet_friction_scale)
        new["pair_friction"] = new["pair_friction"].at[self.sheet_pairs, :2].set(params.fingertip_friction)
        new["actuator_gainprm"] = new["actuator_gainprm"].at[:, 0].multiply(params.kp_scale)
        new["actuator_biasprm"] = new["actuator_biasprm"].at[:, 1].multiply(params.kp_scale)
        new["actuator_forcerange"] = new["actuator_forcerange"] * params.force_limit_scale
        return new
