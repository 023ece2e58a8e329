"""The actor that sees: a convolutional network per camera, pooled to where each feature is in the image, then layers.

Brax's vision network, fed so that a GPU is busy: a convolution over 3 channels leaves it idle, one over 48 does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from brax.training import networks

from mjx_so101.render import RenderConfig

CELL = 4
"""Side (pixels) of the squares that `cells` makes of a picture."""


def vision_network(
    render: RenderConfig, state_size: int, output_size: int, hidden: tuple[int, ...], std: float, normalize: Callable
) -> networks.FeedForwardNetwork:
    """Mean and standard deviation from vectors {'state': [..., state_size], 'pixels/CAMERA': uint8 [..., height, width,
    3]}; the mean is zero at the start.

    The first layer looks at 8 x 8 pixels every 4 pixels, as kernels of 2 x 2 over `cells`. On a GPU the first two
    layers compute in bfloat16. normalize: from the state and its statistics to what the network reads.
    """
    shape = (-(-render.height // CELL), -(-render.width // CELL), 3 * CELL**2)
    network = networks.make_policy_network_vision(
        {**{f"pixels/{name}": shape for name in render.cameras}, "state": (state_size,)},
        output_size,
        preprocess_observations_fn=normalize,
        hidden_layer_sizes=hidden,
        activation=jnp.tanh,
        state_obs_key="state",
        distribution_type="normal",
        noise_std_type="log",
        init_noise_std=std,
        mean_kernel_init=jax.nn.initializers.zeros,
        cnn_kernel_size=(2, 4, 3),
        cnn_stride=(1, 2, 1),
        cnn_global_pool="spatial_softmax",
    )

    def apply(statistics, parameters, vectors):
        dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
        seen = {key: cells(value).astype(dtype) / 255 for key, value in vectors.items() if key.startswith("pixels/")}
        parameters = _first_convolutions_as(dtype, parameters)
        return network.apply(statistics, parameters, {"state": vectors["state"], **seen})

    return networks.FeedForwardNetwork(init=network.init, apply=apply)


def cells(pictures: jax.Array) -> jax.Array:
    """[..., height, width, 3] to [..., height / CELL, width / CELL, 3 * CELL**2], rounded up with zeros: the same
    numbers in another order."""
    *lead, height, width, channels = pictures.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    missing = ((0, rows * CELL - height), (0, columns * CELL - width), (0, 0))
    padded = jnp.pad(pictures, (*[(0, 0)] * len(lead), *missing))
    grid = padded.reshape(*lead, rows, CELL, columns, CELL, channels)
    return jnp.swapaxes(grid, -4, -3).reshape(*lead, rows, columns, channels * CELL**2)


def _first_convolutions_as(dtype, parameters: Any) -> Any:
    """The parameters with those of all convolutions but the last of each camera in `dtype`.

    The last one computes in float32 again, because where a feature is in the image must be exact.
    """

    def cast(path, leaf):
        return leaf.astype(dtype) if any(str(part.key) in ("Conv_0", "Conv_1") for part in path) else leaf

    return jax.tree_util.tree_map_with_path(cast, parameters)
