"""Colours and lights for a renderer that adds light in linear space, from a model that MuJoCo shades in sRGB.

NumPy only: Madrona has to be built before JAX may be used.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.params import SHEET_TEXTURES, TABLE_TEXTURES, EnvParams
from mjx_so101.render.color import linear_to_srgb, srgb_to_linear
from mjx_so101.render.looks import COLORED, MAIN_LIGHT
from mjx_so101.render.tessellate import draws_material

MADRONA_AMBIENT = 0.05
"""Linear light that Madrona's ray tracer adds everywhere (bvh_raycast.cpp, computeFragment)."""
_THIRD, _SIDE = 1 / 3, np.sqrt(8) / 3
_AROUND = np.array(
    [[0, 0, -1], *([_SIDE * np.cos(a), _SIDE * np.sin(a), _THIRD] for a in 2 * np.pi * np.arange(3) / 3)]
)
"""Directions of four equal lights that stand in for ambient light: a regular tetrahedron. Each face gets 0.82 to 1.15
of one light's strength, a face that looks straight up or down exactly 1.
"""


class Lights(NamedTuple):
    """Directional lights in linear space, the scene's own first."""

    direction: np.ndarray  # [env, light, 3] float32, unit, away from the light
    color: np.ndarray  # [env, light, 3] float32 linear
    castshadow: np.ndarray  # [env, light] bool


def repair_table() -> np.ndarray:
    """uint8 [256]: what each byte of Madrona's ray tracer should have been.

    It encodes to sRGB itself, but switches to the linear part at 0.00031308 in place of 0.0031308, which darkens bytes
    below 11, and it cuts off fractions. Bytes from 11 on stay as they are; what it drew as 0 stays 0.
    """
    linear = ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
    table = np.floor(255 * linear_to_srgb(linear) + 0.5).astype(np.uint8)
    table[0] = 0
    return table


def background(model: mujoco.MjModel) -> np.ndarray:
    """uint8 [3] mean colour of the sky, black where the model has none. Madrona itself draws no sky."""
    for i in range(model.ntex):
        if model.tex_type[i] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            return np.round(_texels(model, i).mean(0)).astype(np.uint8)
    return np.zeros(3, np.uint8)


def geom_colors(model: mujoco.MjModel, geoms: list[int], textures: bool, looks: EnvParams | None = None) -> np.ndarray:
    """sRGB [env, geom, 3] of the given geoms; [1, geom, 3] without looks. A texture enters by its mean colour."""
    material = _material_colors(model, textures, looks)  # [env, mat, 3]
    own = np.broadcast_to(model.geom_rgba[geoms, :3], (len(material), len(geoms), 3))
    from_material = np.array([draws_material(model, geom) for geom in geoms])
    chosen = material[:, np.maximum(model.geom_matid[geoms], 0)] if model.nmat else own
    return np.where(from_material[None, :, None], chosen, own)


def scene_lights(model: mujoco.MjModel, shadows: bool, looks: EnvParams | None = None) -> Lights:
    """Lights [env, ...] that shade a face looking up as MuJoCo does, in the light and in the shadow.

    MuJoCo adds lights in sRGB: ambient, then fills, then the lights that cast shadows. Each is given the linear light
    that makes the same step here; four lights from all around stand in for the ambient one. Other faces come close.
    A headlight enters by its ambient part. Raises ConfigError for a light that is not directional.
    """
    active = [i for i in range(model.nlight) if model.light_active[i]]
    for i in active:
        if model.light_type[i] != mujoco.mjtLightType.mjLIGHT_DIRECTIONAL:
            raise ConfigError(f"light {model.light(i).name!r} is not directional; Madrona is given no other kind here.")
    direction, diffuse, ambient, cast = _light_fields(model, looks)
    envs = len(direction)
    head = model.vis.headlight
    level = ambient[:, active].sum(1) + (head.ambient if head.active else 0.0)
    around = np.maximum(srgb_to_linear(level) - MADRONA_AMBIENT, 0.0)  # [env, 3]
    color = np.zeros((envs, len(active), 3))
    for i in sorted(active, key=lambda i: bool(model.light_castshadow[i])):
        upward = np.maximum(-direction[:, i, 2:], 0.0)
        step = srgb_to_linear(level + diffuse[:, i] * upward) - srgb_to_linear(level)
        lit = upward > 1e-3
        color[:, active.index(i)] = np.where(lit, step / np.where(lit, upward, 1.0), srgb_to_linear(diffuse[:, i]))
        level = level + diffuse[:, i] * upward
    every = (envs, len(_AROUND), 3)
    return Lights(
        np.concatenate([direction[:, active], np.broadcast_to(_AROUND, every)], 1).astype(np.float32),
        np.concatenate([color, np.broadcast_to(around[:, None], every)], 1).astype(np.float32),
        np.concatenate([cast[:, active] & shadows, np.zeros(every[:2], bool)], 1),
    )


def _material_colors(model: mujoco.MjModel, textures: bool, looks: EnvParams | None) -> np.ndarray:
    """sRGB [env, material, 3], looks and mean texture included; the same as render.looks."""
    envs = 1 if looks is None else len(looks.table_color)
    color = np.repeat(np.asarray(model.mat_rgba, float)[None, :, :3], envs, 0)
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    texture = np.repeat(np.array(model.mat_texid[:, role])[None], envs, 0)
    choices = {"table": TABLE_TEXTURES, "sheet": SHEET_TEXTURES}
    for i in range(model.nmat):
        field = COLORED.get(model.mat(i).name.split("/")[0])
        if looks is None or field is None:
            continue
        color[:, i] = np.clip(color[:, i] + getattr(looks, f"{field}_color"), 0.0, 1.0)
        if field in choices:
            ids = np.array([model.texture(name).id for name in choices[field]])
            texture[:, i] = ids[np.asarray(getattr(looks, f"{field}_texture"))]
    if not textures or not model.ntex:
        return color
    mean = np.array([_texels(model, i).mean(0) / 255 for i in range(model.ntex)])
    return np.where(texture[..., None] >= 0, color * mean[texture], color)


def _light_fields(model: mujoco.MjModel, looks: EnvParams | None) -> tuple[np.ndarray, ...]:
    """Direction, diffuse and ambient [env, light, 3] and castshadow [env, light]; the same as render.looks."""
    envs = 1 if looks is None else len(looks.light_tilt)
    names = ("light_dir", "light_diffuse", "light_ambient")
    direction, diffuse, ambient = (np.repeat(np.asarray(getattr(model, n), float)[None], envs, 0) for n in names)
    cast = np.repeat(np.asarray(model.light_castshadow, bool)[None], envs, 0)
    if looks is not None:
        main = model.light(MAIN_LIGHT).id
        direction[:, main] = _turned(direction[:, main], np.asarray(looks.light_azimuth), np.asarray(looks.light_tilt))
        strength = np.asarray(looks.light_intensity)[:, None, None]
        diffuse, ambient = diffuse * strength, ambient * strength
        diffuse[:, main] *= looks.light_color
        cast[:, main] &= np.asarray(looks.light_shadow) > 0
    return direction, diffuse, ambient, cast


def _turned(vector: np.ndarray, azimuth: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """[env, 3] turned about y by `tilt`, then about z by `azimuth` (rad)."""
    x, y, z = vector.T
    x, z = np.cos(tilt) * x + np.sin(tilt) * z, np.cos(tilt) * z - np.sin(tilt) * x
    return np.stack([np.cos(azimuth) * x - np.sin(azimuth) * y, np.sin(azimuth) * x + np.cos(azimuth) * y, z], -1)


def _texels(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """uint8 [texel, 3]."""
    channels, start = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
    count = int(model.tex_height[texture] * model.tex_width[texture])
    return np.asarray(model.tex_data[start : start + count * channels]).reshape(count, channels)[:, :3]
