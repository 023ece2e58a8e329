"""`so101 render`: pictures of live states as a contact sheet, or of several backends side by side."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from mjx_so101.params import Randomization, load_randomization
from mjx_so101.render import AUTO, BACKENDS, RenderConfig, make_renderer
from mjx_so101.render.sensor import sense, sensor_varies
from mjx_so101.render.sheet import contact_sheet, save_png, side_by_side
from mjx_so101.scene import SceneConfig
from mjx_so101.task import State
from policies.base import make_base


@dataclasses.dataclass(frozen=True)
class RenderFlags:
    """Flags of `so101 render`."""

    camera: tuple[str, ...] = ("top", "wrist")
    """Cameras of the scene."""
    width: int = 160
    height: int = 120
    num_envs: int = 16
    randomize: bool = False
    """Draw colours, textures, lights, cameras and sensor effects at random."""
    renderer: str = AUTO
    """'quad', 'warp', 'madrona' or 'mujoco'; 'auto' takes quad where it can draw the scene, else warp."""
    compare: bool = False
    """Draw the same states with every backend that works here, and their differences."""
    meshes: str = ""
    """Folder of the official meshes, or 'package'; default: primitives."""
    shadows: bool = True
    detail: str = "fine"
    """Shapes of the robot: 'fine' or 'coarse'."""
    base: str = "jacobian"
    """Base policy that moves the arms ..."""
    steps: int = 60
    """... for this many control steps before the picture is taken."""
    seed: int = 0
    out: Path = Path("render.png")
    """PNG to write."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigError(f"num_envs is {self.num_envs}; it must be at least 1.")
        if self.steps < 0:
            raise ConfigError(f"steps is {self.steps}; it must be at least 0.")
        self.config()
        if self.out.suffix.lower() != ".png" or self.out.is_dir():
            raise ConfigError(f"out is {str(self.out)!r}; give a file that ends in .png.")

    def config(self) -> RenderConfig:
        """What to draw."""
        return RenderConfig(self.renderer, self.camera, self.width, self.height, self.shadows, detail=self.detail)

    def randomization(self) -> Randomization:
        """What the looks are drawn from."""
        return load_randomization("nominal+looks" if self.randomize else "nominal")

    def scene(self) -> SceneConfig:
        """Where to draw it."""
        return SceneConfig(meshes=self.meshes)


def render_pictures(flags: RenderFlags) -> None:
    """Draw what `flags` asks for and write the PNG."""
    renderers = _every_backend(flags) if flags.compare else [_renderer(flags, flags.renderer)]
    env = PaperReturnEnv(flags.num_envs, randomization=flags.randomization(), auto_reset=False)
    state = live_state(env, flags.base, flags.steps, flags.seed)
    batches = [np.asarray(renderer.render(state)) for renderer in renderers]
    if flags.compare:
        save_png(flags.out, side_by_side(batches))
        for renderer, batch in zip(renderers[1:], batches[1:], strict=True):
            difference = np.abs(batch.astype(int) - batches[0]).mean()
            print(f"{renderer.name} against {renderers[0].name}: mean absolute difference {difference:.2f} of 255")
    else:
        rgb = batches[0]
        if sensor_varies(env.task.randomization):
            keys = jax.random.split(jax.random.PRNGKey(flags.seed), flags.num_envs)
            rgb = np.asarray(sense(rgb, state.params, keys))
        save_png(flags.out, contact_sheet(rgb))
    print(f"{flags.out}: {flags.num_envs} environments, {' and '.join(flags.camera)}, {flags.width} x {flags.height}")


def _renderer(flags: RenderFlags, name: str):
    config = dataclasses.replace(flags.config(), renderer=name)
    return make_renderer(config, flags.scene(), flags.num_envs, flags.randomization())


def _every_backend(flags: RenderFlags) -> list:
    """Those that work on this machine, the reference first; madrona is built first, as it must be before JAX."""
    from mjx_so101.render.madrona import missing_requirement

    found, lacks = {}, missing_requirement()
    for name in ("madrona", "mujoco", "warp", "quad"):
        if name == "madrona" and lacks:  # said before anything that would only matter if it were there
            print(f"without madrona: {lacks}", file=sys.stderr)
            continue
        try:
            found[name] = _renderer(flags, name)
        except ConfigError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    if len(found) < 2:
        raise ConfigError(f"--compare needs two backends that work; here: {', '.join(found) or 'none'} of {BACKENDS}.")
    return [found[name] for name in ("mujoco", "quad", "warp", "madrona") if name in found]


def live_state(env: PaperReturnEnv, base: str, steps: int, seed: int) -> State:
    """The state after `steps` control steps of a base policy from a fresh reset."""
    policy = make_base(base, env.task)
    chunk = jax.jit(policy.chunk)
    state, carry, key = env.reset(seed), policy.init(env.num_envs), jax.random.PRNGKey(seed)
    for _ in range(steps):
        seen = env.observe(state)
        carry, targets = chunk(carry, seen, key, seen.new_episode)
        state, _ = env.step(state, targets[:, 0])
    return state
