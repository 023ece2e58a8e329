"""The gate before training: which bases pass it, what it is told, and whose alpha the run takes."""

import dataclasses
from types import SimpleNamespace

import pytest

from mjx_so101 import ConfigError
from policies.residual import ResidualConfig
from train import gate_first
from train.config import TrainConfig
from train.gate import GateResult
from train.gate_first import check_alpha, pass_gate
from train.gate_verdict import Counts, verdict


@pytest.fixture
def gates(monkeypatch):
    """Function that sets how many of 100 episodes the gate finds solved; gives the list of gates that ran."""
    ran = []

    def find(solved):
        def run_gate(policy, settings, out):
            ran.append((policy, settings, out))
            report = {"base": "some", "verdict": {"tolerance_mm": 5.0}}
            return GateResult(verdict(Counts(100, solved, solved, 0)), report, out)

        monkeypatch.setattr(gate_first, "run_gate", run_gate)
        monkeypatch.setattr(gate_first, "base_alone", lambda config: config.base)
        return ran

    return find


@pytest.fixture
def remote():
    """The configuration of a run on a model, without building one."""
    return SimpleNamespace(base="remote", strict=True, video=False, video_episodes=4, residual=ResidualConfig())


@pytest.mark.parametrize(("solved", "alpha"), [(60, 0.3), (25, 0.5), (12, 0.7)])
def test_auto_takes_the_alpha_that_the_gate_suggests(gates, tmp_path, capsys, solved, alpha):
    ran = gates(solved)
    config = pass_gate(TrainConfig(base="oracle"), tmp_path, 100, False, "auto")
    assert config == dataclasses.replace(TrainConfig(base="oracle"), residual=ResidualConfig(alpha=alpha))
    assert config.to_dict()["residual"]["alpha"] == alpha  # a number, in config.json too
    assert f"--alpha {alpha}, which the gate suggests" in capsys.readouterr().out
    assert [(policy, out) for policy, _, out in ran] == [("oracle", tmp_path / "gate")]


def test_scripted_base_needs_no_gate_without_auto(gates, tmp_path):
    ran = gates(0)
    assert pass_gate(TrainConfig(), tmp_path, 100, False, None) == TrainConfig()
    assert not ran


def test_model_passes_the_gate_and_keeps_its_alpha(gates, tmp_path, monkeypatch, remote):
    ran = gates(60)
    assert pass_gate(remote, tmp_path, 50, False, "0.25") is remote
    ((_, settings, _),) = ran
    assert (settings.episodes, settings.strict, settings.video, settings.video_episodes) == (50, True, False, 4)


def test_stop_ends_it_unless_forced(gates, tmp_path, remote):
    gates(0)
    with pytest.raises(ConfigError, match=r"did not pass the gate.*--force"):
        pass_gate(TrainConfig(base="zero"), tmp_path, 100, False, "auto")
    forced = pass_gate(TrainConfig(base="zero"), tmp_path, 100, True, "auto")
    assert forced.residual.alpha == 0.7
    with pytest.raises(ConfigError, match="--gate-episodes 0 leaves out the gate; it needs --force"):
        pass_gate(remote, tmp_path, 0, False, None)
    assert pass_gate(remote, tmp_path, 0, True, None) is remote


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("maybe", None, 100), "alpha is 'maybe'; give a number of at least 0, or auto"),
        (("", None, 100), "alpha is ''"),
        (("auto", "runs/a", 100), "--alpha auto with --resume: a run goes on with the alpha it began with"),
        (("auto", None, 0), "--alpha auto asks the gate, which --gate-episodes 0 leaves out"),
    ],
)
def test_bad_alpha_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        check_alpha(*given)


@pytest.mark.parametrize("given", [(None, "runs/a", 0), ("0.3", "runs/a", 0), ("auto", None, 100), ("1e-3", None, 100)])
def test_good_alpha_passes(given):
    check_alpha(*given)
