"""Command line `so101`: train, eval, compare, play, render, doctor. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.hardware import set_caches

COMMANDS = {
    "train": "train a residual on top of a base policy and report",
    "eval": "success of a run or of a base policy",
    "compare": "one table and plot of several runs",
    "play": "watch episodes in MuJoCo's viewer, or as a video",
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
    from mjx_so101.errors import SO101Error, require_choice

    run = {"train": _train, "eval": _eval, "compare": _compare, "play": _play, "render": _render, "doctor": _doctor}
    try:
        run[require_choice("command", arguments[0], COMMANDS)](arguments[1:])
    except SO101Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parse(kind: Any, arguments: list[str], command: str, **options: Any) -> Any:
    """Parse flags into dataclass `kind` with tyro; an unknown flag is an error that names near ones."""
    import tyro

    return tyro.cli(kind, args=arguments, prog=f"so101 {command}", **{"description": COMMANDS[command], **options})


# -- train -------------------------------------------------------------------------------------------------------------
_TRAIN_HELP = """train a residual on top of a base policy and report

Flags that decide the defaults of all others:
  --preset {cpu,gpu}   size of the run; default gpu where JAX has a GPU, else cpu
  --out DIR            new run folder; default runs/BASE-RANDOMIZATION-TIME
  --resume DIR         continue the run in DIR with its own configuration"""


def _train(arguments: list[str]) -> None:
    first = argparse.ArgumentParser(prog="so101 train", add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--out", "--resume"):
        first.add_argument(flag)
    given, rest = first.parse_known_args(arguments)

    import jax

    from mjx_so101.errors import SO101Error, require_choice
    from train.config import PRESETS, TrainConfig
    from train.loop import Trainer, prepare_folder, saved_config
    from train.report import command, write_report

    if given.resume:
        default = saved_config(Path(given.resume))
    else:
        preset = given.preset or ("gpu" if jax.default_backend() == "gpu" else "cpu")
        default = PRESETS[require_choice("preset", preset, PRESETS)]
    config = _parse(TrainConfig, rest, "train", default=default, description=_TRAIN_HELP)
    if given.preset == "gpu" or config.physics == "warp":
        _explain_missing_gpu(needed=given.preset == "gpu")
    folder = prepare_folder(Path(given.resume or given.out or _new_folder(config)), resume=bool(given.resume))
    try:
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
    write_report(trainer, trainer.best_learner(), finished=True)
    print((folder / "report.md").read_text())
    print(f"Report: {folder / 'report.md'}")


def _explain_missing_gpu(needed: bool) -> None:
    """Raise ConfigError if a GPU was asked for and JAX has none; only warn where the CPU is merely slow."""
    import jax

    from mjx_so101.errors import ConfigError

    if jax.default_backend() == "gpu":
        return
    message = (
        "JAX sees no GPU. Use --preset cpu, or install the GPU build: pip install 'mjx-so101[cuda13]' "
        "(driver 580 or newer) or 'mjx-so101[cuda12]'; `so101 doctor` says what is wrong."
    )
    if needed:
        raise ConfigError(f"--preset gpu: {message}")
    print(f"warning: physics 'warp' on a CPU is slow. {message}", file=sys.stderr)


def _new_folder(config) -> Path:
    import datetime

    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.base}-{Path(config.randomization).stem}-{stamp}"


# -- eval --------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Flags of `so101 eval`."""

    run: Path | None = None
    """Run folder whose best checkpoint is evaluated."""
    base: str | None = None
    """Base policy to evaluate alone, instead of a run."""
    episodes: int = 512
    seed: int = 0
    tolerance_mm: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Success tolerances in mm."""
    randomization: str | None = None
    """Preset or file; default is the run's own, or plain."""
    physics: str | None = None
    """Backend; default is the run's own, or auto."""
    sheet_friction: str | None = None
    """'dry' or 'viscous'; default is the run's own, or dry."""
    action: str = "mean"
    """'mean' or 'sample'."""
    num_envs: int = 512
    """Episodes simulated at once."""
    json: str | None = None
    """File for the JSON, or - for standard output."""
    video: Path | None = None
    """Folder for grid.mp4 and episode.mp4."""


def _eval(arguments: list[str]) -> None:
    flags = _parse(EvalFlags, arguments, "eval")
    from mjx_so101.errors import ConfigError

    for name in ("episodes", "num_envs"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"{name} is {getattr(flags, name)}; it must be at least 1.")
    if not all(0 < mm < float("inf") for mm in flags.tolerance_mm):
        raise ConfigError(f"tolerance_mm is {flags.tolerance_mm}; every tolerance must be greater than 0 mm.")
    print(f"Running {flags.episodes} episodes ...", file=sys.stderr)
    if flags.json and flags.json != "-":
        Path(flags.json).parent.mkdir(parents=True, exist_ok=True)

    from train.evaluate import Evaluator
    from train.policy import load_policy
    from train.report import provenance

    policy = load_policy(flags.run, flags.base, _overrides(flags), flags.tolerance_mm)
    env = policy.environment(min(flags.num_envs, flags.episodes))
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


def _overrides(flags: Any) -> dict[str, Any]:
    """Fields of the run's configuration that the flags replace."""
    return {
        name: getattr(flags, name)
        for name in ("randomization", "physics", "sheet_friction")
        if getattr(flags, name) is not None
    }


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


@dataclasses.dataclass(frozen=True)
class PlayFlags:
    """Flags of `so101 play`."""

    run: Path | None = None
    """Run folder whose best checkpoint plays."""
    base: str | None = None
    """Base policy to watch alone; default oracle if no run is given."""
    randomization: str | None = None
    physics: str | None = None
    sheet_friction: str | None = None
    seed: int = 0
    out: Path = Path("play")
    """Folder for the video where there is no display."""


def _play(arguments: list[str]) -> None:
    flags = _parse(PlayFlags, arguments, "play")
    from train.play import play
    from train.policy import load_policy

    base = flags.base or (None if flags.run else "oracle")
    play(load_policy(flags.run, base, _overrides(flags)), flags.seed, flags.out)


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
