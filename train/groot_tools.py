"""`so101 groot`: write a random GR00T N1.5 checkpoint, look into one without loading it, and run one once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mjx_so101.errors import ConfigError, require_choice
from policies.groot import require_torch
from train.groot_inspect import InspectFlags, inspect
from train.groot_smoke import SmokeFlags, smoke

COMMANDS = {
    "make-checkpoint": "write a valid checkpoint with random weights, for tests and timing",
    "inspect": "say what a checkpoint holds and how it was trained, without loading its weights",
    "smoke": "load a checkpoint, show it the cameras once and compare its targets with its training data",
}


def main(arguments: list[str]) -> None:
    """Run `so101 groot ARGUMENTS`. Raises ConfigError for an unknown subcommand, SO101Error for what goes wrong."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: so101 groot COMMAND [OPTIONS]     (so101 groot COMMAND --help lists the options)\n")
        print("\n".join(f"  {name:16} {text}" for name, text in COMMANDS.items()))
        return
    name = require_choice("groot command", arguments[0], COMMANDS)
    kinds: dict[str, Any] = {"make-checkpoint": MakeFlags, "inspect": InspectFlags, "smoke": SmokeFlags}
    run: dict[str, Callable[[Any], None]] = {"make-checkpoint": make, "inspect": inspect, "smoke": smoke}
    run[name](parse(kinds[name], arguments[1:], name))


def parse(kind: Any, arguments: list[str], name: str) -> Any:
    """Parse flags into dataclass `kind` with tyro; a field without a default is positional."""
    import tyro

    return tyro.cli(
        kind,
        args=arguments,
        prog=f"so101 groot {name}",
        description=COMMANDS[name],
        config=(tyro.conf.PositionalRequiredArgs,),
    )


@dataclasses.dataclass(frozen=True)
class MakeFlags:
    """Flags of `so101 groot make-checkpoint`."""

    folder: Path
    """New or empty folder."""
    size: str = "tiny"
    """'tiny' (20 MB) or 'full', the 3B model's sizes (4.8 GB)."""
    seed: int = 0
    """Of the random weights."""
    cameras: int = 2
    """Image keys in its metadata."""
    layout: str = "arm_0"
    """Names of the joints in its metadata: 'arm_0', 'single_arm' for single_arm (5) and gripper, or 'single_arm_6',
    where the gripper is the sixth of single_arm too."""


def make(flags: MakeFlags) -> None:
    """Write the checkpoint and say what it is."""
    require_torch()
    from policies.groot.make_checkpoint import make_checkpoint

    start = time.perf_counter()
    try:
        folder = make_checkpoint(flags.folder, flags.size, flags.seed, cameras=flags.cameras, layout=flags.layout)
    except OSError as error:
        raise ConfigError(f"{flags.folder} cannot be written ({error}); name another folder.") from error
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size:,} bytes in {seconds:.1f} s")
    print(f"Its weights are random ({flags.size}, seed {flags.seed}): right for tests and timing, useless on a robot.")
