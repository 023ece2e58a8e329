"""How MJX's Warp kernels become CUDA graphs."""

from __future__ import annotations

from typing import Any

import jax


def graph_mode(host_stepped: bool) -> Any:
    """Graph mode for `mjx.put_model(impl="warp")`; None leaves it to MJX.

    MJX records a graph for each set of buffer addresses and keeps the last 32. Rollouts that give their carry's buffers
    back meet few of them. In a function called anew from the host for every step they keep changing, and recording
    takes longer than the step (`python -m bench.groot --phases recovery` measures both): `host_stepped` therefore
    copies through fixed buffers instead.
    """
    if not host_stepped or jax.default_backend() != "gpu":
        return None
    import warp

    return warp.JaxCallableGraphMode.WARP_STAGED
