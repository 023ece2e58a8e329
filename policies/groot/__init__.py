"""NVIDIA's GR00T N1.5 as a frozen base policy, in plain torch.

Nothing here imports torch until `Gr00tPolicy` or another name is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mjx_so101.errors import ConfigError

if TYPE_CHECKING:
    from policies.groot.policy import Gr00tPolicy
    from policies.groot.processor import JointMap

__all__ = ["Gr00tPolicy", "JointMap", "require_torch"]

_HOMES = {"Gr00tPolicy": "policy", "JointMap": "processor"}


def require_torch() -> None:
    """Raise ConfigError, with the fix, if torch or safetensors is missing."""
    for package in ("torch", "safetensors"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"GR00T needs {package}: pip install 'mjx-so101[groot]'.") from error


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torch()
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
