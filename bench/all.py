"""Measures a list of figures anew, each by its own command in a process of its own, and writes their records.

    python -m bench.all --list
    python -m bench.all --only h100_state_fps h100_train --out results

A figure that fails or takes too long does not stop the others. Everything together is over within `--minutes`.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import tyro

from mjx_so101 import ConfigError, SO101Error
from mjx_so101.errors import require_choice

CPU = {"JAX_PLATFORMS": "cpu"}
_RGB = "bench.cameras --steps 10"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One record: the module and its flags, and how long it may take."""

    command: str
    """{runs} becomes the folder of training runs; `--out` is added."""
    minutes: float = 10.0
    cpu: bool = False
    """Keep JAX on the CPU, whatever the machine has."""

    def words(self, out: Path, runs: Path) -> list[str]:
        """Arguments of Python."""
        module, *flags = [word.format(runs=runs) for word in shlex.split(self.command)]
        split = flags.index("--") if "--" in flags else len(flags)
        return ["-m", module, *flags[:split], "--out", str(out), *flags[split:]]


FIGURES: dict[str, Figure] = {
    "cpu_state_fps": Figure("bench.fps --targets random jacobian --physics native --num-envs 256 1024", 6, cpu=True),
    "cpu_train": Figure("bench.train --seeds 0 --folder {runs} -- --preset cpu", 10, cpu=True),
    "cpu_eval_repeat": Figure("bench.repeat --episodes 512", 10, cpu=True),
    "h100_state_fps": Figure("bench.fps --targets random jacobian --physics warp --num-envs 4096 16384 65536", 8),
    "h100_train": Figure("bench.train --seeds 0 1 2 --folder {runs} -- --preset gpu --no-video"),
    "h100_train_real": Figure("bench.train --seeds 0 --folder {runs} -- --preset gpu --randomization real"),
    "h100_pixels_privileged": Figure(
        "bench.train --seeds 0 --blind-seeds 0 --folder {runs} -- --preset gpu --obs pixels --privileged-base "
        "--detail coarse --steps 10000000 --eval-every 0.125 --eval-episodes 512 --no-video"
    ),
    "h100_pixels_train": Figure(
        "bench.train --seeds 0 1 2 --blind-seeds 0 --over bench/results/h100_train.json --folder {runs} -- "
        "--preset gpu --sheet-pose camera --width 128 --height 128 --steps 20000000 --eval-every 0.1 "
        "--eval-episodes 512 --no-video"
    ),
    "h100_madrona_train": Figure(
        "bench.train --seeds 0 --folder {runs} -- --preset gpu --sheet-pose camera --renderer madrona --width 128 "
        "--height 128 --steps 20000000 --eval-every 0.1 --eval-episodes 512 --no-video"
    ),
    "h100_pose": Figure("bench.pose"),
    "h100_eval_repeat": Figure("bench.repeat", 5),
    "base_policies": Figure("bench.bases", 8),
    "h100_rgb_one_camera": Figure(_RGB + " --cameras 1 --size 64x64 128x128 224x224 --num-envs 65536 32768 16384"),
    "h100_rgb_two_cameras": Figure(_RGB + " --cameras 2 --size 224x224 320x240 --num-envs 16384 8192"),
    "h100_rgb_fine": Figure(_RGB + " --cameras 1 --detail fine --size 64x64 --num-envs 65536"),
    "h100_rgb_meshes": Figure(_RGB + " --cameras 1 --meshes package --size 64x64 --num-envs 65536"),
    "cpu_rgb": Figure(
        "bench.cameras --renderer quad warp mujoco --cameras 1 --size 64x64 --num-envs 256 --steps 10", 10, cpu=True
    ),
    "h100_rgb_ratios": Figure(_RGB + " --renderer quad --cameras 1 --size 64x64 --num-envs 65536 --ratios"),
    "h100_rgb_equal": Figure(
        "bench.cameras --renderer warp madrona --no-textures --cameras 1 --steps 10 "
        "--size 64x64 128x128 --num-envs 8192 8192"
    ),
    "h100_groot": Figure("bench.groot --phases inference loop recovery train"),
    "h100_groot_fp8": Figure("bench.groot --phases inference fp8"),
}


@dataclasses.dataclass(frozen=True)
class AllConfig:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Names of figures, in the order in which they are measured."""
    out: Path = Path("results")
    """Folder for the records, NAME.json, and for what each command printed, NAME.log."""
    runs: Path = Path("runs/bench")
    """Folder of training runs. What is finished there is not trained again, so that a list may be made in parts."""
    minutes: float = 10.0
    """When all must be over."""
    list: bool = False
    """Only print the names and their commands."""

    def __post_init__(self) -> None:
        for name in self.only:
            require_choice("only", name, FIGURES)
        if not self.only and not self.list:
            raise ConfigError(f"only is empty; name at least one figure of {', '.join(FIGURES)}.")
        if not self.minutes > 0:
            raise ConfigError(f"minutes is {self.minutes}; it must be greater than 0.")


def measure(name: str, figure: Figure, config: AllConfig, seconds: float) -> str:
    """Run one figure's command; gives 'done', or what went wrong."""
    out = config.out / f"{name}.json"
    out.unlink(missing_ok=True)  # what stands there in the end is of this run
    command = [sys.executable, *figure.words(out, config.runs / name)]
    env = {**os.environ, **(CPU if figure.cpu else {})}
    with (config.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"stopped after {seconds:.0f} s" + (": the record holds what was done" if out.exists() else "")
    if code:
        return f"failed ({code}), see {config.out / f'{name}.log'}"
    return "done" if out.exists() else "failed: no record was written"


def main(config: AllConfig) -> bool:
    """Measure one figure after the other; gives whether all were done."""
    if config.list:
        for name, figure in FIGURES.items():
            print(f"{name:24} python {shlex.join(figure.words(Path('NAME.json'), Path('RUNS')))}")
        return True
    config.out.mkdir(parents=True, exist_ok=True)
    begin, lines = time.monotonic(), []
    for name in config.only:
        start = time.monotonic()
        left = 60 * config.minutes - (start - begin)
        said = (
            measure(name, FIGURES[name], config, min(left, 60 * FIGURES[name].minutes)) if left > 1 else "no time left"
        )
        lines.append(f"{name:24} {time.monotonic() - start:6.0f} s  {said}")
        print(lines[-1], flush=True)
    done = sum(line.endswith("  done") for line in lines)
    print(f"{done} of {len(lines)} done; records in {config.out}")
    return done == len(lines)


if __name__ == "__main__":
    try:
        sys.exit(0 if main(tyro.cli(AllConfig)) else 1)
    except SO101Error as error:
        sys.exit(f"error: {error}")
