"""Many pictures in one: contact sheets and comparisons, as PNG."""

from __future__ import annotations

import math
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from mjx_so101.errors import ConfigError

_GAP = 2  # px between pictures


def contact_sheet(rgb: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 [y, x, 3]: one cell per environment of uint8 [env, camera, height, width, 3], its cameras side by side."""
    cells = [np.concatenate(list(_framed(cameras)), axis=1) for cameras in np.asarray(rgb)]
    columns = columns or math.ceil(math.sqrt(len(cells)))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """uint8 [y, x, 3]: per environment and camera one row, that picture of each of several batches, then for each
    batch after the first its absolute difference from the first."""
    batches = [np.asarray(batch).reshape(-1, *np.shape(batch)[2:]) for batch in pictures]
    first = batches[0].astype(np.int16)
    differences = [np.abs(batch - first).astype(np.uint8) for batch in batches[1:]]
    columns = [np.concatenate(list(_framed(batch))) for batch in (*batches, *differences)]
    return np.concatenate(columns, axis=1)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [y, x, 3]; the folder is made. Raises ConfigError if that is impossible."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, picture, extension=".png")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); name another file.") from error


def _framed(pictures: np.ndarray) -> np.ndarray:
    """White lines at the bottom and on the right of [picture, height, width, 3]."""
    return np.pad(pictures, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
