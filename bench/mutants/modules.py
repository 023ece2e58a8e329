"""The mutated modules, and for each the tests that import it, directly or through what they drive; cheap ones first.

A group of test files shares one process. Tests marked `slow` run too, those marked `gpu` do not. Files are left out
that need a picture or a run of the command line to see what a cheaper file sees.
"""

from __future__ import annotations

from mjx_so101.errors import require_choice

Groups = tuple[tuple[str, ...], ...]

TESTS: dict[str, Groups] = {
    "mjx_so101/task.py": (
        ("tests/sim/test_task.py", "tests/sim/test_command.py", "tests/sim/test_success.py"),
        ("tests/sim/test_sensing.py", "tests/sim/test_episode.py", "tests/sim/test_params.py"),
        ("tests/sim/test_reset.py", "tests/sim/test_health.py"),
        ("tests/train/test_rollout.py", "tests/train/test_evaluate.py"),
    ),
    "train/rollout.py": (
        ("tests/train/test_rollout_parts.py",),
        ("tests/train/test_rollout.py",),
        ("tests/train/test_evaluate.py", "tests/train/test_residual.py"),
        ("tests/policies/test_chunked.py",),
        ("tests/train/test_ppo.py", "tests/train/test_pixels.py"),
    ),
    "policies/chunks.py": (
        ("tests/policies/test_chunks.py",),
        ("tests/policies/test_chunked_inputs.py",),
        ("tests/policies/test_chunked.py",),
    ),
    "policies/groot/processor.py": (
        ("tests/groot/test_groot_processor.py",),
        ("tests/groot/test_groot_parity.py", "tests/groot/test_groot_policy.py"),
        ("tests/groot/test_groot_loader.py",),
    ),
    "train/evaluate.py": (
        ("tests/train/test_evaluate_parts.py", "tests/train/test_rollout_parts.py"),
        ("tests/train/test_evaluate.py",),
        ("tests/train/test_gate.py", "tests/train/test_report.py"),
    ),
}


def groups_of(path: str) -> Groups:
    """Groups of test files for a mutant of the file `path`."""
    return TESTS[require_choice("module", path, TESTS)]
