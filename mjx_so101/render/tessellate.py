"""The drawn geoms of a MuJoCo model as triangle meshes, for renderers that know nothing else. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import trimesh

from mjx_so101.errors import ConfigError

DRAWN_GROUPS = (0, 1, 2)
SECTIONS = 32
"""Facets around a cylinder or capsule."""
PLANE_THICKNESS = 0.002
"""A plane becomes a slab below its surface (m): a box without volume breaks Madrona's quantized bounds."""
_ENDLESS = 5.0  # half the side (m) of a plane whose size is 0, which in MuJoCo has no end
_DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)


class Triangles(NamedTuple):
    """A mesh in the geom's own frame. Faces wind anticlockwise seen from outside; faces that share vertices are shaded
    as one smooth surface, so sharp edges have vertices of their own on either side.
    """

    vertices: np.ndarray  # [vertex, 3] float32 m
    faces: np.ndarray  # [face, 3] int32


def drawn_geoms(model: mujoco.MjModel) -> list[int]:
    """Ids of the geoms that a camera sees: in a drawn group, and not fully transparent."""
    return [g for g in range(model.ngeom) if model.geom_group[g] in DRAWN_GROUPS and own_rgba(model, g)[3] > 0]


def draws_material(model: mujoco.MjModel, geom: int) -> bool:
    """Whether the geom's material gives its colour; a geom with a colour of its own keeps that, as in MuJoCo."""
    return bool(model.geom_matid[geom] >= 0 and np.allclose(model.geom_rgba[geom], _DEFAULT_RGBA))


def own_rgba(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """The geom's sRGB colour and opacity [4]."""
    return model.mat_rgba[model.geom_matid[geom]] if draws_material(model, geom) else model.geom_rgba[geom]


def tessellate(model: mujoco.MjModel, geom: int) -> Triangles:
    """Triangles of one geom. Raises ConfigError for a height field or a signed distance field."""
    kind, size = mujoco.mjtGeom(model.geom_type[geom]), np.asarray(model.geom_size[geom], float)
    kinds = mujoco.mjtGeom
    if kind == kinds.mjGEOM_MESH:
        return _mesh(model, int(model.geom_dataid[geom]))
    if kind == kinds.mjGEOM_BOX:
        return _box(size)
    if kind == kinds.mjGEOM_PLANE:
        half = np.where(size[:2] > 0, size[:2], _ENDLESS)
        return _box(np.array([*half, PLANE_THICKNESS / 2]), lift=-PLANE_THICKNESS / 2)
    if kind == kinds.mjGEOM_SPHERE:
        return _smooth(trimesh.creation.icosphere(3, size[0]))
    if kind == kinds.mjGEOM_ELLIPSOID:
        ball = trimesh.creation.icosphere(3)
        return Triangles((ball.vertices * size).astype(np.float32), ball.faces.astype(np.int32))
    if kind == kinds.mjGEOM_CAPSULE:
        return _capsule(size[0], size[1])
    if kind == kinds.mjGEOM_CYLINDER:
        return _cylinder(size[0], size[1])
    raise ConfigError(
        f"geom {geom} ({model.geom(geom).name!r}) is of type {kind.name}, which cannot be made of triangles here; "
        "draw this scene with renderer 'warp' or 'mujoco'."
    )


def offsets(arrays: list[np.ndarray]) -> np.ndarray:
    """Row at which each array begins once all are joined, int32."""
    return np.cumsum([0, *(len(array) for array in arrays[:-1])]).astype(np.int32)


def _smooth(mesh: trimesh.Trimesh) -> Triangles:
    return Triangles(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32))


def _flat(vertices: np.ndarray, faces: np.ndarray) -> Triangles:
    """Every face with three vertices of its own, so that it is shaded flat."""
    return Triangles(
        np.asarray(vertices[faces].reshape(-1, 3), np.float32), np.arange(faces.size, dtype=np.int32).reshape(-1, 3)
    )


def _join(parts: list[Triangles]) -> Triangles:
    starts = offsets([part.vertices for part in parts])
    faces = [part.faces + start for part, start in zip(parts, starts, strict=True)]
    return Triangles(np.concatenate([part.vertices for part in parts]), np.concatenate(faces))


def _box(half: np.ndarray, lift: float = 0.0) -> Triangles:
    box = trimesh.creation.box(2 * half)
    return _flat(box.vertices + (0, 0, lift), box.faces)


def _capsule(radius: float, half_length: float) -> Triangles:
    capsule = trimesh.creation.capsule(2 * half_length, radius, count=[SECTIONS, SECTIONS])
    capsule.apply_translation(-capsule.bounds.mean(0))
    return _smooth(capsule)


def _cylinder(radius: float, half_length: float) -> Triangles:
    """A smooth side and two flat ends."""
    angle = 2 * np.pi * np.arange(SECTIONS) / SECTIONS
    rim = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(SECTIONS)], -1)
    low, high = rim - (0, 0, half_length), rim + (0, 0, half_length)
    here, after = np.arange(SECTIONS), (np.arange(SECTIONS) + 1) % SECTIONS
    side = np.concatenate(
        [np.stack([here, after, here + SECTIONS], -1), np.stack([after, after + SECTIONS, here + SECTIONS], -1)]
    )
    fan = np.stack([np.full(SECTIONS, SECTIONS), here, after], -1)
    top = _flat(np.concatenate([high, [[0, 0, half_length]]]), fan)
    bottom = _flat(np.concatenate([low, [[0, 0, -half_length]]]), fan[:, ::-1])
    return _join([Triangles(np.concatenate([low, high]).astype(np.float32), side.astype(np.int32)), top, bottom])


def _mesh(model: mujoco.MjModel, mesh: int) -> Triangles:
    vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    return Triangles(
        np.array(model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]], np.float32),
        np.array(model.mesh_face[face : face + model.mesh_facenum[mesh]], np.int32),
    )
