"""Command line `so101`: train, eval, compare, play, render, doctor. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import signals
from train.hardware import set_caches, share_gpu

if TYPE_CHECKING:
    from policies.model import ModelOptions
    from train.config import TrainConfig
    from train.evaluate import Episodes
    from train.flags import EvalFlags
    from train.run_folder import RunFolder

COMMANDS = {
    "train": "train a residual on top of a base policy and report",
    "eval": "success of a run or of a base policy",
    "compare": "one table and plot of several runs",
    "play": "watch episodes in MuJoCo's viewer, or as a video",
    "gate": "measure a base policy and say whether training on it is worth while",
    "teach-pose": "teach the network that finds the sheet in pictures",
    "groot": "make, inspect or try a GR00T N1.5 checkpoint",
    "render": "draw what the cameras see, as a contact sheet or a comparison of renderers",
    "doctor": "check this machine and say what to fix",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `so101`; errors of the library end with one line and exit status 2."""
    with signals.ended_by_signals():
        _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: so101 COMMAND [OPTIONS]     (so101 COMMAND --help lists the options)\n")
        print("\n".join(f"  {name:10}  {text}" for name, text in COMMANDS.items()))
        return
    set_caches()
    _share_gpu_with_torch(arguments)
    from mjx_so101.errors import SO101Error, require_choice

    run = {
        "train": _train, "eval": _eval, "compare": _compare, "play": _play, "gate": _gate, "groot": _groot,
        "teach-pose": _teach_pose,
        "render": _render, "doctor": _doctor,
    }  # fmt: skip
    try:
        run[require_choice("command", arguments[0], COMMANDS)](arguments[1:])
    except SO101Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(signals.said_last(), file=sys.stderr)
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
  --preset NAME        size of the run: cpu, gpu, gpu-groot (for groot and remote, whose model decides the speed) or
                       seed (four environments); default cpu, and where JAX has a GPU gpu or gpu-groot, after the base
  --out DIR            new run folder; default runs/BASE-RANDOMIZATION-TIME
  --resume DIR         continue the run in DIR with its own configuration

Bases groot and remote pass a gate first (so101 gate), whose report goes into the folder's `gate`:
  --gate-episodes N    episodes to begin with; default 100
  --force              train even if the gate says STOP; with --gate-episodes 0 without a gate
  --alpha auto         train with the alpha that the gate suggests; any base then passes the gate first"""


def _train(arguments: list[str]) -> None:
    first = argparse.ArgumentParser(prog="so101 train", add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--out", "--resume"):
        first.add_argument(flag)
    first.add_argument("--gate-episodes", type=int, default=100)
    first.add_argument("--force", action="store_true")
    first.add_argument("--alpha")
    given, rest = first.parse_known_args(arguments)
    rest += [] if given.alpha in (None, "auto") else ["--alpha", given.alpha]

    from mjx_so101.errors import require_choice
    from train import run_folder
    from train.config import PRESETS, TrainConfig, default_preset
    from train.gate_first import check_alpha
    from train.madrona_first import for_training
    from train.provenance import source

    source()  # as it is now: the run may outlast the next edit

    check_alpha(given.alpha, given.resume, given.gate_episodes)
    if given.resume:
        default = run_folder.saved_config(Path(given.resume))
        if any(word.partition("=")[0] == "--randomization" for word in rest):
            default = dataclasses.replace(default, resolved=None)  # what it says now is compared with the checkpoint
    else:
        preset = given.preset or default_preset(_base_in(rest), _has_gpu(rest))
        default = PRESETS[require_choice("preset", preset, PRESETS)]
    config = _parse(TrainConfig, rest, "train", default=default, description=_TRAIN_HELP)
    with for_training(config):
        config = config.resolve()
        if not given.resume:
            chosen = "given" if given.preset else "chosen by base and machine; --preset takes another"
            print(f"Preset {preset} ({chosen}): {config.num_envs:,} environments, {config.steps:,} steps", flush=True)
        needs_gpu = (given.preset or "").startswith("gpu")
        if needs_gpu or config.physics == "warp":
            _explain_missing_gpu(needed=given.preset if needs_gpu else "")
        with _run_folder(given, config) as folder:
            _train_in(folder, config, bool(given.resume), given.gate_episodes, given.force, given.alpha)


def _run_folder(given: argparse.Namespace, config: TrainConfig) -> RunFolder:
    """The folder to train in, which belongs to this process from now on."""
    from train import run_folder

    if given.resume:
        return run_folder.open_for_resume(Path(given.resume))
    if given.out:
        return run_folder.open_given(Path(given.out))
    return run_folder.open_new(f"{config.base}-{Path(config.randomization).stem}")


def _train_in(
    folder: RunFolder, config: TrainConfig, resume: bool, gate_episodes: int, force: bool, alpha: str | None
) -> None:
    """Train, or go on training, in a folder that this process owns, and report."""
    from mjx_so101.errors import SO101Error
    from train.gate_first import pass_gate
    from train.loop import Trainer
    from train.provenance import command
    from train.report import write_report

    out, begun = folder.path, folder.begun
    try:
        if not begun:
            folder.keep_config(config)  # first of all: a run that is killed from now on can be resumed
            shutil.rmtree(out / "gate", ignore_errors=True)  # of a run that was killed in it
            config = pass_gate(config, out, gate_episodes, force, alpha)
        trainer = Trainer(config, out)
    except SO101Error:
        if not resume:
            folder.discard()
        raise
    print(f"Training in {out}: base {config.base}, {config.randomization}, {config.num_envs} environments", flush=True)
    if begun:
        trainer.resume()
        print(f"Resumed at {trainer.steps:,} steps", flush=True)
    elif resume:
        print("It was stopped before its first checkpoint: starting anew", flush=True)
    folder.keep_config(config)
    folder.add_command(command())
    if not trainer.run():
        raise SystemExit(130)
    with signals.last_words(f"Stopped while reporting; training is saved. so101 train --resume {out} reports."):
        print("Reporting on unseen episodes ...", flush=True)
        try:
            write_report(trainer, trainer.best_learner(), finished=True)
        except KeyboardInterrupt:
            print(signals.said_last(), file=sys.stderr)
            raise SystemExit(130) from None
    print((out / "report.md").read_text())
    print(f"Report: {out / 'report.md'}")


def _base_in(arguments: list[str]) -> str:
    """The base policy that the flags name, or the default one."""
    from train.config import TrainConfig

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--base", default=TrainConfig.base)
    return flags.parse_known_args(arguments)[0].base


def _has_gpu(arguments: list[str]) -> bool:
    """Whether there is a GPU to train on. Madrona needs one, and must be there before JAX, which could tell."""
    from train.madrona_first import MADRONA

    if any(word.rpartition("=")[2] == MADRONA for word in arguments):
        return True
    import jax

    return jax.default_backend() == "gpu"


def _explain_missing_gpu(needed: str) -> None:
    """Raise ConfigError if preset `needed` asked for a GPU and JAX has none; only warn where the CPU is merely slow."""
    import jax

    from mjx_so101.errors import ConfigError

    if jax.default_backend() == "gpu":
        return
    message = (
        "JAX sees no GPU. Use --preset cpu, or install the GPU build: pip install -e '.[cuda13]' "
        "(driver 580 or newer) or '.[cuda12]'; `so101 doctor` says what is wrong."
    )
    if needed:
        raise ConfigError(f"--preset {needed}: {message}")
    print(f"warning: physics 'warp' on a CPU is slow. {message}", file=sys.stderr)


# -- eval --------------------------------------------------------------------------------------------------------------
def _eval(arguments: list[str]) -> None:
    from mjx_so101.errors import ConfigError
    from train.files import make_folders, require_writable_file, require_writable_folder, write_text
    from train.flags import EvalFlags, overrides

    flags = _parse(EvalFlags, arguments, "eval", default=EvalFlags(model=_model_of_run(arguments)))

    if flags.episodes < 1:
        raise ConfigError(f"episodes is {flags.episodes}; it must be at least 1.")
    if not all(0 < mm < float("inf") for mm in flags.tolerance_mm):
        raise ConfigError(f"tolerance_mm is {flags.tolerance_mm}; every tolerance must be greater than 0 mm.")
    if flags.json and flags.json != "-":
        require_writable_file(Path(flags.json), "--json")
    if flags.video:
        require_writable_folder(flags.video, "--video")

    from policies.base import BASES, SCRIPTED
    from train.madrona_first import for_evaluation
    from train.policy import policy_config
    from train.provenance import provenance
    from train.report import success_text
    from train.video import write_videos

    with contextlib.redirect_stdout(sys.stderr):  # Warp and models announce themselves; --json - must stay JSON
        changes = overrides(flags)
        if flags.base in BASES and flags.base not in SCRIPTED:
            changes["eval_episodes"] = flags.episodes  # a model answers for no episode that nobody asked for
        with for_evaluation(policy_config(flags.run, flags.base, changes)):
            episodes, evaluated = _evaluate(flags, changes)
        summary = episodes.summary()
    record = {**summary, **evaluated, "seed": flags.seed, **provenance()}
    text = json.dumps(record, indent=2)
    if flags.json == "-":
        print(text, flush=True)
    else:
        print(success_text(record))
    if flags.json and flags.json != "-":
        make_folders(Path(flags.json).parent)
        write_text(Path(flags.json), text + "\n")
    if flags.video:
        print(*write_videos(episodes, flags.video, flags.video_episodes), sep="\n", file=sys.stderr)


def _evaluate(flags: EvalFlags, changes: dict[str, Any]) -> tuple[Episodes, dict[str, Any]]:
    """Run the episodes; gives them, and which policy and environment they are of."""
    from train.evaluate import Evaluator
    from train.policy import load_policy

    policy = load_policy(flags.run, flags.base, changes, flags.tolerance_mm)
    env = policy.environment(policy.config.evaluation_batch())
    print(f"Running {flags.episodes} episodes under randomization {policy.randomization} ...", flush=True)
    evaluator = Evaluator(env, policy.base, policy.residual, _action(flags.action), blind=policy.config.blind)
    episodes = evaluator(policy.learner, flags.episodes, flags.seed)
    return episodes, {"policy": policy.name, "environment": env.describe()}


def _model_of_run(arguments: list[str]) -> ModelOptions:
    """The model that the run named in `arguments` was trained with: the default of the flags that replace it."""
    from policies.model import ModelOptions
    from train.policy import checkpoint_config

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--run", type=Path)
    flags.add_argument("--base")
    given, _ = flags.parse_known_args(arguments)
    return checkpoint_config(given.run).model if given.run and not given.base else ModelOptions()


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
    mixed: bool = False
    """Compare runs of different tasks, and say how they differ."""


def _compare(arguments: list[str]) -> None:
    import tyro

    flags = _parse(CompareFlags, arguments, "compare", config=(tyro.conf.PositionalRequiredArgs,))
    from train.compare import compare_runs
    from train.files import require_writable_folder

    require_writable_folder(flags.out, "--out")
    print(compare_runs(list(flags.runs), flags.out, flags.mixed))


def _play(arguments: list[str]) -> None:
    from train.files import require_writable_folder
    from train.flags import PlayFlags, overrides

    flags = _parse(PlayFlags, arguments, "play", default=PlayFlags(model=_model_of_run(arguments)))
    require_writable_folder(flags.out, "--out")
    from train.madrona_first import for_evaluation
    from train.play import has_display, play
    from train.policy import load_policy, policy_config

    chosen = flags.run, flags.base or (None if flags.run else "oracle"), overrides(flags)
    with for_evaluation(policy_config(*chosen), 1 if has_display() else flags.video_episodes):
        play(load_policy(*chosen), flags.seed, flags.out, flags.video_episodes)


def _gate(arguments: list[str]) -> None:
    from train.gate import GateFlags, gate_main

    raise SystemExit(gate_main(_parse(GateFlags, arguments, "gate")))


def _teach_pose(arguments: list[str]) -> None:
    from train.teach_command import TeachFlags, teach_pose

    teach_pose(_parse(TeachFlags, arguments, "teach-pose"))


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
