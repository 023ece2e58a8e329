"""`so101 train --obs state25`: the actor sees the published observation and nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mjx_so101 import ConfigError
from mjx_so101.state25 import STATE25_LAYOUT
from policies.residual import CRITIC_LAYOUT, actor_layout, layout_sizes
from train.cli import main
from train.config import TrainConfig
from train.loop import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(tiny_config, obs="state25", base="zero")


@pytest.fixture(scope="module")
def trainer(config, tmp_path_factory):
    """A Trainer saved after one iteration and one iteration further now."""
    trainer = Trainer(config, tmp_path_factory.mktemp("state25"))
    trainer.iterate()
    trainer.save("last")
    trainer.iterate()
    return trainer


def test_actor_sees_exactly_the_published_numbers(trainer):
    roller, carry = trainer.roller, trainer.carry
    vectors = jax.jit(roller.act)(trainer.learner, carry, roller.mix).vectors
    np.testing.assert_array_equal(vectors["state"], roller.env.observe_state25(carry.state))
    moved = carry.replace(last_residual=carry.last_residual + 0.5)
    again = jax.jit(roller.act)(trainer.learner, moved, roller.mix).vectors
    np.testing.assert_array_equal(vectors["state"], again["state"])


def test_layout_is_the_published_one_and_the_critics_stays():
    sizes = layout_sizes(6, actor=actor_layout("state25"))
    assert sizes["state"] == {name: size for name, size, _ in STATE25_LAYOUT}
    assert sum(sizes["state"].values()) == 25
    assert list(sizes["privileged_state"]) == [name for name, *_ in CRITIC_LAYOUT]
    assert sizes["privileged_state"] == layout_sizes(6)["privileged_state"]


def test_it_learns(trainer):
    """The statistics of the 25 inputs and the actor's weights move."""
    assert trainer.learner.normalizer.mean["state"].shape == (25,)
    assert np.abs(np.asarray(trainer.learner.normalizer.mean["state"])).max() > 0.1
    fresh = trainer.residual.init(jax.random.PRNGKey(0)).policy
    changed = jax.tree.map(lambda a, b: bool(np.abs(np.asarray(a - b)).max() > 1e-6), fresh, trainer.learner.policy)
    assert all(jax.tree.leaves(changed))


def test_it_resumes_bit_for_bit(config, trainer, current_state, differences):
    other = Trainer(config, trainer.out)
    other.resume()
    other.iterate()
    assert not differences(current_state(other), current_state(trainer))


@pytest.mark.slow
def test_train_and_eval_from_the_command_line(tiny_flags, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", *tiny_flags, "--obs", "state25", "--steps", "256", "--eval-every", "0.5", "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["obs"] == "state25"
    capsys.readouterr()
    main(["eval", "--run", str(run), "--episodes", "4", "--physics", "native", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["episodes"] == 4


def test_unknown_observation_lists_the_valid_ones():
    with pytest.raises(ConfigError, match=r"state26.*'state', 'state25', 'pixels'"):
        TrainConfig(obs="state26")
