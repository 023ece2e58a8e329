"""Videos of episodes: a grid of many and a large one, drawn from recorded states."""

from __future__ import annotations

import math
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from mjx_so101.render.mujoco import MujocoRenderer


def write_videos(
    qpos: np.ndarray, folder: Path, control_hz: float = 30.0, large_episode: int = 0, every: int = 3
) -> list[Path]:
    """Write grid.mp4 (all episodes, top camera) and episode.mp4 (one, large) into `folder`.

    qpos: [time, episode, 9] states; every: draw each n-th control step. Videos play in real time.
    """
    rate = control_hz / every
    small = MujocoRenderer(width=200, height=150, shadows=False)
    columns = math.ceil(math.sqrt(qpos.shape[1]))
    grid = folder / "grid.mp4"
    with imageio.get_writer(grid, fps=rate, macro_block_size=2, quality=7) as video:
        for states in qpos[::every]:
            video.append_data(_tile([small.picture(state, "top") for state in states], columns))
    small.close()
    large = MujocoRenderer(width=640, height=480, smooth=True)
    episode = folder / "episode.mp4"
    with imageio.get_writer(episode, fps=rate, macro_block_size=2, quality=8) as video:
        for state in qpos[::every, large_episode]:
            video.append_data(large.picture(state, "scene"))
    large.close()
    return [grid, episode]


def _tile(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    blank = np.zeros_like(pictures[0])
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return np.concatenate([np.concatenate(row + [blank] * (columns - len(row)), axis=1) for row in rows])
