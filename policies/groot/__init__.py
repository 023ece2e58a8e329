"""NVIDIA's GR00T N1.5 as a frozen base policy, in plain torch.

Nothing here imports torch until `Gr00tPolicy` is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mjx_so101.errors import ConfigError
from policies.joints import JointMap

if TYPE_CHECKING:
    from policies.groot.policy import Gr00tPolicy

__all__ = ["Gr00tPolicy", "JointMap", "require_torch"]


def require_torch() -> None:
    """Raise ConfigError, with the fix, if torch or safetensors is missing."""
    for package in ("torch", "safetensors"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"GR00T needs {package}: pip install -e '.[groot]'.") from error


def __getattr__(name: str) -> Any:
    if name != "Gr00tPolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torch()
    return importlib.import_module(f"{__name__}.policy").Gr00tPolicy
