"""Commands that draw with Madrona start it before JAX, as large as they need it, and end it."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest

from mjx_so101 import ConfigError, Randomization
from mjx_so101.render import RenderConfig
from policies.model import ModelOptions
from train import checkpoint, madrona_first
from train.config import TrainConfig
from train.madrona_first import for_evaluation, for_training
from train.policy import policy_config

MODEL = ModelOptions(url="tcp://127.0.0.1:1", base_renderer="madrona", base_width=64, base_height=48)
BASE = TrainConfig(base="remote", num_envs=64, model=MODEL, eval_episodes=600)
EYES = TrainConfig(base="zero", obs="pixels", num_envs=64, render=RenderConfig("madrona", ("top", "wrist")))


@pytest.fixture
def built(monkeypatch):
    """What was built and closed, in order, in place of a renderer."""
    events = []

    class Renderer:
        def close(self):
            events.append("closed")

    def make(render, scene, num_envs, randomization):
        assert isinstance(randomization, Randomization)
        events.append((render.renderer, render.cameras, render.width, render.height, num_envs))
        return Renderer()

    monkeypatch.setattr(madrona_first, "make_renderer", make)
    return events


@pytest.mark.parametrize(
    ("enter", "expected"),
    [
        (lambda: for_training(EYES), (64, 64, 64)),
        (lambda: for_evaluation(EYES), (64, 64, 1024)),
        (lambda: for_evaluation(dataclasses.replace(EYES, physics="native")), (64, 64, 128)),
        (lambda: for_evaluation(EYES, 9), (64, 64, 9)),
        (lambda: for_training(BASE), (64, 48, 5)),  # the slots of a refill, 1.15 * 64 / 16
        (lambda: for_evaluation(BASE), (64, 48, 200)),  # a third of 600
    ],
)
def test_it_is_built_as_large_as_what_is_drawn_at_once(built, enter, expected):
    with enter():
        assert built == [("madrona", ("top", "wrist"), *expected)]
    assert built[1:] == ["closed"]


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        dataclasses.replace(EYES, obs="state"),
        dataclasses.replace(EYES, blind=True),
        dataclasses.replace(EYES, render=RenderConfig("quad")),
        dataclasses.replace(BASE, base="zero"),
    ],
)
def test_nothing_is_built_where_nothing_draws_with_it(built, config):
    with for_training(config), for_evaluation(config):
        pass
    assert not built


def test_residual_and_base_cannot_both_have_it(built):
    both = dataclasses.replace(EYES, base="remote", model=MODEL)
    with (
        pytest.raises(ConfigError, match=r"renderer and base_renderer are both 'madrona'.*--renderer quad or --base-"),
        for_training(both),
    ):
        pass
    with for_training(dataclasses.replace(both, blind=True)):  # draws nothing of its own
        assert len(built) == 1


def test_it_is_closed_when_a_command_fails(built):
    with pytest.raises(ZeroDivisionError), for_training(EYES):
        raise ZeroDivisionError
    assert built[1:] == ["closed"]


def test_another_renderer_may_draw_for_a_run(copy_of_run):
    with pytest.raises(ConfigError, match="renderer is 'quad', but no residual or pose network here sees pictures"):
        policy_config(copy_of_run, None, {"renderer": "quad"})
    assert policy_config(None, "zero", {"obs": "pixels", "renderer": "warp"}).render.renderer == "warp"
    with pytest.raises(ConfigError, match="renderer is 'vulkan'; choose one of"):
        policy_config(None, "zero", {"obs": "pixels", "renderer": "vulkan"})


REMOTE = "--base remote --url tcp://127.0.0.1:1 --base-renderer madrona"
COMMANDS = {
    "train --obs pixels --base zero --renderer madrona --cameras top wrist --num-envs 32 --minibatches 2": (64, 64, 32),
    "train --obs pixels --base zero --renderer=madrona": (64, 64, 4096),  # of the preset for a GPU
    f"train {REMOTE} --num-envs 32 --minibatches 2": (320, 240, 3),
    f"eval {REMOTE} --episodes 300": (320, 240, 150),
    f"gate {REMOTE}": (320, 240, 100),
    f"play {REMOTE} --video-episodes 4": (320, 240, 4),
    "train --resume run": (64, 64, 64),
    "eval --run run --eval-batch 6": (64, 64, 6),
    "play --run run": (64, 64, 9),
    "render --renderer madrona --num-envs 2": (160, 120, 2),
    "bench.fps --obs rgb --renderer madrona --cameras top wrist --num-envs 8": (64, 64, 8),
}


def test_every_command_starts_madrona_before_jax(tmp_path):
    """In processes forked from one that has imported everything: Madrona fails if JAX has touched the GPU before."""
    script = """
        import os, sys
        import train.cli, train.gate, train.pictures, train.play, train.policy, train.madrona_first, bench.fps
        import tyro
        from jax._src import xla_bridge
        from mjx_so101.render import madrona

        def engine(model, geoms, cameras, size, **options):
            raise SystemExit(f"Madrona starts: {size}, JAX: {xla_bridge.backends_are_initialized()}")

        madrona.Engine, madrona.missing_requirement = engine, lambda: None
        for command in sys.argv[1:]:
            pid = os.fork()
            if not pid:
                name, *words = command.split()
                try:
                    if name == "bench.fps":
                        bench.fps.main(tyro.cli(bench.fps.FpsConfig, args=words))
                    train.cli.main([name, *words])
                except BaseException as end:
                    print(end, flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
    """
    best = tmp_path / "run" / "checkpoints" / "best"
    best.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(EYES.to_dict()))
    checkpoint.write_meta(best, {"format": checkpoint.FORMAT, "config": EYES.to_dict()})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *COMMANDS], capture_output=True, text=True,
        timeout=180, cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "DISPLAY": "", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    expected = [f"Madrona starts: {size}, JAX: False" for size in COMMANDS.values()]
    assert done.stdout.splitlines() == expected, done.stdout + done.stderr
