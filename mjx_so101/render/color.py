"""The sRGB curve (IEC 61966-2-1), for NumPy and JAX arrays alike: Madrona needs it before JAX may be used."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def srgb_to_linear(srgb: Any) -> Any:
    """Linear light from sRGB in [0, 1]; values above 1 follow the same power."""
    xp, srgb = _arrays(srgb)
    return xp.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Any) -> Any:
    """sRGB from linear light."""
    xp, linear = _arrays(linear)
    return xp.where(linear <= 0.0031308, 12.92 * linear, 1.055 * xp.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)


def _arrays(value: Any) -> tuple[Any, Any]:
    """The library that `value` belongs to, and `value` as its array; what is not JAX becomes float64."""
    return (jnp, value) if isinstance(value, jax.Array) else (np, np.asarray(value, float))
