"""Madrona before JAX: a command that draws with it builds it here first, and all that draw later share it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from mjx_so101.errors import ConfigError
from mjx_so101.render import RenderConfig, make_renderer
from mjx_so101.scene import CAMERAS
from policies import chunks
from policies.base import SCRIPTED
from policies.chunked import pictures_for
from train.config import TrainConfig

MADRONA = "madrona"


@contextlib.contextmanager
def madrona_first(config: TrainConfig, seen: int, shown: int) -> Iterator[None]:
    """Within it Madrona is there, if `config` draws with it: built for as many environments as are drawn at once.

    Enter it before anything of JAX. seen: environments whose pictures residual or pose network see. shown: environments
    of which the base policy's model is shown pictures in a pass. Raises ConfigError for what Madrona cannot draw or
    lacks, and for a residual and a base policy that both want it.
    """
    wanted = _wanted(config, seen, shown)
    if len(wanted) > 1:
        raise ConfigError(
            "renderer and base_renderer are both 'madrona', and a process can hold one: choose --renderer quad or "
            "--base-renderer quad."
        )
    renderers = [
        make_renderer(render, config.scene_config(), num_envs, config.load_randomization())
        for render, num_envs in wanted
    ]
    try:
        yield
    finally:
        for renderer in renderers:
            renderer.close()


def for_training(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """`madrona_first` for a training run; gate, evaluation and report draw in parts of its size."""
    return madrona_first(config, config.num_envs, chunks.slots(config.num_envs, config.model.horizon))


def for_evaluation(config: TrainConfig, batch: int = 0) -> contextlib.AbstractContextManager[None]:
    """`madrona_first` for `batch` episodes at once; 0: the batch that `config` evaluates in."""
    if not batch:
        # to be asked for a backend would start JAX; Madrona is only where that is warp
        known = "warp" if config.physics == "auto" else config.physics
        batch = dataclasses.replace(config, physics=known).evaluation_batch()
    return madrona_first(config, batch, chunks.whole_slots(batch))


def _wanted(config: TrainConfig, seen: int, shown: int) -> list[tuple[RenderConfig, int]]:
    """What Madrona is to draw, of how many environments."""
    wanted = []
    if config.shown and not config.blind and config.shown.renderer == MADRONA:
        wanted.append((config.shown, seen))
    model = config.model
    if config.base not in SCRIPTED and model.base_renderer == MADRONA:
        # all cameras: which of them a checkpoint has only its model says, and that is loaded once JAX runs
        wanted.append((pictures_for(MADRONA, CAMERAS, (model.base_width, model.base_height)), shown))
    return wanted
