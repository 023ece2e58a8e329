"""The report of a run: final numbers on unseen episodes, learning curve, videos, report.json and report.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from mjx_so101.params import Randomization
from policies.base import BasePolicy
from policies.residual import Learner
from train.evaluate import Episodes, Evaluator
from train.files import replacing, write_text
from train.provenance import commit_in_words, provenance
from train.rollout import BASE, MEAN, NOISE, SAMPLE
from train.teach import errors_in_words
from train.video import write_videos

if TYPE_CHECKING:
    from train.config import TrainConfig

BLIND = "blind"
TRUE_POSE = "base sees the true pose"


def compare_policies(
    evaluator: Evaluator, learner: Learner, episodes: int, seed: int
) -> tuple[dict[str, dict[str, Any]], Episodes]:
    """Summaries of base, mean action, sampled action, and base + noise as large as the mean residual, on the same
    episodes; of a policy that sees pictures also 'blind', its mean action on blank ones. And the episodes of the mean.
    """
    shown = evaluator.variant(MEAN)(learner, episodes, seed)
    mean = shown.summary()
    others = {
        name: evaluator.variant(name, mean["residual_rms"])(learner, episodes, seed).summary()
        for name in (BASE, SAMPLE, NOISE)
    }
    results = {BASE: others[BASE], MEAN: mean, SAMPLE: others[SAMPLE], NOISE: others[NOISE]}
    if evaluator.sees_pictures:
        results[BLIND] = evaluator.variant(MEAN, blind=True)(learner, episodes, seed).summary()
    return results, shown


def task_of(env: PaperReturnEnv, episodes: int, seed: int) -> dict[str, Any]:
    """What was evaluated: two results with another one cannot be compared. Plain JSON types."""
    rules = dataclasses.asdict(env.task.config)
    rules.pop("stay_share", None)  # only training asks for it
    return json.loads(json.dumps({
        "episodes": episodes,
        "seed": seed,
        "sheet_friction": env.scene.sheet_friction,
        "rules": rules,
        "ranges": env.task.randomization.to_dict()["ranges"],
    }))  # fmt: skip


def saw(config: TrainConfig, base: BasePolicy) -> dict[str, list[str]]:
    """What actor, base policy and critic get to see in a run."""
    pictures = "blank pictures" if config.blind else "pictures"
    pose = "sheet_pose" if config.sheet_pose == "simulation" else f"sheet_pose from {pictures}"
    actor = ["joints", pictures if config.obs == "pixels" else pose]
    if not config.privileged_base and config.obs != "state25":
        actor.append("base_plan")
    sees = [pose if what == "sheet_pose" else what for what in base.sees]
    return {"actor": actor, "base": sees, "critic": ["joints", "sheet_pose", "base_plan", "parameters"]}


def seen(saw: dict[str, list[str]]) -> str:
    """What the actor sees, in words, and whether the base sees what the actor does not."""
    return ", ".join(saw["actor"]) + (f"; {TRUE_POSE}" if privileged(saw) else "")


def privileged(saw: dict[str, list[str]]) -> bool:
    """Whether the base sees the sheet's pose and the actor does not."""
    return "sheet_pose" in saw["base"] and "sheet_pose" not in saw["actor"]


def learning_curve(evaluations: list[dict[str, Any]], base: dict[str, Any], path: Path) -> None:
    """Plot success at each tolerance over steps, with Wilson intervals, at the end dotted, the base's dashed."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    steps = [e["steps"] for e in evaluations]
    for i, tolerance in enumerate(base["success"]):
        entries = [e["success"].get(tolerance) for e in evaluations]
        if any(entry is None for entry in entries):
            continue
        color = f"C{i}"
        axes.plot(steps, [e["rate"] for e in entries], color=color, marker="o", ms=3, label=f"within {tolerance} mm")
        axes.fill_between(steps, [e["low"] for e in entries], [e["high"] for e in entries], color=color, alpha=0.15)
        axes.plot(steps, [e["success_at_end"][tolerance]["rate"] for e in evaluations], color=color, ls=":", lw=1)
        axes.axhline(base["success"][tolerance]["rate"], color=color, ls="--", lw=1)
    axes.set(xlabel="control steps", ylabel="success rate (mean action)", ylim=(-0.02, 1.02))
    axes.set_title(
        "Selection episodes; dotted: at the end; dashed: base policy alone on the report episodes", fontsize=9
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def rate(entry: dict[str, Any]) -> str:
    """A rate of a summary with its interval."""
    return f"{entry['rate']:.1%} ({entry['low']:.1%}-{entry['high']:.1%})"


def success_text(record: dict[str, Any]) -> str:
    """What `so101 eval` prints: success, ever held and at the end, faults, and what was evaluated."""
    env = record["environment"]
    lines = [
        f"success within {mm} mm: {rate(entry)}; at the end {rate(record['success_at_end'][mm])}"
        for mm, entry in record["success"].items()
    ]
    if faults(record) != "-":
        lines.append(f"of {record['episodes']} episodes: {faults(record)}")
    return "\n".join([
        *lines,
        f"{record['policy']}: {record['episodes']} episodes of seed {record['seed']}, randomization "
        f"{env['randomization']['name']}, {env['sheet_friction']} sheet, physics {env['physics']}, "
        f"{env['num_envs']} episodes at once",
    ])  # fmt: skip


def faults(summary: dict[str, Any]) -> str:
    """How many episodes of a summary went wrong, and how; '-' if none did."""
    kinds = {
        "invalid": "invalid_episodes", "bad target": "bad_target_episodes", "not finite": "nonfinite_episodes",
        "overflow": "overflow_episodes",
    }  # fmt: skip
    return ", ".join(f"{summary[key]} {kind}" for kind, key in kinds.items() if summary[key]) or "-"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown table of summaries by name."""
    tolerances = list(next(iter(results.values()))["success"])
    head = ["policy", *(f"{kind} {t} mm" for t in tolerances for kind in ("success", "at the end"))]
    head += ["return", "distance mm", "yaw deg", "residual mrad", "faults"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, s in results.items():
        rates = [rate(s[kind][t]) for t in tolerances for kind in ("success", "success_at_end")]
        rest = [f"{s['mean_return']:.2f}", f"{s['final_distance_mm']:.1f}", f"{s['final_yaw_deg']:.2f}"]
        rest += [f"{1000 * s['mean_residual_rad']:.1f}", faults(s)]
        lines.append("| " + " | ".join([name, *rates, *rest]) + " |")
    return "\n".join(lines)


def write_report(trainer, learner: Learner, finished: bool) -> dict[str, Any]:
    """Evaluate the best learner on the report episodes and write report.json, report.md, curve and videos."""
    from train.loop import REPORT_SEED

    config, out, env = trainer.config, trainer.out, trainer.eval_env
    results, episodes = compare_policies(trainer.evaluator, learner, config.report_episodes, REPORT_SEED)
    learning_curve(trainer.evaluations, results["base"], out / "learning_curve.png")
    report = {
        **provenance(),
        "command": trainer.commands(),
        "config": config.to_dict(),
        "environment": env.describe(),
        "task": task_of(env, config.report_episodes, REPORT_SEED),
        "saw": saw(config, trainer.base),
        "finished": finished,
        "ended": trainer.ended,
        "steps": trainer.steps,
        "seconds": {**trainer.seconds, "total": trainer.wall_seconds},
        "steps_per_second": trainer.steps_per_second if np.isfinite(trainer.steps_per_second) else None,
        "peak_memory_bytes": peak_memory(),
        "evaluations": trainer.evaluations,
        "taught": trainer.taught,
        "results": results,
        "note": trainer.base.note,
        "videos": [],
    }
    _write(report, out)
    if config.video:  # last, because nothing else must be lost if they fail
        try:
            report["videos"] = [path.name for path in write_videos(episodes, out, config.video_episodes)]
        except ConfigError as error:
            print(f"No videos: {error}")
        _write(report, out)
    return report


def _write(report: dict[str, Any], out: Path) -> None:
    write_text(out / "report.json", json.dumps(report, indent=2))
    write_text(out / "report.md", _markdown(report))


def peak_memory() -> int | None:
    """Peak bytes in use on the accelerator, or resident on the host when JAX runs on the CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _markdown(report: dict[str, Any]) -> str:
    config, env = report["config"], report["environment"]
    spent, told = report["seconds"], report["saw"]
    flag = f", {TRUE_POSE}" if privileged(told) else ""
    lines = [
        f"# {config['base']} + residual under {env['randomization']['name']} ({env['sheet_friction']} sheet){flag}",
        "",
        f"Command `{report['command']}`, {commit_in_words(report)}, {report['device']}, physics {env['physics']}.",
        f"{report['steps']:,} control steps of {config['num_envs']} environments, "
        f"{report['steps_per_second'] or 0:,.0f} steps/s; {spent['total']:.0f} s with compilation "
        f"({spent['compile']:.0f} s) and evaluation ({spent['evaluation']:.0f} s)"
        + (f". {report['ended']}" if report["finished"] else "; stopped early by a signal."),
        *_chosen(report["evaluations"]),
        *([f"Pose network: {errors_in_words(report['taught'])}."] if report["taught"] else []),
        "",
        *([f"**{report['note']}**", ""] if report["note"] else []),
        "; ".join(f"{who} sees {', '.join(what) or 'nothing'}" for who, what in told.items()) + ".",
        *(
            [f"**{TRUE_POSE.capitalize()}**, the actor does not: pictures are worth *mean* less *blind*."]
            if flag
            else []
        ),
        "",
        f"{config['report_episodes']} episodes of {report['task']['rules']['episode_steps']} steps, none of them used "
        "to choose the checkpoint; 95 % Wilson intervals. *success*: held inside at any time; *at the end*: held, and "
        "still inside at the last step. *noise* is the base policy plus white noise as large as the mean residual"
        + (", *blind* the mean action of the same network shown blank pictures" if BLIND in report["results"] else "")
        + ". Distance and yaw are medians at the last step.",
        "",
        table(report["results"]),
        "",
        f"Randomization {env['randomization']['name']}: {ranges_text(env['randomization']['ranges'])}.",
        "",
        "![learning curve](learning_curve.png)",
        *video_links(report["videos"]),
        "",
    ]
    return "\n".join(lines)


def _chosen(evaluations: list[dict[str, Any]]) -> list[str]:
    """A line on the checkpoint that is reported: after how many steps, and how good it was when it was chosen."""
    best = [e for e in evaluations if e.get("best")]
    if not best:
        return []
    trained = f"the one after {best[-1]['steps']:,} steps" if best[-1]["steps"] else "the policy before any training"
    return [
        f"Reported is {trained}, the best of {len(evaluations)} on the selection episodes: "
        f"{best[-1]['rate']:.1%} at the end; the last one {evaluations[-1]['rate']:.1%}."
    ]


def video_links(names: list[str]) -> list[str]:
    """Markdown for videos and the file that says what they show."""
    return [f"\n{'Video' if name.endswith('.mp4') else 'What they show'}: [{name}]({name})" for name in names]


def ranges_text(ranges: dict[str, list[float]]) -> str:
    """The ranges that are not a field's usual value, in words."""
    usual = Randomization("usual", {}).to_dict()["ranges"]
    special = {name: pair for name, pair in ranges.items() if pair != usual.get(name)}
    texts = [f"{name} {low:g}" + (f" to {high:g}" if high != low else "") for name, (low, high) in special.items()]
    return ", ".join(texts) or "every value is the usual one"
