"""The Madrona engine itself: what it needs, how it is started, torch tensors in and out. See `render.madrona`."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.params import EnvParams
from mjx_so101.render.base import check_fits
from mjx_so101.render.color import srgb_to_linear
from mjx_so101.render.shading import Lights, geom_colors, scene_lights
from mjx_so101.render.tessellate import offsets, tessellate

_BYTES_PER_PIXEL = 16 + 8  # colour, depth, normal and segment of Madrona; colour and depth handed to JAX
_MESH = 7  # Madrona's geom type
_OWN_COLOR = -2  # in place of a material: the colour given for that geom of that environment


class Engine:
    """Madrona's own objects. It is also the 'geom retriever' that the adapter asks for geometry and poses."""

    def __init__(
        self,
        model: mujoco.MjModel,
        geoms: list[int],
        cameras: list[int],
        size: tuple[int, int, int],
        *,
        shadows: bool,
        textures: bool,
    ):
        """Starts Madrona and draws the zero position once. size: width, height, environments.

        Raises ConfigError if memory does not suffice, or if Madrona does not start.
        """
        import torch

        self._torch = torch
        width, height, envs = size
        check_fits(len(cameras), *size, _BYTES_PER_PIXEL, torch.cuda.mem_get_info()[0])
        adapter = _import_adapter(torch.cuda.get_device_name(0))
        self._meshes = [tessellate(model, geom) for geom in geoms]
        self._model, self._geoms, self._envs, self._shadows, self._textures = model, geoms, envs, shadows, textures
        self._colors = geom_colors(model, geoms, textures)  # [1, geom, 3]
        self._palette, which = np.unique(self._colors.reshape(-1, 3), axis=0, return_inverse=True)
        self._material = which.reshape(self._colors.shape[:2]).astype(np.int32)
        self._poses = self._tensors(*_initial_poses(model, geoms, cameras, envs))
        # colour, depth and two more pictures, which the ray tracer draws whatever is asked; no smoothing
        self._options = torch.as_tensor(np.array([1, 1, 1, 1, 0], np.int32)).view(torch.uint32)
        far = np.full(len(cameras), model.vis.map.zfar * model.stat.extent)
        lenses = model.cam_fovy[cameras], np.full(len(cameras), 0.001), far  # near is not used by the ray tracer
        perspective = torch.as_tensor(np.zeros(len(cameras), np.int32))
        lights = scene_lights(model, shadows)
        try:
            self._adapter: Any = adapter(
                self, 0, envs, lights.color.shape[1], *(torch.as_tensor(lens.astype(np.float32)) for lens in lenses),
                perspective, width, height, False, False,  # no camera symbols; the ray tracer
            )  # fmt: skip
            self._paint(self._colors, lights)
            self._adapter.render(*self._poses[2:], self._options)
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise ConfigError(
                f"Madrona cannot start: {error}. If it is short of memory, build the renderer with fewer than {envs} "
                "environments; if it is short of resources, build it before anything else uses the GPU."
            ) from error

    def draw(self, poses: tuple[jax.Array, ...], looks: EnvParams | None = None) -> tuple[jax.Array, ...]:
        """Colour, depth and segment of the given poses, in buffers that the next call overwrites. No copies.

        looks: parameters [env, ...] whose colours, textures and lights, NumPy arrays, are drawn from now on; None
        leaves them as they are.
        """
        self._poses = tuple(self._torch.from_dlpack(pose) for pose in poses)
        if looks is not None:
            colors = geom_colors(self._model, self._geoms, self._textures, looks)
            self._paint(colors, scene_lights(self._model, self._shadows, looks))
        pictures = self._adapter.render(*self._poses[2:], self._options)
        self._torch.cuda.synchronize()
        return tuple(jax.dlpack.from_dlpack(picture) for picture in pictures[:3])

    def close(self) -> None:
        """Free Madrona's memory: adapter and engine hold one another, so it would wait for the garbage collector."""
        self._adapter = None

    def retrieve_rigid_meshes_static(self) -> dict[str, np.ndarray]:
        """Geometry and materials, all of it triangle meshes without textures."""
        count, materials = len(self._meshes), len(self._palette)
        none = np.zeros(0, np.int32)
        opaque = np.concatenate([srgb_to_linear(self._palette), np.ones((materials, 1))], 1)
        return {
            "mesh_vertices": np.concatenate([mesh.vertices for mesh in self._meshes]),
            "mesh_faces": np.concatenate([mesh.faces for mesh in self._meshes]),
            "mesh_vertex_offsets": offsets([mesh.vertices for mesh in self._meshes]),
            "mesh_face_offsets": offsets([mesh.faces for mesh in self._meshes]),
            "mesh_texcoords": np.zeros((0, 2), np.float32),
            "mesh_texcoord_offsets": np.full(count, -1, np.int32),
            "geom_types": np.full(count, _MESH, np.int32),
            "geom_groups": np.zeros(count, np.int32),
            "geom_data_ids": np.arange(count, dtype=np.int32),
            "geom_sizes": np.ones((count, 3), np.float32),
            "enabled_geom_groups": np.zeros(1, np.int32),
            "geom_mat_ids": np.ascontiguousarray(self._material[0]),
            "mat_rgba": opaque.astype(np.float32),
            "mat_tex_ids": none,
            "mat_tex_offsets": np.zeros(materials, np.int32),
            "tex_widths": none,
            "tex_heights": none,
            "tex_nchans": none,
            "tex_data": np.zeros(0, np.uint8),
            "tex_offsets": np.zeros(0, np.int64),
        }

    def retrieve_rigid_state_torch(self) -> tuple[Any, Any]:
        """Geom positions and quaternions of the picture to draw."""
        return self._poses[0], self._poses[1]

    def _paint(self, colors: np.ndarray, lights: Lights) -> None:
        """Hand over poses, colours [env or 1, geom, 3] sRGB and lights.

        The adapter's own `init` would give every environment the same lights. Called again, Madrona's copies what it
        is given over what it had, and carries colours and lights on to the pictures, which `render` does not. Colours
        of geoms have 8 bits of linear light, two levels for a black table: only those that differ from the nominal
        ones are given so, the others as materials.
        """
        nominal = (colors == self._colors).all(-1)
        material = self._of_all(np.where(nominal, self._material, _OWN_COLOR).astype(np.int32))
        direction, color, cast = (self._of_all(field) for field in lights)
        strength = np.maximum(color.max(-1), 1e-6)  # the colour has 8 bits, the intensity 32
        ones, zeros = np.ones(strength.shape, np.float32), np.zeros(strength.shape, np.float32)
        self._adapter.madrona.init(
            *self._poses,
            *self._tensors(material),
            self._packed(self._of_all(srgb_to_linear(colors))),
            *self._tensors(np.ones((*material.shape, 3), np.float32), np.zeros_like(direction), direction),
            self._packed(color / strength[..., None]),
            # directional, castshadow, cutoff, attenuation, intensity
            *self._tensors(np.ones(cast.shape, bool), cast, ones, zeros, strength.astype(np.float32)),
        )

    def _of_all(self, field: np.ndarray) -> np.ndarray:
        """[env, ...] of what is [env, ...] already, or [1, ...] for all."""
        return np.broadcast_to(field, (self._envs, *field.shape[1:]))

    def _packed(self, rgb: np.ndarray) -> Any:
        """uint32 tensor [...] of 8 bits each of red, green and blue from [..., 3] in [0, 1]."""
        red, green, blue = np.moveaxis(np.round(255 * rgb).astype(np.int32), -1, 0)
        return self._tensors(red << 16 | green << 8 | blue)[0].view(self._torch.uint32)

    def _tensors(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        return tuple(self._torch.as_tensor(np.array(array, order="C"), device="cuda") for array in arrays)


def missing_requirement() -> str | None:
    """What this machine lacks for Madrona, with the fix; None if nothing. Does not touch the GPU through JAX."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it needs Linux on x86-64, this is {sys.platform} on {platform.machine()}; use renderer 'quad'."
    for module in ("gs_madrona", "torch"):
        if importlib.util.find_spec(module) is None:
            return f"package {module} is missing: pip install -e '.[madrona]' (it also needs an NVIDIA GPU)."
    if ctypes.util.find_library("vulkan") is None:
        return "the Vulkan loader libvulkan.so.1 is missing: apt-get install libvulkan1."
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA: install one of PyTorch's CUDA builds."
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use renderer 'quad'."
    return None


def gpu_user() -> str | None:
    """'JAX' or 'Warp' if it may have used the GPU in this process already, else None."""
    from jax._src import xla_bridge  # no public function tells without initializing

    if xla_bridge.backends_are_initialized():
        return "JAX"
    source = getattr(sys.modules.get("warp"), "_src", None)
    started = getattr(getattr(source, "context", None), "runtime", None) is not None
    return "Warp" if started else None


def _initial_poses(
    model: mujoco.MjModel, geoms: list[int], cams: list[int], envs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Poses of the model's zero position as `MadronaRenderer._placed` gives them, from MuJoCo C."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)

    def quaternions(matrices: np.ndarray) -> np.ndarray:
        quats = np.zeros((len(matrices), 4))
        for quat, matrix in zip(quats, matrices, strict=True):
            mujoco.mju_mat2Quat(quat, matrix)
        return quats

    w, x, y, z = quaternions(data.cam_xmat[cams]).T
    cam_quat = np.stack([x + w, x - w, y - z, y + z], -1) * np.sqrt(0.5)
    poses = data.geom_xpos[geoms], quaternions(data.geom_xmat[geoms]), data.cam_xpos[cams], cam_quat
    return tuple(np.repeat(pose[None].astype(np.float32), envs, 0) for pose in poses)  # type: ignore[return-value]


def _import_adapter(device: str) -> Any:
    """The adapter class, with kernel caches where `_set_caches` says."""
    folder = _set_caches(device)
    from gs_madrona.renderer_gs import MadronaBatchRendererAdapter

    os.environ["MADRONA_ROOT_CACHE_DIR"] = folder  # the import has just put its own there
    return MadronaBatchRendererAdapter


def _set_caches(device: str) -> str:
    """Where compiled kernels are kept: by package version and kind of GPU, as Madrona checks neither."""
    try:
        version = importlib.metadata.version("gs-madrona")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "mjx_so101" / "madrona" / re.sub(r"[^\w.]+", "-", f"{version}-{device}")
    folder = Path(os.environ.setdefault("MADRONA_ROOT_CACHE_DIR", str(folder)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cache folder {folder} cannot be made ({error}); set XDG_CACHE_HOME to another.") from error
    os.environ.setdefault("MADRONA_MWGPU_KERNEL_CACHE", str(folder / "kernel_cache"))  # 0.0.11 sets both to these
    os.environ.setdefault("MADRONA_BVH_KERNEL_CACHE", str(folder / "bvh_cache"))
    os.environ.setdefault("MADRONA_MWGPU_DEVICE_HEAP_SIZE", str(4 << 30))
    return str(folder)
