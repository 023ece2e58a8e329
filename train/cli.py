"""Command line `so101`: train, eval, compare, play, render, doctor. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.hardware import set_caches, share_gpu

if TYPE_CHECKING:
    from policies.model import ModelOptions
    from train.config import TrainConfig

COMMANDS = {
    "train": "train a residual on top of a base policy and report",
    "eval": "success of a run or of a base policy",
    "compare": "one table and plot of several runs",
    "play": "watch episodes in MuJoCo's viewer, or as a video",
    "gate": "measure a base policy and say whether training on it is worth while",
    "groot": "make, inspect or try a GR00T N1.5 checkpoint",
    "render": "draw what the cameras see, as a contact sheet or a comparison of renderers",
    "doctor": "check this machine and say what to fix",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `so101`; errors of the library end with one line and exit status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: so101 COMMAND [OPTIONS]     (so101 COMMAND --help lists the options)\n")
        print("\n".join(f"  {name:8}  {text}" for name, text in COMMANDS.items()))
        return
    set_caches()
    _share_gpu_with_torch(arguments)
    from mjx_so101.errors import SO101Error, require_choice

    run = {
        "train": _train, "eval": _eval, "compare": _compare, "play": _play, "gate": _gate, "groot": _groot,
        "render": _render, "doctor": _doctor,
    }  # fmt: skip
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run[require_choice("command", arguments[0], COMMANDS)](arguments[1:])
    except SO101Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None


def _share_gpu_with_torch(arguments: Sequence[str]) -> None:
    """Before JAX starts: leave part of the GPU to torch if the base policy is GR00T."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--base")
    flags.add_argument("--jax-memory", "--jax_memory", type=float)
    for name in ("--run", "--resume"):
        flags.add_argument(name, type=Path, dest="run")
    given, _ = flags.parse_known_args(arguments[1:])
    base, memory = given.base, given.jax_memory
    if given.run:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # reported where the file is needed
            saved = json.loads((given.run / "config.json").read_text())
            base = base or saved["base"]
            memory = memory or saved["model"]["jax_memory"]
    if base == "groot":
        share_gpu(memory)


def _parse(kind: Any, arguments: list[str], command: str, **options: Any) -> Any:
    """Parse flags into dataclass `kind` with tyro; an unknown flag is an error that names near ones."""
    import tyro

    return tyro.cli(kind, args=arguments, prog=f"so101 {command}", **{"description": COMMANDS[command], **options})


# -- train -------------------------------------------------------------------------------------------------------------
_TRAIN_HELP = """train a residual on top of a base policy and report

Flags that decide the defaults of all others:
  --preset {cpu,gpu}   size of the run; default gpu where JAX has a GPU, else cpu
  --out DIR            new run folder; default runs/BASE-RANDOMIZATION-TIME
  --resume DIR         continue the run in DIR with its own configuration

Bases groot and remote pass a gate first (so101 gate), whose report goes into the folder's `gate`:
  --gate-episodes N    episodes to begin with; default 100
  --force              train even if the gate says STOP; with --gate-episodes 0 without a gate"""


def _train(arguments: list[str]) -> None:
    first = argparse.ArgumentParser(prog="so101 train", add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--out", "--resume"):
        first.add_argument(flag)
    first.add_argument("--gate-episodes", type=int, default=100)
    first.add_argument("--force", action="store_true")
    given, rest = first.parse_known_args(arguments)

    import jax

    from mjx_so101.errors import SO101Error, require_choice
    from policies.base import SCRIPTED
    from train.config import PRESETS, TrainConfig
    from train.loop import Trainer, new_folder, prepare_folder, saved_config
    from train.provenance import command, source
    from train.report import write_report

    source()  # as it is now: the run may outlast the next edit

    if given.resume:
        default = saved_config(Path(given.resume))
    else:
        preset = given.preset or ("gpu" if jax.default_backend() == "gpu" else "cpu")
        default = PRESETS[require_choice("preset", preset, PRESETS)]
    config = _parse(TrainConfig, rest, "train", default=default, description=_TRAIN_HELP)
    if given.preset == "gpu" or config.physics == "warp":
        _explain_missing_gpu(needed=given.preset == "gpu")
    folder = prepare_folder(
        Path(given.resume or given.out or new_folder(f"{config.base}-{Path(config.randomization).stem}")),
        resume=bool(given.resume),
    )
    try:
        if config.base not in SCRIPTED and not given.resume:
            _pass_gate(config, folder, given.gate_episodes, given.force)
        trainer = Trainer(config, folder)
    except SO101Error:
        if not any(folder.iterdir()):
            folder.rmdir()  # refused before anything was written: leave no empty run behind
        raise
    print(f"Training in {folder}: base {config.base}, {config.randomization}, {config.num_envs} environments")
    if given.resume:
        trainer.resume()
        print(f"Resumed at {trainer.steps:,} steps")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    with (folder / "commands.txt").open("a") as file:
        file.write(command() + "\n")
    if not trainer.run():
        raise SystemExit(130)
    print("Reporting on unseen episodes ...")
    try:
        write_report(trainer, trainer.best_learner(), finished=True)
    except KeyboardInterrupt:
        print(f"\nStopped while reporting; training is saved. so101 train --resume {folder} reports.", file=sys.stderr)
        raise SystemExit(130) from None
    print((folder / "report.md").read_text())
    print(f"Report: {folder / 'report.md'}")


def _pass_gate(config: TrainConfig, folder: Path, episodes: int, force: bool) -> None:
    """Measure the base policy alone. Raises ConfigError if training on it makes no sense and is not forced."""
    from mjx_so101.errors import ConfigError
    from train.gate import GateSettings, require_gate, run_gate
    from train.policy import base_alone

    if episodes == 0:
        if not force:
            raise ConfigError("--gate-episodes 0 leaves out the gate; it needs --force.")
        print("No gate: --gate-episodes 0 --force")
        return
    most = max(episodes, GateSettings.most_episodes)
    settings = GateSettings(episodes=episodes, most_episodes=most, video=config.video)
    result = run_gate(base_alone(config), settings, folder / "gate")
    print(f"Gate: {result.line}")
    require_gate(result, force)


def _explain_missing_gpu(needed: bool) -> None:
    """Raise ConfigError if a GPU was asked for and JAX has none; only warn where the CPU is merely slow."""
    import jax

    from mjx_so101.errors import ConfigError

    if jax.default_backend() == "gpu":
        return
    message = (
        "JAX sees no GPU. Use --preset cpu, or install the GPU build: pip install -e '.[cuda13]' "
        "(driver 580 or newer) or '.[cuda12]'; `so101 doctor` says what is wrong."
    )
    if needed:
        raise ConfigError(f"--preset gpu: {message}")
    print(f"warning: physics 'warp' on a CPU is slow. {message}", file=sys.stderr)


# -- eval --------------------------------------------------------------------------------------------------------------
def _eval(arguments: list[str]) -> None:
    from mjx_so101.errors import ConfigError
    from train.flags import EvalFlags, overrides

    flags = _parse(EvalFlags, arguments, "eval", default=EvalFlags(model=_model_of_run(arguments)))

    if flags.episodes < 1:
        raise ConfigError(f"episodes is {flags.episodes}; it must be at least 1.")
    if not all(0 < mm < float("inf") for mm in flags.tolerance_mm):
        raise ConfigError(f"tolerance_mm is {flags.tolerance_mm}; every tolerance must be greater than 0 mm.")
    if flags.json and flags.json != "-":
        Path(flags.json).parent.mkdir(parents=True, exist_ok=True)

    from train.evaluate import Evaluator
    from train.policy import load_policy
    from train.provenance import provenance

    with contextlib.redirect_stdout(sys.stderr):  # Warp and models announce themselves; --json - must stay JSON
        policy = load_policy(flags.run, flags.base, overrides(flags), flags.tolerance_mm)
        env = policy.environment(policy.config.evaluation_batch())
        print(f"Running {flags.episodes} episodes ...")
        summary = Evaluator(env, policy.base, policy.residual, _action(flags.action))(
            policy.learner, flags.episodes, flags.seed
        ).summary()
    record = {**summary, "policy": policy.name, "seed": flags.seed, "environment": env.describe(), **provenance()}
    text = json.dumps(record, indent=2)
    if flags.json and flags.json != "-":
        Path(flags.json).write_text(text + "\n")
    if flags.json == "-":
        print(text)
    else:
        for tolerance, entry in summary["success"].items():
            print(f"success within {tolerance} mm: {entry['rate']:.1%} ({entry['low']:.1%} to {entry['high']:.1%})")
    if flags.video:
        print(*policy.write_video(flags.video, flags.seed), sep="\n", file=sys.stderr)


def _model_of_run(arguments: list[str]) -> ModelOptions:
    """The model that the run named in `arguments` was trained with: the default of the flags that replace it."""
    from policies.model import ModelOptions
    from train.loop import saved_config

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--run", type=Path)
    flags.add_argument("--base")
    given, _ = flags.parse_known_args(arguments)
    return saved_config(given.run).model if given.run and not given.base else ModelOptions()


def _action(name: str) -> str:
    from mjx_so101.errors import require_choice

    return require_choice("action", name, ("mean", "sample"))


# -- compare, play, doctor ---------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class CompareFlags:
    """Flags of `so101 compare`."""

    runs: tuple[Path, ...]
    """Run folders with a report."""
    out: Path = Path("comparison")
    """Folder for comparison.md and comparison.png."""


def _compare(arguments: list[str]) -> None:
    import tyro

    flags = _parse(CompareFlags, arguments, "compare", config=(tyro.conf.PositionalRequiredArgs,))
    from train.compare import compare_runs

    print(compare_runs(list(flags.runs), flags.out))


def _play(arguments: list[str]) -> None:
    from train.flags import PlayFlags, overrides
    from train.play import play
    from train.policy import load_policy

    flags = _parse(PlayFlags, arguments, "play", default=PlayFlags(model=_model_of_run(arguments)))
    base = flags.base or (None if flags.run else "oracle")
    play(load_policy(flags.run, base, overrides(flags)), flags.seed, flags.out)


def _gate(arguments: list[str]) -> None:
    from train.gate import GateFlags, gate_main

    raise SystemExit(gate_main(_parse(GateFlags, arguments, "gate")))


def _groot(arguments: list[str]) -> None:
    from train.groot_tools import main as groot_main

    groot_main(arguments)


def _render(arguments: list[str]) -> None:
    from train.pictures import RenderFlags, render_pictures

    render_pictures(_parse(RenderFlags, arguments, "render"))


def _doctor(arguments: list[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class DoctorFlags:
        pass

    _parse(DoctorFlags, arguments, "doctor")
    from train.doctor import diagnose

    raise SystemExit(diagnose())


if __name__ == "__main__":
    main()
