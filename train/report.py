"""The report of a run: final numbers on unseen episodes, learning curve, videos, report.json and report.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from policies.base import BasePolicy
from policies.residual import Learner, Residual
from train.evaluate import Evaluator
from train.files import replacing, write_text
from train.provenance import commit_in_words, provenance
from train.rollout import BASE, MEAN, NOISE, SAMPLE, Roller
from train.video import write_videos

BLIND = "blind"


def compare_policies(evaluator: Evaluator, learner: Learner, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    """Summaries of base, mean action, sampled action, and base + noise as large as the mean residual, on the same
    episodes; of a policy that sees pictures also 'blind', its mean action on blank ones."""
    mean = evaluator.variant(MEAN)(learner, episodes, seed).summary()
    others = {
        name: evaluator.variant(name, mean["residual_rms"])(learner, episodes, seed).summary()
        for name in (BASE, SAMPLE, NOISE)
    }
    results = {BASE: others[BASE], MEAN: mean, SAMPLE: others[SAMPLE], NOISE: others[NOISE]}
    if evaluator.sees_pictures:
        results[BLIND] = evaluator.variant(MEAN, blind=True)(learner, episodes, seed).summary()
    return results


def record_episodes(
    env: PaperReturnEnv, base: BasePolicy, residual: Residual, learner: Learner, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """qpos [time, env, 9] of one mean-action episode per environment, and success [env] at the first tolerance."""
    roller = Roller(env, base, residual, lambda pending, transition, result: result.last.physics.qpos, mode=MEAN)
    carry = roller.start(jax.random.PRNGKey(seed))
    carry, qpos = roller.roll(learner, carry, env.task.config.episode_steps)
    return np.asarray(qpos), np.asarray(carry.state.succeeded[:, 1])


def learning_curve(evaluations: list[dict[str, Any]], base: dict[str, Any], path: Path) -> None:
    """Plot success at each tolerance over steps, with Wilson intervals and the base policy's rate dashed."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    steps = [e["steps"] for e in evaluations]
    for i, tolerance in enumerate(base["success"]):
        entries = [e["success"].get(tolerance) for e in evaluations]
        if any(entry is None for entry in entries):
            continue
        color = f"C{i}"
        axes.plot(steps, [e["rate"] for e in entries], color=color, marker="o", ms=3, label=f"within {tolerance} mm")
        axes.fill_between(steps, [e["low"] for e in entries], [e["high"] for e in entries], color=color, alpha=0.15)
        axes.axhline(base["success"][tolerance]["rate"], color=color, ls="--", lw=1)
    axes.set(xlabel="control steps", ylabel="success rate (mean action)", ylim=(-0.02, 1.02))
    axes.set_title("Selection episodes; dashed: base policy alone on the report episodes", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown table of summaries by name."""
    tolerances = list(next(iter(results.values()))["success"])
    head = ["policy", *(f"success {t} mm" for t in tolerances), "return", "distance mm", "yaw deg", "residual mrad"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, s in results.items():
        rates = [f"{e['rate']:.1%} ({e['low']:.1%}-{e['high']:.1%})" for e in s["success"].values()]
        rest = [f"{s['mean_return']:.2f}", f"{s['final_distance_mm']:.1f}", f"{s['final_yaw_deg']:.2f}"]
        lines.append("| " + " | ".join([name, *rates, *rest, f"{1000 * s['mean_residual_rad']:.1f}"]) + " |")
    return "\n".join(lines)


def write_report(trainer, learner: Learner, finished: bool) -> dict[str, Any]:
    """Evaluate the best learner on the report episodes and write report.json, report.md, curve and videos."""
    from train.loop import REPORT_SEED

    config, out, env = trainer.config, trainer.out, trainer.eval_env
    results = compare_policies(trainer.evaluator, learner, config.report_episodes, REPORT_SEED)
    learning_curve(trainer.evaluations, results["base"], out / "learning_curve.png")
    report = {
        **provenance(),
        "command": trainer.commands(),
        "config": config.to_dict(),
        "environment": env.describe(),
        "finished": finished,
        "ended": trainer.ended,
        "steps": trainer.steps,
        "seconds": {**trainer.seconds, "total": trainer.wall_seconds},
        "steps_per_second": trainer.steps_per_second if np.isfinite(trainer.steps_per_second) else None,
        "peak_memory_bytes": peak_memory(),
        "evaluations": trainer.evaluations,
        "results": results,
        "note": trainer.base.note,
        "videos": [],
    }
    _write(report, out)
    if config.video:  # last, because nothing else must be lost if they fail
        report["videos"] = [path.name for path in _videos(trainer, learner)]
        _write(report, out)
    return report


def _write(report: dict[str, Any], out: Path) -> None:
    write_text(out / "report.json", json.dumps(report, indent=2))
    write_text(out / "report.md", _markdown(report))


def _videos(trainer, learner: Learner) -> list[Path]:
    from train.loop import REPORT_SEED

    env = trainer.config.environment(9, training=False, randomization=trainer.env.task.randomization)
    qpos, success = record_episodes(env, trainer.base, trainer.residual, learner, REPORT_SEED)
    try:
        return write_videos(qpos, trainer.out, large_episode=int(np.argmax(success)))
    except ConfigError as error:
        print(f"No videos: {error}")
        return []


def peak_memory() -> int | None:
    """Peak bytes in use on the accelerator, or resident on the host when JAX runs on the CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _markdown(report: dict[str, Any]) -> str:
    config, env = report["config"], report["environment"]
    spent = report["seconds"]
    lines = [
        f"# {config['base']} + residual under {env['randomization']['name']} ({env['sheet_friction']} sheet)",
        "",
        f"Command `{report['command']}`, {commit_in_words(report)}, {report['device']}, physics {env['physics']}.",
        f"{report['steps']:,} control steps of {config['num_envs']} environments, "
        f"{report['steps_per_second'] or 0:,.0f} steps/s; {spent['total']:.0f} s with compilation "
        f"({spent['compile']:.0f} s) and evaluation ({spent['evaluation']:.0f} s)"
        + (f". {report['ended']}" if report["finished"] else "; stopped early by a signal."),
        "",
        *([f"**{report['note']}**", ""] if report["note"] else []),
        f"{config['report_episodes']} episodes of 400 steps, none of them used to choose the checkpoint; "
        "95 % Wilson intervals. *noise* is the base policy plus white noise as large as the mean residual.",
        "",
        table(report["results"]),
        "",
        "![learning curve](learning_curve.png)",
        *(f"\nVideo: [{name}]({name})" for name in report["videos"]),
        "",
    ]
    return "\n".join(lines)
