"""The sizes that a run starts from, and which one is taken where none is named."""

import jax
import pytest

from train import cli
from train.config import PRESETS, default_preset


@pytest.mark.parametrize(
    ("base", "gpu", "expected"),
    [
        ("jacobian", False, "cpu"),
        ("groot", False, "cpu"),
        ("jacobian", True, "gpu"),
        ("oracle", True, "gpu"),
        ("groot", True, "gpu-groot"),
        ("remote", True, "gpu-groot"),
    ],
)
def test_default_follows_machine_and_base(base, gpu, expected):
    assert default_preset(base, gpu) == expected


def test_groot_takes_minutes():
    """At the 4,715 control steps/s of the whole loop and the 346 inferences/s that one H100 gave."""
    preset = PRESETS["gpu-groot"]
    inferences_per_episode = 400 / preset.model.horizon
    evaluations = 1 + 1 / preset.eval_every
    asked = (evaluations * preset.eval_episodes + 4 * preset.report_episodes) * inferences_per_episode
    assert preset.steps / 4715 + asked / 346 < 10 * 60
    rows = preset.num_envs * preset.ppo.unroll
    assert preset.steps % rows == 0 and preset.steps / rows >= 100  # updates


def test_seed_is_the_earlier_plan():
    seed = PRESETS["seed"]
    assert (seed.steps, seed.num_envs, seed.ppo.unroll) == (500_000, 4, 256)
    assert seed.ppo.learning_rate == seed.ppo.final_learning_rate == 3e-4
    assert seed.num_envs * seed.ppo.unroll // seed.ppo.minibatches == 64


@pytest.mark.parametrize("base", ["--base groot", "--base=groot", "--base remote --url tcp://127.0.0.1:5555"])
def test_the_command_says_which_preset_it_took(monkeypatch, capsys, base, tmp_path):
    class Enough(Exception):
        pass

    def stop(config, *_):
        raise Enough(config.num_envs, config.steps)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("train.gate_first.pass_gate", stop)
    monkeypatch.setattr("train.config.TrainConfig.resolve", lambda self: self)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.2")
    arguments = f"train {base} --checkpoint {tmp_path} --out {tmp_path / 'run'}".split()
    with pytest.raises(Enough, match=r"512, 1048576"):
        cli.main(arguments)
    printed = capsys.readouterr().out
    assert "Preset gpu-groot (chosen by base and machine; --preset takes another): 512 environments" in printed
    with pytest.raises(Enough, match=r"7, 1048576"):
        cli.main([*arguments[:-1], str(tmp_path / "other"), "--num-envs", "7", "--minibatches", "7"])
