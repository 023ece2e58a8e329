"""`so101 play`: MuJoCo's viewer where there is a display, a video elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path

import jax
import numpy as np

from mjx_so101.scene import SceneConfig, load_model
from train.policy import Policy
from train.rollout import MEAN, Roller


def play(policy: Policy, seed: int, out: Path, video_episodes: int = 9) -> None:
    """Show `policy`: live in the viewer until its window closes, or as videos of some episodes in folder `out`."""
    if not has_display():
        print("No display found (DISPLAY is not set), so writing a video instead.")
        print(*policy.write_video(out, seed, video_episodes), sep="\n")
        return
    _view(policy, seed)


def has_display() -> bool:
    """Whether there is a screen for the viewer."""
    return bool(os.environ.get("DISPLAY"))


def _view(policy: Policy, seed: int) -> None:
    import mujoco
    import mujoco.viewer

    env = policy.environment(1)
    roller = Roller(env, policy.base, policy.residual, lambda *_: np.zeros(()), mode=MEAN, blind=policy.config.blind)
    model = load_model(SceneConfig())
    data = mujoco.MjData(model)
    episode, period = 0, 1 / env.scene.control_hz
    with mujoco.viewer.launch_passive(model, data) as viewer:
        while viewer.is_running():
            carry = roller.start(jax.random.fold_in(jax.random.PRNGKey(seed), episode))
            for _ in range(env.task.config.episode_steps):
                begin = time.perf_counter()
                carry, _ = roller.roll(policy.learner, carry, 1)
                data.qpos[:] = np.asarray(carry.state.physics.qpos[0])
                mujoco.mj_forward(model, data)
                viewer.sync()
                if not viewer.is_running() or bool(carry.state.succeeded[0, 0]):
                    break
                time.sleep(max(0.0, period - (time.perf_counter() - begin)))
            episode += 1
