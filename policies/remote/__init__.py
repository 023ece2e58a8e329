"""A base policy that another process serves: the client of Isaac-GR00T's inference service. Torch-free.

Nothing here imports zmq or msgpack until `RemotePolicy` is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mjx_so101.errors import ConfigError

if TYPE_CHECKING:
    from policies.remote.client import RemotePolicy

__all__ = ["RemotePolicy"]

_PACKAGES = {"zmq": "pyzmq", "msgpack": "msgpack"}


def __getattr__(name: str) -> Any:
    if name != "RemotePolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module, package in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"A remote policy needs {package}: pip install -e '.[remote]'.") from error
    return importlib.import_module(f"{__name__}.client").RemotePolicy
