"""Textures of desk and sheet, made from formulas and a fixed seed: no image files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZE = 256


def _noise(rng: np.random.Generator, cells_x: int, cells_y: int) -> np.ndarray:
    """[SIZE, SIZE] smooth noise in [0, 1] that repeats at the edges: random values on a grid, blended between."""
    grid = rng.uniform(size=(cells_y, cells_x))

    def along(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(SIZE) * cells / SIZE
        low = at.astype(int)
        t = at - low
        return low, (low + 1) % cells, t * t * (3 - 2 * t)

    x0, x1, tx = along(cells_x)
    y0, y1, ty = along(cells_y)
    rows = grid[:, x0] * (1 - tx) + grid[:, x1] * tx
    return rows[y0] * (1 - ty[:, None]) + rows[y1] * ty[:, None]


def _tinted(brightness: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    return brightness[..., None] * np.asarray(color)


def _melamine(rng: np.random.Generator) -> np.ndarray:
    return _tinted(0.82 + 0.18 * (0.6 * _noise(rng, 48, 48) + 0.4 * _noise(rng, 96, 96)), (1.0, 1.0, 1.0))


def _wood(rng: np.random.Generator) -> np.ndarray:
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (6 * np.arange(SIZE)[:, None] / SIZE + 1.5 * _noise(rng, 3, 8)))
    return _tinted(0.70 + 0.18 * rings + 0.12 * _noise(rng, 4, 96), (1.0, 0.82, 0.62))


def _felt(rng: np.random.Generator) -> np.ndarray:
    return _tinted(0.6 + 0.4 * (0.5 * _noise(rng, 64, 64) + 0.5 * _noise(rng, 128, 128)), (0.85, 1.0, 0.9))


def _concrete(rng: np.random.Generator) -> np.ndarray:
    clouds = 0.5 * _noise(rng, 4, 4) + 0.3 * _noise(rng, 12, 12) + 0.2 * _noise(rng, 64, 64)
    return _tinted(0.65 + 0.35 * clouds, (1.0, 0.98, 0.95))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    at = np.arange(SIZE) % (SIZE // 2)
    joint = (at < 6)[:, None] | (at < 6)[None, :]
    return _tinted(np.where(joint, 0.45, 0.92 + 0.08 * _noise(rng, 8, 8)), (1.0, 1.0, 1.0))


def _page(marks: np.ndarray) -> np.ndarray:
    return _tinted(np.where(marks, 0.35, 1.0), (1.0, 1.0, 1.0))


def _blank(rng: np.random.Generator) -> np.ndarray:
    return _page(np.zeros((SIZE, SIZE), bool))


def _text(rng: np.random.Generator) -> np.ndarray:
    """Lines of words as grey bars inside a margin."""
    marks = np.zeros((SIZE, SIZE), bool)
    for top in range(28, SIZE - 28, 14):
        at, end = 28, SIZE - 28 - int(rng.integers(0, 60))
        while at < end:
            word = int(rng.integers(8, 30))
            marks[top : top + 5, at : min(at + word, end)] = True
            at += word + 6
    return _page(marks)


def _lined(rng: np.random.Generator) -> np.ndarray:
    marks = np.zeros((SIZE, SIZE), bool)
    for top in range(24, SIZE - 8, 16):
        marks[top : top + 2] = True
    return _page(marks)


def _squared(rng: np.random.Generator) -> np.ndarray:
    on = np.arange(SIZE) % 16 < 2
    return _page(on[:, None] | on[None, :])


_MAKERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "melamine": _melamine, "wood": _wood, "felt": _felt, "concrete": _concrete, "tiles": _tiles,
    "blank": _blank, "text": _text, "lined": _lined, "squared": _squared,
}  # fmt: skip


def make_texture(name: str) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3] of one of params.TABLE_TEXTURES or SHEET_TEXTURES; a factor on the material's colour."""
    image = _MAKERS[name](np.random.default_rng(sum(name.encode())))
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
