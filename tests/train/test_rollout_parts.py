"""Parts of the rollout by hand, without an environment: modes as numbers, how r is drawn, costs, bootstrap, the bar."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101.env import StepResult
from mjx_so101.errors import Interrupted
from train import rollout
from train.evaluate import Evaluator
from train.rollout import BASE, MEAN, NOISE, SAMPLE, Carry, Mix, Pending, ResidualCosts, Roller


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (MEAN, (1.0, 0.0, 0.0, 0.05)),
        (SAMPLE, (1.0, 1.0, 0.0, 0.05)),
        (NOISE, (0.0, 0.0, 0.3, 0.05)),
        (BASE, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_a_mode_is_what_it_takes_of_mean_deviation_and_noise(mode, expected):
    assert Mix.of(mode, 0.05, noise=0.3) == Mix(*expected) == (*expected, True)
    assert Mix.of(mode, 0.05, noise=0.3, blind=True) == (*expected, False)


@pytest.mark.parametrize("build", [Mix.of, Roller, Roller.variant, Evaluator, Evaluator.variant])
def test_noise_and_blank_pictures_are_off_unless_asked_for(build):
    parameters = inspect.signature(build).parameters
    assert (parameters["noise"].default, parameters["blind"].default) == (0.0, False)
    assert Mix.of(NOISE, 0.05).noise == 0


def test_residual_costs_nothing_by_default():
    assert ResidualCosts() == (0.0, 0.0)


@pytest.mark.parametrize(("steps", "silent"), [(1, True), (99, True), (100, False), (400, False)])
def test_only_a_long_rollout_may_show_a_bar_and_it_vanishes(monkeypatch, steps, silent):
    monkeypatch.setattr(rollout, "tqdm", lambda items, *_, **options: (items, options))
    items, options = rollout._counted(steps)
    assert list(items) == list(range(steps))
    quiet = True if silent else None  # None: only where there is a terminal
    assert options == {"delay": 5, "leave": False, "disable": quiet}


@pytest.mark.parametrize(
    ("steps", "auto_reset", "pieces"),
    [(120, False, [50, 50, 20]), (100, False, [50, 50]), (50, False, [50]), (7, False, [7]), (120, True, [120])],
)
def test_an_evaluation_is_scanned_in_pieces_and_training_at_once(steps, auto_reset, pieces):
    """Between pieces it may be stopped; together they keep every step."""
    asked = []

    def scan(learner, carry, mix, steps):
        asked.append(steps)
        return carry + steps, carry + jnp.arange(steps)

    roller = SimpleNamespace(env=SimpleNamespace(auto_reset=auto_reset), mix=None, _scan=scan, _go_on=lambda: None)
    end, kept = Roller._roll_in_pieces(roller, None, 0, steps)
    assert (end, asked) == (steps, pieces)
    np.testing.assert_array_equal(kept, np.arange(steps))


def test_a_rollout_that_is_stopped_is_interrupted():
    Roller._go_on(SimpleNamespace(stopped=lambda: False))
    with pytest.raises(Interrupted):
        Roller._go_on(SimpleNamespace(stopped=lambda: True))


# -- r by hand -----------------------------------------------------------------------------------------------------
def raw_residual(mix):
    """r [2000, 6] and log-probability of a policy with mean 0.4 whose samples lie at 2.4."""
    distribution = SimpleNamespace(
        mode=lambda logits: logits,
        sample_no_postprocessing=lambda logits, key: logits + 2.0,
        log_prob=lambda logits, raw: (raw - logits).sum(-1),
    )
    residual = SimpleNamespace(logits=lambda learner, vectors: vectors["state"], distribution=distribution)
    vectors = {"state": jnp.full((2000, 6), 0.4)}
    return Roller._raw_residual(SimpleNamespace(residual=residual), None, vectors, jax.random.PRNGKey(0), mix)


@pytest.mark.parametrize(
    ("mean", "sample", "expected"),
    [(1.0, 0.0, 0.4), (1.0, 1.0, 2.4), (0.0, 1.0, 2.0), (0.5, 0.25, 0.7), (0.0, 0.0, 0.0)],
)
def test_r_is_mean_and_deviation_as_mixed(mean, sample, expected):
    raw, log_prob = raw_residual(Mix(mean, sample, 0.0, 0.05))
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    np.testing.assert_allclose(log_prob, 6 * (expected - 0.4), atol=1e-5)


def test_noise_is_white_and_as_large_as_said():
    raw, _ = raw_residual(Mix(0.0, 0.0, 0.3, 0.05))
    assert np.std(raw) == pytest.approx(0.3, rel=0.03) and abs(np.mean(raw)) < 0.01
    assert np.abs(np.corrcoef(np.asarray(raw).T) - np.eye(6)).max() < 0.1
    np.testing.assert_allclose(raw_residual(Mix(1.0, 1.0, 0.3, 0.05))[0], 2.4 + raw, atol=1e-6)


# -- after physics, by hand ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def settled():
    """One step of four environments: goes on, out of time, both out of time and terminated, terminated."""
    flags = jnp.array([False, False, True, True]), jnp.array([False, True, True, False])
    result = StepResult(
        reward=jnp.zeros(4), terms={"progress": jnp.array([1.0, 2.0, 3.0, 4.0]), "time": jnp.full(4, -0.5)},
        terminated=flags[0], truncated=flags[1], success=flags[0], invalid=flags[0], last="last state",
    )  # fmt: skip
    roller = SimpleNamespace(
        env=SimpleNamespace(num_envs=4, finish_step=lambda state, physics: (f"{state} after {physics}", result)),
        costs=ResidualCosts(size=0.1, change=0.01),
        residual=SimpleNamespace(value=lambda learner, vectors: jnp.array([10.0, 20.0, 30.0, 40.0])),
        value_vectors_of=lambda base, state: {"privileged_state": (base, state)},
    )
    carry = Carry(state="state", base="plan", last_residual=jnp.full((4, 6), -1.0), key=jnp.zeros(2, jnp.uint32))
    pending = Pending(
        carry=carry, fields={}, ctrl=None, pictures={}, vectors={"state": "vectors"}, raw="raw", log_prob="log_prob",
        residual=jnp.ones((4, 6)) * jnp.array([0.0, 0.5, 1.0, -1.0])[:, None], base_target=None, asked=None,
        older_target=None,
    )  # fmt: skip
    return Roller.settle(roller, None, pending, "physics")


def test_costs_of_size_and_change_join_the_reward(settled):
    _, transition, result = settled
    np.testing.assert_allclose(result.terms["residual_size"], -0.1 * 6 * np.array([0, 0.25, 1, 1]), atol=1e-6)
    np.testing.assert_allclose(result.terms["residual_change"], -0.01 * 6 * np.array([1, 2.25, 4, 0]), atol=1e-6)
    np.testing.assert_allclose(result.reward, sum(np.asarray(term) for term in result.terms.values()), atol=1e-6)
    np.testing.assert_array_equal(transition.reward, result.reward)
    assert set(result.terms) == {"progress", "time", "residual_size", "residual_change"}


def test_only_a_time_out_that_is_no_other_end_has_a_bootstrap(settled):
    _, transition, _ = settled
    assert transition.bootstrap.tolist() == [0.0, 20.0, 0.0, 0.0]
    assert transition.done.tolist() == [False, True, True, True]


def test_what_was_done_is_stored_and_goes_on(settled):
    carry, transition, _ = settled
    assert (transition.vectors, transition.raw, transition.log_prob) == ({"state": "vectors"}, "raw", "log_prob")
    assert (carry.state, carry.base) == ("state after physics", "plan")
    np.testing.assert_array_equal(carry.last_residual[:, 0], [0.0, 0.5, 1.0, -1.0])


@pytest.mark.parametrize("jittable", [True, False])
def test_only_a_model_s_chunks_are_renewed(jittable):
    base = SimpleNamespace(jittable=jittable, refill=lambda base, state: f"{base} renewed for {state}")
    carry = Carry(state="state", base="plan", last_residual=None, key=None)
    renewed = Roller.refilled(SimpleNamespace(base=base), carry)
    assert renewed.base == ("plan" if jittable else "plan renewed for state")
