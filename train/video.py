"""Videos of episodes that were counted: the first one large, a grid of the first ones, and a grid of failures."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.render.mujoco import MujocoRenderer
from train.evaluate import Episodes
from train.files import write_text
from train.flags import require_tiles
from train.outcomes import outcome, outcomes

CAPTIONS = "videos.md"


def write_videos(
    episodes: Episodes, folder: Path, tiles: int = 9, control_hz: float = 30.0, every: int = 3
) -> list[Path]:
    """Write videos of `episodes` into `folder`, and videos.md, which says which episode is where and how it ended.

    episode.mp4: episode 0, large. grid.mp4: the first `tiles` episodes (top camera), whatever became of them.
    failures.mp4: the first ones that do not end inside the first tolerance; not written if there are none. Only the
    episodes whose states were kept can be drawn. Videos play in real time; every: draw each n-th control step. Raises
    ConfigError if this machine cannot draw, or cannot write videos.
    """
    require_tiles(tiles)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    states = episodes.qpos[::every, : len(episodes)]  # [frame, episode, 9]
    failed = np.flatnonzero(~episodes.at_end[: states.shape[1], 0])[:tiles]
    shown = {"episode.mp4": [0], "grid.mp4": list(range(min(tiles, states.shape[1])))}
    if len(failed):
        shown["failures.mp4"] = failed.tolist()
    else:
        (folder / "failures.mp4").unlink(missing_ok=True)  # of an earlier evaluation

    rate = control_hz / every
    _write_grids(states, {folder / name: tiles for name, tiles in shown.items() if name != "episode.mp4"}, rate)
    large = MujocoRenderer(width=640, height=480, smooth=True)
    with _writer(folder / "episode.mp4", rate, quality=8) as video:
        for state in states[:, 0]:
            video.append_data(large.picture(state, "scene"))
    large.close()
    write_text(folder / CAPTIONS, captions(episodes, shown) + "\n")
    return [*(folder / name for name in shown), folder / CAPTIONS]


def captions(episodes: Episodes, shown: dict[str, list[int]]) -> str:
    """Markdown: which episode each tile of each video shows, and what became of it."""
    rows, lines = outcomes(episodes), ["| video | row, column | episode | outcome |", "|---|---|---|---|"]
    for name, tiles in shown.items():
        columns = _columns(len(tiles))
        for k, i in enumerate(tiles):
            lines.append(f"| {name} | {k // columns + 1}, {k % columns + 1} | {i} | {outcome(rows[i])} |")
    return "\n".join(lines)


def _write_grids(states: np.ndarray, grids: dict[Path, list[int]], rate: float) -> None:
    """Write a video of tiles for each path; an episode in two of them is drawn once."""
    small = MujocoRenderer(width=200, height=150, shadows=False)
    with contextlib.ExitStack() as stack:
        videos = {path: stack.enter_context(_writer(path, rate, quality=7)) for path in grids}
        for frame in states:
            drawn = {i: small.picture(frame[i], "top") for i in sorted({i for tiles in grids.values() for i in tiles})}
            for path, tiles in grids.items():
                videos[path].append_data(_tile([drawn[i] for i in tiles], _columns(len(tiles))))
    small.close()


def _columns(tiles: int) -> int:
    return math.ceil(math.sqrt(tiles))


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
