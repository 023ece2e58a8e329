"""Videos of episodes: a grid of many and a large one, drawn from recorded states."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.render.mujoco import MujocoRenderer


def write_videos(
    qpos: np.ndarray, folder: Path, control_hz: float = 30.0, large_episode: int = 0, every: int = 3
) -> list[Path]:
    """Write grid.mp4 (all episodes, top camera) and episode.mp4 (one, large) into `folder`.

    qpos: [time, episode, 9] states; every: draw each n-th control step. Videos play in real time. Raises ConfigError if
    this machine cannot draw, or cannot write videos.
    """
    rate = control_hz / every
    small = MujocoRenderer(width=200, height=150, shadows=False)
    columns = math.ceil(math.sqrt(qpos.shape[1]))
    grid = folder / "grid.mp4"
    with _writer(grid, rate, quality=7) as video:
        for states in qpos[::every]:
            video.append_data(_tile([small.picture(state, "top") for state in states], columns))
    small.close()
    large = MujocoRenderer(width=640, height=480, smooth=True)
    episode = folder / "episode.mp4"
    with _writer(episode, rate, quality=8) as video:
        for state in qpos[::every, large_episode]:
            video.append_data(large.picture(state, "scene"))
    large.close()
    return [grid, episode]


@contextlib.contextmanager
def _writer(path: Path, rate: float, quality: int):
    try:
        with warnings.catch_warnings():
            # ffmpeg is started by a fork; the child replaces itself at once and takes none of JAX's locks
            warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
            video = imageio.get_writer(path, format="FFMPEG", fps=rate, macro_block_size=2, quality=quality)
            with video:
                yield video
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written ({error}): pip install 'imageio[ffmpeg]'.") from error


def _tile(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    blank = np.zeros_like(pictures[0])
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return np.concatenate([np.concatenate(row + [blank] * (columns - len(row)), axis=1) for row in rows])
