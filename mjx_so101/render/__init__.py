"""Pictures of the scene: one protocol, four backends.

`quad` draws all environments in one call inside jit by formulas for this scene's shapes, `warp` (MJX's) ray traces them
there, slower, whatever the scene holds; `madrona` does on a GPU outside jit; `mujoco` draws them one by one with OpenGL
and is the reference.
"""

from __future__ import annotations

import dataclasses

from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.params import FIELDS, Randomization
from mjx_so101.render.base import Frames, Renderer, check_pictures
from mjx_so101.render.sensor import SENSOR_FIELDS
from mjx_so101.scene import DETAILS, SceneConfig, load_visual_model

BACKENDS = ("quad", "warp", "madrona", "mujoco")
AUTO = "auto"
IN_JIT = (AUTO, "quad", "warp")
"""Renderers that draw inside jit; the host asks the others for pictures between two steps."""

__all__ = [
    "AUTO", "BACKENDS", "IN_JIT", "PRESETS", "Frames", "RenderConfig", "Renderer", "check_pictures", "looks_vary",
    "make_renderer",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """What to draw, and with what."""

    renderer: str = AUTO
    """'quad' or 'warp' (GPU or CPU), 'madrona' (NVIDIA GPU) or 'mujoco' (OpenGL, one environment at a time); 'auto'
    takes 'quad' where it can draw the scene, else 'warp', which is slower."""
    cameras: tuple[str, ...] = ("top",)
    """Cameras of the scene, in the order of the pictures."""
    width: int = 64
    """Pixels across."""
    height: int = 64
    """Pixels down."""
    shadows: bool = True
    textures: bool = True
    detail: str = "fine"
    """Shapes of the robot: 'fine', or 'coarse' boxes, which are drawn faster."""

    def __post_init__(self) -> None:
        require_choice("renderer", self.renderer, (AUTO, *BACKENDS))
        require_choice("detail", self.detail, DETAILS)
        if isinstance(self.cameras, str) or not self.cameras:
            raise ConfigError(f"cameras is {self.cameras!r}; give a tuple of at least one name, such as ('top',).")
        if not all(isinstance(size, int | float) and size == int(size) >= 1 for size in (self.width, self.height)):
            raise ConfigError(
                f"picture size is {self.width!r} x {self.height!r}; give whole numbers of at least 1 pixel."
            )

    @property
    def channels(self) -> int:
        """Colour channels of all cameras together."""
        return 3 * len(self.cameras)

    @property
    def bytes_per_env(self) -> int:
        """Size of one environment's uint8 pictures."""
        return self.channels * self.width * self.height


PRESETS: dict[str, RenderConfig] = {
    "small": RenderConfig(detail="coarse"),
    "gr00t": RenderConfig(cameras=("top", "wrist"), width=320, height=240),
}
"""`small`: what a learner from pixels sees; `gr00t`: both cameras uncropped, as the GR00T processor takes them."""


def make_renderer(
    config: RenderConfig,
    scene: SceneConfig | None = None,
    num_envs: int = 1,
    randomization: Randomization | None = None,
    **options,
) -> Renderer:
    """Build the renderer that `config` names; options go to it (depth, segmentation, strict).

    randomization: what the states' parameters are drawn from. It is checked against what the backend can vary, and
    warp draws faster if no looks vary; None expects any. A process has one Madrona: later calls share the first one's,
    which draws in parts (`madrona.shared`). Raises ConfigError for an unknown camera, a scene or looks that the backend
    cannot draw, pictures that do not fit into memory, or what it needs and this machine lacks.
    """
    if not isinstance(config, RenderConfig):
        raise ConfigError(f"config is {config!r}; give a RenderConfig, such as one of PRESETS: {', '.join(PRESETS)}.")
    if not isinstance(scene, SceneConfig | None):
        raise ConfigError(f"scene is a {type(scene).__name__}; give a SceneConfig, such as an environment's env.scene.")
    scene = dataclasses.replace(scene or SceneConfig(), detail=config.detail)
    options = {"shadows": config.shadows, "textures": config.textures, **options}
    size = (scene, config.cameras, config.width, config.height, num_envs)
    name = _quad_or_warp(scene) if config.renderer == AUTO else config.renderer
    fixed_looks = randomization is not None and not looks_vary(randomization)
    if name == "warp":
        from mjx_so101.render.warp import WarpRenderer

        return WarpRenderer(*size, fixed_looks=fixed_looks, **options)
    options.pop("host_stepped", None)  # of concern to warp alone
    if name == "quad":
        from mjx_so101.render.quad.renderer import QuadRenderer

        return QuadRenderer(*size, fixed_looks=fixed_looks, **options)
    if name == "madrona":
        from mjx_so101.render.madrona import check_supported, shared

        if randomization is not None:
            check_supported(randomization)
        return shared(*size, fixed_looks=fixed_looks, **options)
    from mjx_so101.render.mujoco import MujocoRenderer

    return MujocoRenderer(*size, **options)


def _quad_or_warp(scene: SceneConfig) -> str:
    """`quad` wherever it has a formula for all that is drawn."""
    from mjx_so101.render.quad.surfaces import surfaces_of

    try:
        surfaces_of(load_visual_model(scene))
    except ConfigError:
        return "warp"
    return "quad"


def looks_vary(randomization: Randomization) -> bool:
    """Whether anything that a renderer draws is ever other than nominal; sensor effects come later and do not count."""
    fields = [name for name, field in FIELDS.items() if field.group == "look" and name not in SENSOR_FIELDS]
    return bool(randomization.varied(fields))
