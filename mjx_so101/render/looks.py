"""Which fields of a MuJoCo model the looks of an `EnvParams` set: one pure function for all renderers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.params import SHEET_TEXTURES, TABLE_TEXTURES, EnvParams
from mjx_so101.render.poses import about_axis, product, turned
from mjx_so101.scene import CAMERAS

COLORED = {"table": "table", "sheet": "sheet", "tape": "tape", "link": "link", "finger": "finger"}
"""Material: first part of the name of its colour's field."""
MAIN_LIGHT = "main"
"""The lamp of the scene, which looks move and tint."""


class Looks:
    """Maps EnvParams to model fields. Nominal values come from the given model, and nominal looks give them back."""

    NAMES = (
        "mat_rgba", "mat_texid", "light_pos", "light_dir", "light_ambient", "light_diffuse", "light_specular",
        "light_castshadow", "cam_pos", "cam_quat", "cam_fovy",
    )  # fmt: skip

    def __init__(self, model: mujoco.MjModel):
        kinds = {"mat_texid": np.int32, "light_castshadow": bool}
        self.nominal = {name: np.array(getattr(model, name), kinds.get(name, np.float32)) for name in self.NAMES}
        self._materials = {
            field: [i for i in range(model.nmat) if model.mat(i).name.split("/")[0] == material]
            for material, field in COLORED.items()
        }
        self._textures = {
            "table": np.array([model.texture(name).id for name in TABLE_TEXTURES], np.int32),
            "sheet": np.array([model.texture(name).id for name in SHEET_TEXTURES], np.int32),
        }
        self._light = model.light(MAIN_LIGHT).id
        self._cameras = {name: model.camera(name).id for name in CAMERAS}
        self._pivot = np.array([*model.geom("tape_0").pos[:2], 0.0], np.float32)

    def __call__(self, params: EnvParams) -> dict[str, jax.Array]:
        """Fields of one environment; vmap over [env]."""
        new = {name: jnp.asarray(value) for name, value in self.nominal.items()}
        self._surfaces(new, params)
        self._lights(new, params)
        for name, camera in self._cameras.items():
            position, turn, fovy = (
                getattr(params, f"{name}_camera_{what}") for what in ("position", "rotation", "fovy")
            )
            new["cam_pos"] = new["cam_pos"].at[camera].add(position)
            new["cam_quat"] = new["cam_quat"].at[camera].set(_turn_quaternion(self.nominal["cam_quat"][camera], turn))
            new["cam_fovy"] = new["cam_fovy"].at[camera].add(fovy)
        return new

    def _surfaces(self, new: dict[str, jax.Array], params: EnvParams) -> None:
        for field, materials in self._materials.items():
            for material in materials:
                color = self.nominal["mat_rgba"][material, :3] + getattr(params, f"{field}_color")
                new["mat_rgba"] = new["mat_rgba"].at[material, :3].set(jnp.clip(color, 0.0, 1.0))
        role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
        for field, textures in self._textures.items():
            which = jnp.asarray(textures)[getattr(params, f"{field}_texture")]
            new["mat_texid"] = new["mat_texid"].at[self._materials[field][0], role].set(which)

    def _lights(self, new: dict[str, jax.Array], params: EnvParams) -> None:
        main = self._light
        turn = about_axis(jnp.array([0.0, 0.0, 1.0]), params.light_azimuth)
        turn = product(turn, about_axis(jnp.array([0.0, 1.0, 0.0]), params.light_tilt))
        position = self._pivot + turned(turn, self.nominal["light_pos"][main] - self._pivot)
        new["light_pos"] = new["light_pos"].at[main].set(position)
        new["light_dir"] = new["light_dir"].at[main].set(turned(turn, self.nominal["light_dir"][main]))
        for name in ("light_ambient", "light_diffuse", "light_specular"):
            new[name] = new[name] * params.light_intensity
        for name in ("light_diffuse", "light_specular"):
            new[name] = new[name].at[main].multiply(params.light_color)
        on = self.nominal["light_castshadow"][main] & (params.light_shadow > 0)
        new["light_castshadow"] = new["light_castshadow"].at[main].set(on)


def _turn_quaternion(quat: np.ndarray, vector: jax.Array) -> jax.Array:
    """quat [4] followed by a rotation about its own axes by the rotation vector [3] (rad)."""
    angle = jnp.sqrt(jnp.sum(vector**2) + 1e-24)
    w, (x, y, z) = jnp.cos(angle / 2), vector / angle * jnp.sin(angle / 2)
    a, b, c, d = quat
    return jnp.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )
