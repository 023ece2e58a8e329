"""Pictures of the scene: one protocol, three backends.

`warp` ray traces all environments in one call inside jit, `madrona` does on a GPU outside jit, `mujoco` draws them one
by one with OpenGL and is the reference.
"""

from __future__ import annotations

import dataclasses

from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.render.base import Frames, Renderer, check_pictures
from mjx_so101.scene import SceneConfig

BACKENDS = ("warp", "madrona", "mujoco")

__all__ = ["BACKENDS", "PRESETS", "Frames", "RenderConfig", "Renderer", "check_pictures", "make_renderer"]


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """What to draw, and with what."""

    renderer: str = "warp"
    """'warp' (GPU or CPU), 'madrona' (NVIDIA GPU) or 'mujoco' (OpenGL, one environment at a time)."""
    cameras: tuple[str, ...] = ("top",)
    """Cameras of the scene, in the order of the pictures."""
    width: int = 64
    """Pixels across."""
    height: int = 64
    """Pixels down."""
    shadows: bool = True
    textures: bool = True

    def __post_init__(self) -> None:
        require_choice("renderer", self.renderer, BACKENDS)
        if self.width < 1 or self.height < 1:
            raise ConfigError(f"picture size is {self.width} x {self.height}; both must be at least 1 pixel.")

    @property
    def channels(self) -> int:
        """Colour channels of all cameras together."""
        return 3 * len(self.cameras)

    @property
    def bytes_per_env(self) -> int:
        """Size of one environment's uint8 pictures."""
        return self.channels * self.width * self.height


PRESETS: dict[str, RenderConfig] = {
    "small": RenderConfig(),
    "gr00t": RenderConfig(cameras=("top", "wrist"), width=320, height=240),
}
"""`small`: what a learner from pixels sees; `gr00t`: both cameras uncropped, as the GR00T processor takes them."""


def make_renderer(config: RenderConfig, scene: SceneConfig | None = None, num_envs: int = 1, **options) -> Renderer:
    """Build the renderer that `config` names; options go to it (depth, segmentation, specular, strict).

    Raises ConfigError for an unknown camera, pictures that do not fit into memory, or what the backend needs and
    this machine lacks.
    """
    scene = scene or SceneConfig()
    options = {"shadows": config.shadows, "textures": config.textures, **options}
    size = (scene, config.cameras, config.width, config.height, num_envs)
    if config.renderer == "warp":
        from mjx_so101.render.warp import WarpRenderer

        return WarpRenderer(*size, **options)
    if config.renderer == "madrona":
        from mjx_so101.render.madrona import MadronaRenderer

        return MadronaRenderer(*size, **options)
    from mjx_so101.render.mujoco import MujocoRenderer

    return MujocoRenderer(*size, **options)
