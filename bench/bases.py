"""Success of the base policies alone, 1,024 episodes for each of several randomizations.

python -m bench.bases --out bench/results/base_policies.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from train.hardware import set_caches

set_caches()

import tyro

from bench.record import figure, write_record
from mjx_so101 import SO101Error
from train.evaluate import Evaluator
from train.loop import REPORT_SEED
from train.policy import load_policy


@dataclasses.dataclass(frozen=True)
class BasesConfig:
    """What to measure."""

    bases: tuple[str, ...] = ("jacobian", "oracle")
    randomizations: tuple[str, ...] = ("nominal", "plain", "real", "wild")
    sheet_frictions: tuple[str, ...] = ("dry",)
    physics: str = "auto"
    episodes: int = 1024
    seed: int = REPORT_SEED
    out: Path = Path("base_policies.json")


def main(config: BasesConfig) -> None:
    """Measure every combination, print a line each and write the JSON."""
    rows, headline = [], []
    for friction in config.sheet_frictions:
        for base in config.bases:
            for randomization in config.randomizations:
                overrides = {"randomization": randomization, "sheet_friction": friction, "physics": config.physics}
                policy = load_policy(None, base, overrides)
                env = policy.environment(policy.config.evaluation_batch())
                evaluator = Evaluator(env, policy.base, policy.residual)
                summary = evaluator(policy.learner, config.episodes, config.seed).summary()
                rows.append({"base": base, "randomization": randomization, "sheet_friction": friction, **summary})
                rates = {mm: entry["rate"] for mm, entry in summary["success"].items()}
                print(f"{base:9} {randomization:8} {friction:8}", *(f"{mm} mm {r:.1%}" for mm, r in rates.items()))
                prefix = f"{base}_{randomization}_{friction}"
                for kind in ("success", "success_at_end"):
                    headline += [
                        figure(
                            f"{prefix}_{kind}_{mm}mm", entry["rate"], "fraction", low=entry["low"], high=entry["high"]
                        )
                        for mm, entry in summary[kind].items()
                    ]
    write_record(
        config.out, headline, seeds=[config.seed], num_envs=[env.num_envs],
        conditions={"physics": env.physics.name, "episodes": config.episodes}, rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(BasesConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
