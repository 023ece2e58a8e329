"""Mistakes by name: each once passed every test, or would be costly if it did. `python -m bench.mutants named`.

Each is one text in one file that becomes another; a text that does not stand there exactly once is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench.mutants.modules import Groups
from bench.mutants.mutant import Mutant, replaced


class Mistake(NamedTuple):
    """A named mutant."""

    name: str
    path: str
    old: str
    new: str
    tests: Groups


CHUNKED: Groups = (("tests/policies/test_chunked_inputs.py",), ("tests/policies/test_chunked.py",))
ROLLOUT: Groups = (("tests/train/test_rollout.py",),)

MISTAKES = (
    Mistake(
        "pictures_of_the_next_environment",
        "policies/chunked.py",
        "images = jnp.asarray(self._draw(state, envs))",
        "images = jnp.asarray(self._draw(state, (envs + 1) % self.env.num_envs))",
        CHUNKED,
    ),
    Mistake(
        "sensor_of_one_environment_for_a_pass",
        "policies/chunked.py",
        "    params, keys = jax.tree.map(lambda x: x[envs], (state.params, state.key))",
        "    params, keys = jax.tree.map(lambda x: x[jnp.full_like(envs, envs[0])], (state.params, state.key))",
        CHUNKED,
    ),
    Mistake(
        "joint_map_dropped",
        "policies/groot/source.py",
        "joint_map=JointMap(config.joint_sign, config.joint_offset)",
        "joint_map=JointMap()",
        (("tests/groot/test_groot_policy.py",), ("tests/train/test_groot_runs.py",)),
    ),
    Mistake(
        "joint_map_dropped_with_a_server",
        "policies/model.py",
        "joint_map=JointMap(options.joint_sign, options.joint_offset)",
        "joint_map=JointMap()",
        (("tests/policies/test_remote.py",),),
    ),
    Mistake(
        "true_joints_for_measured_ones",
        "policies/chunked.py",
        "joints = jax.vmap(self.env.task.observe)(rows).joint_pos",
        "joints = rows.physics.qpos[:, :6]",
        CHUNKED,
    ),
    Mistake(
        "bootstrap_features_zeroed",
        "train/rollout.py",
        """        features = self.base.features(base_carry)
        return {"privileged_state": """,
        """        features = 0 * self.base.features(base_carry)
        return {"privileged_state": """,
        ROLLOUT,
    ),
    Mistake(
        "bootstrap_features_one_step_old",
        "train/rollout.py",
        "        base_carry, _ = self.base.chunk(base_carry, seen, None, seen.new_episode)\n",
        "",
        ROLLOUT,
    ),
    Mistake(
        "mjx_without_warm_start",
        "mjx_so101/physics/mjx_backend.py",
        "qacc_warmstart=warmstart)",
        "qacc_warmstart=0 * warmstart)",
        (
            ("tests/sim/test_parity.py::test_mjx_begins_with_the_warm_start_it_is_given",),
        ),  # others tell processors apart
    ),
    Mistake(
        "resume_forgets_the_best_score",
        "train/loop.py",
        '            self.best = checkpoint.read_meta(best)["best"]',
        "            self.best = -1.0",
        (("tests/train/test_checkpoint.py",), ("tests/train/test_loop.py",)),
    ),
    Mistake(
        "bootstrap_discount_unlike_ppo",
        "train/ppo.py",
        "rewards=data.reward + config.discount * data.bootstrap",
        "rewards=data.reward + 0.5 * data.bootstrap",
        (("tests/train/test_ppo.py",),),
    ),
    Mistake(
        "nan_target_taken",
        "mjx_so101/task.py",
        "        target = jnp.where(finite, target, state.target)\n",
        "",
        (("tests/sim/test_episode.py",), ("tests/sim/test_health.py",)),
    ),
    Mistake(
        "nan_target_not_counted",
        "mjx_so101/task.py",
        "nonfinite = state.bad_target | ~finite",
        "nonfinite = ~finite",
        (("tests/sim/test_episode.py",), ("tests/sim/test_health.py",)),
    ),
    Mistake(
        "invalid_episode_succeeds",
        "mjx_so101/task.py",
        " & ~(state.invalid | invalid)",
        "",
        (("tests/sim/test_episode.py",),),
    ),
    Mistake(
        "invalid_episode_counts_as_success",
        "train/evaluate.py",
        "succeeded = state.succeeded[:, 1:] & ~state.invalid[:, None]",
        "succeeded = state.succeeded[:, 1:]",
        (("tests/train/test_evaluate.py",),),
    ),
)


def named_mutants(root: Path) -> list[tuple[Mutant, Groups]]:
    """Every named mutant with its tests. Raises ConfigError for a text that is not exactly once in its file."""
    return [(replaced(root, m.path, m.old, m.new, m.name), m.tests) for m in MISTAKES]
