"""What of a model is drawn: its flat and round surfaces and the solids that cast shadows. NumPy, once per renderer."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.render.tessellate import tessellate
from mjx_so101.scene import COARSE

RECTANGLE, DISK = 0, 1
"""Outline of a flat surface, in its own coordinates a, b: |a|, |b| <= 1; a2 + b2 <= 1."""
STAND_IN, BOX, CYLINDER, ELLIPSOID = -1, 0, 1, 2
"""Kinds of solids. A stand-in is a box that is not drawn and casts the shadow of meshes."""
MAX_CASTERS = 64
"""Bits of a mask of casters."""
MAX_SURFACES = 2048
_GROWN = 1e-3
"""Triangles are drawn larger by this share, a few hundredths of a millimetre, so that rounding leaves no gaps."""
_NO_AREA = 1e-10  # m2: twice the area of what is left out
_SHEET = 0.0005
"""A box with a half height (m) below this is drawn as its upper face alone and casts no shadow."""
_HIDDEN_GROUP = 3  # MuJoCo's renderer draws geom groups 0 to 2
_OTHERS = "Draw with renderer 'warp' or 'mujoco'."
_Geom, _Light = mujoco.mjtGeom, mujoco.mjtLightType
_SOLIDS = {
    int(_Geom.mjGEOM_BOX): BOX, int(_Geom.mjGEOM_CYLINDER): CYLINDER,
    int(_Geom.mjGEOM_ELLIPSOID): ELLIPSOID, int(_Geom.mjGEOM_SPHERE): ELLIPSOID,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flat:
    """Flat surfaces, one row each. Vectors [n, 3] are in the frame of the surface's geom (m)."""

    geom: np.ndarray  # int32 [n] index into `Surfaces.geoms`
    outline: np.ndarray  # int32 [n]
    mirrored: np.ndarray  # int32 [n] 1: the geom has a second one at -center; the camera sees at most one of the two
    center: np.ndarray
    normal: np.ndarray  # unit, outwards
    half_a: np.ndarray  # from the center to a = 1
    half_b: np.ndarray
    to_a: np.ndarray  # 1/m: a = to_a . (p - center)
    to_b: np.ndarray


@dataclasses.dataclass(frozen=True)
class Round:
    """Ellipsoids and the sides of cylinders, one row each, centred on their geom's frame."""

    geom: np.ndarray  # int32 [n]
    kind: np.ndarray  # int32 [n]
    size: np.ndarray  # [n, 3] half axes (m)


@dataclasses.dataclass(frozen=True)
class Triangles:
    """Triangles of meshes, one row each; vectors [n, 3] as in `Flat`: corners have a, b = (-1, -1), (1, -1), (-1, 1).

    So the center is the middle of the longest side in a, b, and inside is a, b >= -1 and a + b <= 0.
    """

    geom: np.ndarray  # int32 [n]
    center: np.ndarray
    normal: np.ndarray
    half_a: np.ndarray
    half_b: np.ndarray
    to_a: np.ndarray
    to_b: np.ndarray


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """All that is drawn, and what casts shadows.

    Meshes cast none themselves, thousands of triangles would cost too much: where there are any, the hidden boxes of
    the coarse robot cast them instead. What lies inside such a box is not shaded by it.
    """

    geoms: np.ndarray  # int32 [g] id in the model; those on the ground come first, stand-ins last
    material: np.ndarray  # int32 [g]
    ground: int  # how many of `geoms` lie on the ground
    flat: Flat  # in the order of `geoms`, so that the ground's come first
    ground_flat: int  # how many of `flat` belong to the ground
    round: Round
    triangles: Triangles
    casters: Round  # solids that cast shadows; boxes too
    shaded: Round  # boxes around meshes, on which shadows fall


def surfaces_of(model: mujoco.MjModel, specular: bool = True) -> Surfaces:
    """Surfaces of what MuJoCo would draw. Raises ConfigError, by name, for anything that has no formula here."""
    check_drawable(model, specular)
    drawn = [i for i in range(model.ngeom) if model.geom_group[i] < _HIDDEN_GROUP and _opaque(model, i)]
    ground = [i for i in drawn if _on_ground(model, i)]
    meshes = [i for i in drawn if model.geom_type[i] == _Geom.mjGEOM_MESH]
    stand_ins = [i for i in range(model.ngeom) if meshes and i not in drawn and model.geom(i).name.startswith(COARSE)]
    geoms = ground + [i for i in drawn if i not in ground] + stand_ins
    flat = [(row, *face) for row, i in enumerate(geoms) if i not in stand_ins for face in _faces(model, i)]
    triangles = [(geoms.index(i), *triangle) for i in meshes for triangle in _triangles(model, i)]
    solids = [(row, STAND_IN if i in stand_ins else _SOLIDS[int(model.geom_type[i])], _half_axes(model, i))
              for row, i in enumerate(geoms) if row >= len(ground) and int(model.geom_type[i]) in _SOLIDS]  # fmt: skip
    found = Surfaces(
        geoms=np.array(geoms, np.int32),
        material=np.array(model.geom_matid[geoms], np.int32),
        ground=len(ground),
        flat=_flat(flat),
        ground_flat=sum(row < len(ground) for row, *_ in flat),
        round=_round([solid for solid in solids if solid[1] > BOX]),
        triangles=_of_meshes(triangles),
        casters=_round(solids),
        shaded=_round([(geoms.index(i), BOX, np.abs(_corners(model, i)).max((0, 1))) for i in meshes]),
    )
    count = len(found.flat.geom) + len(found.round.geom) + len(triangles)
    if len(solids) > MAX_CASTERS or count > MAX_SURFACES:
        fewer = f" ({len(triangles)} of them triangles of meshes: lower mesh_triangles)" if triangles else ""
        raise ConfigError(
            f"the scene has {count} surfaces{fewer} and {len(solids)} solids that cast shadows; renderer 'quad' holds "
            f"{MAX_SURFACES} and {MAX_CASTERS}. {_OTHERS}"
        )
    return found


def check_drawable(model: mujoco.MjModel, specular: bool = True) -> None:
    """Raise ConfigError for what renderer 'quad' has no formula for: it is named, with the renderers that can.

    specular: whether highlights are wanted, of which it has none.
    """
    for i in range(model.ngeom):
        if model.geom_group[i] >= _HIDDEN_GROUP or not _opaque(model, i):
            continue
        kind, name = _Geom(int(model.geom_type[i])), model.geom(i).name or f"number {i}"
        what = kind.name.removeprefix("mjGEOM_").lower()
        if int(kind) not in {int(_Geom.mjGEOM_PLANE), int(_Geom.mjGEOM_MESH), *_SOLIDS}:
            raise ConfigError(f"geom {name!r} is a {what}, which renderer 'quad' cannot draw. {_OTHERS}")
        if kind == _Geom.mjGEOM_PLANE and min(model.geom_size[i][:2]) <= 0:
            raise ConfigError(f"geom {name!r} is an infinite plane, which renderer 'quad' cannot draw. {_OTHERS}")
        if model.geom_matid[i] < 0:
            raise ConfigError(f"geom {name!r} has no material, which renderer 'quad' needs. {_OTHERS}")
        textured = (model.mat_texid[model.geom_matid[i]] >= 0).any()
        if textured and not _on_ground(model, i):
            raise ConfigError(f"geom {name!r} is a {what} with a texture, which renderer 'quad' cannot draw. {_OTHERS}")
    for name in ("specular", "emission", "reflectance")[not specular :]:
        shiny = np.flatnonzero(getattr(model, f"mat_{name}"))
        if len(shiny):
            raise ConfigError(
                f"material {model.mat(shiny[0]).name!r} has {name}, which renderer 'quad' leaves out. {_OTHERS}"
            )
    lamps = [i for i in range(model.nlight) if model.light_active[i]]
    if len(lamps) != 1 or model.light_type[lamps[0]] != _Light.mjLIGHT_DIRECTIONAL:
        names = ", ".join(repr(model.light(i).name) for i in lamps) or "none"
        raise ConfigError(f"renderer 'quad' needs one directional lamp; the scene's lights are {names}. {_OTHERS}")
    if model.vis.headlight.active and np.any(model.vis.headlight.diffuse):
        raise ConfigError(f"the headlight has a diffuse part, which renderer 'quad' cannot draw. {_OTHERS}")


def _opaque(model: mujoco.MjModel, geom: int) -> bool:
    material = model.geom_matid[geom]
    return (model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom])[3] > 0


def _on_ground(model: mujoco.MjModel, geom: int) -> bool:
    box = model.geom_type[geom] == _Geom.mjGEOM_BOX
    return bool(model.geom_type[geom] == _Geom.mjGEOM_PLANE or (box and model.geom_size[geom][2] < _SHEET))


def _half_axes(model: mujoco.MjModel, geom: int) -> np.ndarray:
    size, kind = np.array(model.geom_size[geom]), model.geom_type[geom]
    if kind == _Geom.mjGEOM_SPHERE:
        return np.full(3, size[0])
    return np.array([size[0], size[0], size[1]]) if kind == _Geom.mjGEOM_CYLINDER else size


def _faces(model: mujoco.MjModel, geom: int) -> list[tuple]:
    """(outline, mirrored, center, normal, half_a, half_b) of a geom's flat surfaces.

    Axes a, b are the geom's own x, y on a face that looks along z, and so on in turn; textures count on it.
    """
    kind, half = model.geom_type[geom], _half_axes(model, geom)
    axes, unit = np.diag(half), np.eye(3)
    if kind == _Geom.mjGEOM_PLANE:
        return [(RECTANGLE, 0, np.zeros(3), unit[2], axes[0], axes[1])]
    if _on_ground(model, geom):
        return [(RECTANGLE, 0, axes[2], unit[2], axes[0], axes[1])]
    if kind == _Geom.mjGEOM_BOX:
        return [(RECTANGLE, 1, axes[k], unit[k], axes[(k + 1) % 3], axes[(k + 2) % 3]) for k in range(3)]
    if kind == _Geom.mjGEOM_CYLINDER:
        return [(DISK, 1, axes[2], unit[2], axes[0], axes[1])]
    return []


def _corners(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """[triangle, 3, 3] corners of a mesh (m), anticlockwise seen from outside."""
    mesh = tessellate(model, geom)
    return mesh.vertices[mesh.faces].astype(float)


def _triangles(model: mujoco.MjModel, geom: int) -> list[tuple]:
    """(center, normal, half_a, half_b) of a mesh's triangles, without those that have no area."""
    corners = _corners(model, geom)
    middle = corners.mean(1, keepdims=True)
    first, second, third = np.moveaxis(middle + (1 + _GROWN) * (corners - middle), 1, 0)
    normal = np.cross(second - first, third - first)
    twice_area = np.linalg.norm(normal, axis=-1, keepdims=True)
    unit = normal / np.maximum(twice_area, _NO_AREA)
    columns = ((second + third) / 2, unit, (second - first) / 2, (third - first) / 2)
    return list(zip(*(column[twice_area[:, 0] > _NO_AREA] for column in columns), strict=True))


def _dual(along: np.ndarray, other: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """[n, 3] v in the plane with v . along = 1 and v . other = 0."""
    across = np.cross(other, normal)
    return across / np.sum(along * across, -1, keepdims=True)


def _flat(rows: list[tuple]) -> Flat:
    geom, outline, mirrored, center, normal, half_a, half_b = (np.array(column) for column in zip(*rows, strict=True))
    ints = (np.asarray(x, np.int32) for x in (geom, outline, mirrored))
    vectors = (center, normal, half_a, half_b, _dual(half_a, half_b, normal), _dual(half_b, half_a, normal))
    return Flat(*ints, *(np.asarray(x, np.float32) for x in vectors))


def _of_meshes(rows: list[tuple]) -> Triangles:
    geom = np.array([row[0] for row in rows], np.int32)
    center, normal, half_a, half_b = (np.array([row[i] for row in rows]).reshape(-1, 3) for i in range(1, 5))
    vectors = (center, normal, half_a, half_b, _dual(half_a, half_b, normal), _dual(half_b, half_a, normal))
    return Triangles(geom, *(np.asarray(x, np.float32) for x in vectors))


def _round(rows: list[tuple]) -> Round:
    geom, kind = (np.array([row[i] for row in rows], np.int32) for i in (0, 1))
    return Round(geom, kind, np.array([row[2] for row in rows], np.float32).reshape(-1, 3))
