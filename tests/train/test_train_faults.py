"""What training does about faults: counts them, refuses them in strict mode with a replay, and stops with the cause."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import HealthError
from train import loop
from train.health import PATIENCE, UpdateWatch, refuse_pictures
from train.loop import Trainer

SOUND = {
    "skipped_updates": 0.0, "bad_rows": 0.0, "bad_vectors": 0.0, "bad_actions": 0.0, "bad_log_probs": 0.0,
    "bad_rewards": 0.0,
}  # fmt: skip


class Spoilt:
    """A base policy that asks for NaN in one environment."""

    def __init__(self, base, env):
        self.base, self.env = base, env

    def __getattr__(self, name):
        return getattr(self.base, name)

    def for_env(self, env):
        return Spoilt(self.base.for_env(env), self.env)

    def chunk(self, carry, observation, key, reset_mask):
        carry, targets = self.base.chunk(carry, observation, key, reset_mask)
        return carry, targets.at[self.env, 0, 2].set(jnp.nan)


@pytest.fixture
def spoilt_trainer(tiny_config, tmp_path, monkeypatch):
    """Function that gives a Trainer whose base asks for NaN in environment 5 all the time."""
    make_base = loop.make_base
    monkeypatch.setattr(loop, "make_base", lambda *args: Spoilt(make_base(*args), 5))

    def make(**changes):
        return Trainer(dataclasses.replace(tiny_config, **changes), tmp_path)

    return make


@pytest.mark.slow
def test_a_nan_of_the_base_is_counted_and_learned_around(spoilt_trainer):
    trainer = spoilt_trainer()
    metrics = trainer.iterate()
    rows = trainer.config.ppo.unroll
    for name in ("bad_target", "nonfinite", "invalid", "bad_vectors"):
        assert metrics[name] == rows, name  # one environment in every step
    assert metrics["bad_rows"] == rows and metrics["overflow"] == 0 and metrics["skipped_updates"] == 0
    assert all(np.isfinite(value) for name, value in metrics.items() if name != "success")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trainer.learner, trainer.opt_state)))
    for _ in range(PATIENCE):
        trainer._check(metrics)  # a few rows do not stop a run
    episodes = trainer.evaluator(trainer.learner, 6, 0)
    np.testing.assert_array_equal(episodes.bad_target, np.arange(6) == 5)
    np.testing.assert_array_equal(episodes.invalid, np.arange(6) == 5)
    assert not episodes.succeeded[5].any()
    assert np.isfinite(episodes.total_reward).all() and np.isfinite(episodes.residual).all()


@pytest.mark.slow
def test_strict_training_refuses_it_with_environment_and_replay(spoilt_trainer, tmp_path):
    trainer = spoilt_trainer(strict=True)
    start = jax.tree.map(np.array, trainer.carry.state)
    with pytest.raises(HealthError, match=r"env 5 \(1 envs in control step 0.*target was not finite.*replay") as caught:
        trainer.iterate()
    (path,) = tmp_path.glob("replay_env5*.npz")  # in the run folder
    assert str(path) in str(caught.value)
    replay = np.load(path)
    assert np.isnan(replay["action"][2])
    np.testing.assert_array_equal(replay["qpos"], start.physics.qpos[5])
    np.testing.assert_array_equal(replay["target"], start.target[5])
    assert replay["params.kp_scale"] == start.params.kp_scale[5]


@pytest.mark.slow
def test_replay_holds_both_targets_of_before_the_step(tiny_config, tmp_path):
    trainer = Trainer(dataclasses.replace(tiny_config, strict=True), tmp_path)
    trainer.iterate()  # by now the two differ
    start = jax.tree.map(np.array, trainer.carry.state)
    trainer.learner = trainer.learner.replace(policy=jax.tree.map(lambda x: x * jnp.nan, trainer.learner.policy))
    with pytest.raises(HealthError, match="env 0"):
        trainer.iterate()
    replay = np.load(tmp_path / "replay_env0.npz")
    assert not np.array_equal(start.target[0], start.previous_target[0])
    np.testing.assert_array_equal(replay["target"], start.target[0])
    np.testing.assert_array_equal(replay["previous_target"], start.previous_target[0])


@pytest.mark.slow
def test_strict_training_without_faults_goes_on(tiny_config, tmp_path):
    trainer = Trainer(dataclasses.replace(tiny_config, strict=True), tmp_path)
    assert trainer.iterate()["nonfinite"] == 0
    assert not list(tmp_path.glob("*.npz"))


# -- updates that go wrong -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        ({"bad_vectors": 70.0, "bad_rows": 70.0}, "the networks' inputs.*were not finite in 70 rows"),
        ({"bad_actions": 128.0, "bad_log_probs": 128.0, "bad_rows": 128.0}, "the policy network's actions"),
        ({"bad_log_probs": 90.0, "bad_rows": 90.0}, "log-probabilities"),
        ({"bad_rewards": 90.0, "bad_rows": 90.0}, "rewards or the values"),
        ({"bad_rows": 128.0}, "the value network's outputs"),
        ({"skipped_updates": 2.0}, "gradients were not finite in 2 minibatches; lower --learning-rate"),
    ],
)
def test_training_stops_with_the_cause_after_a_few_faulty_updates_in_a_row(faults, cause):
    watch = UpdateWatch(rows=128)
    for _ in range(PATIENCE - 1):
        watch.check({**SOUND, **faults}, 10)
    watch.check(SOUND, 20)  # a sound one in between
    for _ in range(PATIENCE - 1):
        watch.check({**SOUND, **faults}, 30)
    with pytest.raises(HealthError, match=rf"3 updates in a row went wrong, the last at 5,120 steps: {cause}"):
        watch.check({**SOUND, **faults}, 5120)


def test_a_few_rows_left_out_never_stop_training():
    watch = UpdateWatch(rows=128)
    for _ in range(10 * PATIENCE):
        watch.check({**SOUND, "bad_vectors": 64.0, "bad_rows": 64.0}, 10)


def test_a_network_gone_bad_stops_training_with_the_policy_as_it_was(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path)
    trainer.learner = trainer.learner.replace(policy=jax.tree.map(lambda x: x * jnp.nan, trainer.learner.policy))
    with pytest.raises(HealthError, match=r"policy network's actions were not finite in 128 rows"):
        for _ in range(PATIENCE):
            trainer._check(trainer.iterate())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trainer.learner.value, trainer.learner.normalizer)))


@pytest.mark.parametrize("name", ["constant", "frozen"])
def test_strict_training_refuses_pictures_that_cannot_be_real(name):
    refuse_pictures({"reward": 0.0})
    refuse_pictures({f"{name}_pictures": 0.0})
    with pytest.raises(HealthError, match=f"pictures of 3 environments were {name}"):
        refuse_pictures({f"{name}_pictures": 3.0})
