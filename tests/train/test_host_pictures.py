"""Pictures that the host draws between two control steps are those that a jitted rollout draws for itself."""

import functools
import json

import jax
import numpy as np
import pytest

from mjx_so101 import ConfigError, HealthError
from mjx_so101.params import load_randomization
from mjx_so101.render import IN_JIT, RenderConfig
from policies.base import make_base
from policies.residual import Residual, ResidualConfig, actor_layout
from train import eyes
from train.config import TrainConfig
from train.rollout import MEAN, SAMPLE, Roller

KEY = jax.random.PRNGKey(7)
RENDER = RenderConfig("quad", ("top", "wrist"), 16, 16, detail="coarse")


class OutsideJit:
    """A renderer that must be called from the host, as Madrona must; counts how often it is."""

    jittable = False

    def __init__(self, renderer):
        self.renderer, self.calls = renderer, 0

    def render(self, state, envs=None):
        assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state))
        self.calls += 1
        return self.renderer.render(state, envs)


@pytest.fixture(scope="module")
def noisy(make_env, tmp_path_factory):
    """Function from a physics backend to three environments, each with sensor noise and a white balance of its own."""
    file = tmp_path_factory.mktemp("ranges") / "noisy.json"
    file.write_text(json.dumps({"base": "plain", "image_noise": [0.05, 0.1], "white_balance": [-0.4, 0.4]}))
    return lambda physics: make_env(3, load_randomization(file), physics)


def make_roller(env, outside, render=RENDER, **options):
    """Keeps transitions; `outside` makes the host draw, with the same renderer."""
    base = make_base("zero", env.task)
    residual = Residual(ResidualConfig(hidden=(16,)), base.num_features, render, actor_layout("pixels"))
    make = eyes.make_renderer
    with pytest.MonkeyPatch.context() as patch:
        if outside:
            patch.setattr(eyes, "make_renderer", lambda *given: OutsideJit(make(*given)))
        return Roller(env, base, residual, lambda pending, transition, result: transition, **options)


def rolled(roller, learner, steps=3):
    return roller.roll(learner, roller.start(KEY), steps)[1]


@pytest.mark.parametrize("physics", ["native", pytest.param("warp", marks=pytest.mark.slow)])
def test_transitions_are_those_of_the_jitted_rollout(noisy, shaken, physics):
    """On `warp` one program for all steps rounds otherwise than one for each."""
    inside, outside = (make_roller(noisy(physics), outside, mode=SAMPLE) for outside in (False, True))
    learner = shaken(inside.residual.init(KEY), 0.3)
    expected, found = rolled(inside, learner), rolled(outside, learner)
    assert outside.eyes.renderer.calls == 3
    assert set(found.vectors) == {"state", "privileged_state", "pixels/top", "pixels/wrist"}
    assert (np.ptp(found.vectors["pixels/wrist"], axis=(2, 3)) > 50).all()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal if physics == "native" else close, found, expected)


@pytest.mark.slow
def test_opengl_shows_the_policy_what_it_draws_of_the_state_acted_in(make_env, shaken):
    """MuJoCo's own renderer as the learner's eyes; without sight its pictures are blank."""
    render = RenderConfig("mujoco", ("top",), 16, 16, detail="coarse")
    roller = make_roller(make_env(2, "nominal"), False, render, mode=MEAN)
    learner = shaken(roller.residual.init(KEY), 0.3)
    seen = rolled(roller, learner, 2)
    start = roller.start(KEY).state
    np.testing.assert_array_equal(seen.vectors["pixels/top"][0], roller.eyes.renderer.render(start)[:, 0])
    unseen = rolled(roller.variant(MEAN, blind=True), learner, 2)
    assert not unseen.vectors["pixels/top"].any() and (unseen.raw != seen.raw).any()


def test_a_blind_roller_never_asks_the_host_for_pictures(make_env):
    render = RenderConfig("mujoco", ("top",), 16, 16)
    blind = eyes.Eyes(render, make_env(2, "nominal"), blind=True)
    assert blind.jittable and blind.drawn(None) is None


def test_a_blank_picture_of_the_host_is_reported(make_env, monkeypatch):
    env = make_env(2, "nominal")
    seeing = eyes.Eyes(RenderConfig("mujoco", ("top",), 16, 16), env)
    state = env.reset(0)
    seeing.check(state)
    monkeypatch.setattr(seeing.renderer, "render", lambda state: np.zeros((2, 1, 16, 16, 3), np.uint8))
    with pytest.raises(HealthError, match="env 0: the picture of camera 'top' is constant"):
        seeing.check(state)


@pytest.mark.parametrize(
    ("renderer", "blind", "hosted"),
    [*((name, False, False) for name in IN_JIT), ("mujoco", False, True), ("mujoco", True, False)],
)
def test_physics_is_told_that_the_host_steps_it_where_the_host_draws(monkeypatch, renderer, blind, hosted):
    given = {}
    monkeypatch.setattr("train.config.PaperReturnEnv", lambda *_, **options: given.update(options))
    TrainConfig(base="zero", obs="pixels", blind=blind, render=RenderConfig(renderer)).environment(2, training=True)
    assert given["host_stepped"] == hosted


def test_what_a_renderer_lacks_is_said_before_training(make_env, monkeypatch):
    monkeypatch.setattr("mjx_so101.render.madrona.missing_requirement", lambda: "package gs_madrona is missing.")
    with pytest.raises(ConfigError, match="renderer 'madrona' cannot be used: package gs_madrona is missing"):
        eyes.Eyes(RenderConfig("madrona"), make_env(2, "nominal"))
