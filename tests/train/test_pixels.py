"""Learning from pixels: what actor and rollout see, store and cost; `so101 render`; the benches with pictures."""

import dataclasses
import json
import re
from pathlib import Path

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.cameras import CamerasConfig
from bench.fps import FpsConfig, headline_name
from mjx_so101 import CheckpointError, ConfigError, HealthError
from mjx_so101.params import load_randomization
from mjx_so101.render import PRESETS as RENDER_PRESETS
from mjx_so101.render import RenderConfig
from policies.base import make_base
from policies.residual import ACTOR_LAYOUT, Residual, ResidualConfig, actor_layout, actor_vector, layout_sizes
from train import checkpoint, eyes
from train.cli import main
from train.config import TrainConfig
from train.eyes import Eyes, check_memory, pixel_memory
from train.pictures import RenderFlags
from train.policy import load_policy
from train.rollout import SAMPLE, Mix, Roller

KEY = jax.random.PRNGKey(7)
RENDER = RenderConfig(width=16, height=16, detail="coarse")
OF_THE_SHEET = {"goal_vector", "goal_yaw", "overshoot", "sheet_vel", "effector_on_sheet"}


@pytest.fixture(scope="module")
def residual():
    """A residual over a base policy with six features, as `jacobian` has them."""
    return Residual(ResidualConfig(hidden=(16, 16)), 6, RENDER)


@pytest.fixture(scope="module")
def vectors(residual):
    """Random input of five actors, pictures included."""
    rng = np.random.default_rng(0)
    return {
        "state": jnp.asarray(rng.normal(size=(5, residual.sizes["state"])), jnp.float32),
        "pixels/top": jnp.asarray(rng.integers(0, 256, (5, 16, 16, 3)), jnp.uint8),
    }


# -- the networks --------------------------------------------------------------------------------------------------
def test_fresh_mean_is_exactly_zero_whatever_is_seen(residual, vectors):
    mean = residual.distribution.mode(residual.logits(residual.init(KEY), vectors))
    assert mean.shape == (5, 6)
    assert not np.asarray(mean).any()


def test_an_actor_that_has_learned_uses_its_pictures(residual, vectors, shaken):
    learner = shaken(residual.init(KEY), 0.5)
    other = {**vectors, "pixels/top": vectors["pixels/top"][:, ::-1]}
    means = [residual.distribution.mode(residual.logits(learner, seen)) for seen in (vectors, other)]
    assert np.abs(means[0] - means[1]).max(1).min() > 1e-4


def test_gradients_reach_every_layer_of_the_convolutions(residual, vectors, shaken):
    learner = shaken(residual.init(KEY), 0.1)

    def loss(policy):
        mean = residual.distribution.mode(residual.logits(learner.replace(policy=policy), vectors))
        return jnp.sum((mean - 1) ** 2)

    gradient = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(learner.policy))
    names = [jax.tree_util.keystr(path) for path, _ in gradient]
    convolutions = [leaf for name, (_, leaf) in zip(names, gradient, strict=True) if "conv" in name.lower()]
    assert len(convolutions) >= 4, names  # kernel and bias of at least two
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in convolutions)


def test_pictures_are_scaled_inside_the_network(residual, vectors, shaken):
    """uint8 goes in; a float32 copy of the same values gives the same answer."""
    learner = shaken(residual.init(KEY), 0.5)
    floats = {**vectors, "pixels/top": vectors["pixels/top"].astype(jnp.float32)}
    np.testing.assert_allclose(residual.logits(learner, vectors), residual.logits(learner, floats), atol=1e-6)


# -- what the actor is told ----------------------------------------------------------------------------------------
def test_layout_with_pixels_says_nothing_of_the_sheet():
    assert {name for name, _, _ in actor_layout(False)} == {name for name, _, _ in ACTOR_LAYOUT}
    assert {name for name, _, _ in ACTOR_LAYOUT} - {name for name, _, _ in actor_layout(True)} == OF_THE_SHEET


def test_layout_with_pixels_lists_its_pictures():
    with_pixels = layout_sizes(6, RenderConfig(cameras=("top", "wrist"), width=10, height=20))
    assert with_pixels["pixels"] == {"top": 600, "wrist": 600}
    assert with_pixels["privileged_state"] == layout_sizes(6)["privileged_state"]
    assert set(with_pixels["state"]) == set(layout_sizes(6)["state"]) - OF_THE_SHEET


def test_vector_with_pixels_does_not_change_with_the_sheet(make_env):
    env = make_env(4, "nominal")
    seen = jax.tree.map(lambda leaf: leaf[0], env.observe(env.reset(0)))
    moved = seen.replace(sheet=seen.sheet + jnp.array([0.05, -0.03, 0.4]), sheet_vel=seen.sheet_vel + 0.1)
    rest = (seen.target, jnp.zeros(0), jnp.zeros(6))

    def vector(seen, pixels):
        return np.asarray(actor_vector(env.task, seen, *rest, pixels=pixels))

    np.testing.assert_array_equal(vector(moved, True), vector(seen, True))
    assert (vector(moved, False) != vector(seen, False)).sum() >= 8
    assert vector(seen, True).shape == (Residual(ResidualConfig(), 0, RENDER).sizes["state"],)


# -- the rollout ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def roller(make_env):
    """Two environments that `jacobian` acts in, seen by the top camera; keeps all that PPO stores."""
    env = make_env(2, "nominal")
    base = make_base("jacobian", env.task)
    residual = Residual(ResidualConfig(hidden=(16, 16)), base.num_features, RENDER)
    return Roller(env, base, residual, lambda pending, transition, result: transition, mode=SAMPLE)


@pytest.fixture(scope="module")
def learner(roller, shaken):
    return shaken(roller.residual.init(KEY), 0.5)


@pytest.fixture(scope="module")
def rolled(roller, learner):
    """Carry and transitions of four steps with large residuals."""
    return roller.roll(learner, roller.start(KEY), 4)


def test_transitions_hold_their_own_pictures_as_bytes_and_no_others(roller, rolled):
    _, transition = rolled
    assert set(transition.vectors) == {"state", "privileged_state", "pixels/top"}
    pixels = transition.vectors["pixels/top"]
    assert (pixels.shape, pixels.dtype) == ((4, 2, 16, 16, 3), np.uint8)
    sizes = sorted(leaf[0, 0].size for leaf in jax.tree.leaves(transition))
    assert sizes == sorted([*roller.residual.sizes.values(), RENDER.bytes_per_env, 6, 1, 1])
    assert np.ptp(pixels, axis=(2, 3)).min() > 50


def test_pictures_are_of_the_state_acted_in(roller, rolled, learner):
    """Not of the one after: the first is that of the start, and the arm moves on."""
    _, transition = rolled
    start = roller.start(KEY)
    expected = np.asarray(roller.eyes.renderer.render(start.state))[:, 0]
    pixels = transition.vectors["pixels/top"]
    np.testing.assert_array_equal(pixels[0], expected)
    assert (pixels[3] != pixels[0]).any()
    assert transition.vectors["state"].shape[2] == roller.residual.sizes["state"]


def test_alpha_zero_is_the_base_policy_bit_for_bit(roller, learner):
    still = copy_with_authority(roller, 0.0)
    begin = roller.start(KEY)
    end, _ = still.roll(learner, begin, 4)
    env, base, state, carry = roller.env, roller.base, begin.state, begin.base
    chunk = jax.jit(base.chunk)
    for _ in range(4):
        seen = env.observe(state)
        carry, targets = chunk(carry, seen, KEY, seen.new_episode)
        state, _ = env.step(state, targets[:, 0])
    for name in ("qpos", "qvel", "warmstart"):
        np.testing.assert_array_equal(getattr(end.state.physics, name), getattr(state.physics, name))
    np.testing.assert_array_equal(end.state.target, state.target)


def test_residual_from_pixels_moves_the_arm(roller, rolled, learner):
    without, _ = copy_with_authority(roller, 0.0).roll(learner, roller.start(KEY), 4)
    assert np.abs(rolled[0].state.physics.qpos - without.state.physics.qpos)[:, :6].max(1).min() > 1e-3


def copy_with_authority(roller, authority):
    """The roller with another authority (rad); alpha 0 gives 0. What is compiled is shared."""
    assert Residual(ResidualConfig(alpha=0.0), 6, RENDER).authority == 0
    other = roller.variant(SAMPLE)
    other.mix = Mix.of(SAMPLE, authority)
    return other


# -- eyes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("renderer", ["mujoco", "madrona"])
def test_only_warp_can_teach(make_env, renderer):
    config = dataclasses.replace(RENDER, renderer=renderer)
    with pytest.raises(ConfigError, match=f"renderer is '{renderer}'; learning from pixels needs 'warp'"):
        Eyes(config, make_env(2, "nominal"))


def test_eyes_refuse_an_unknown_camera(make_env):
    with pytest.raises(ConfigError, match="'front' is unknown; valid cameras are top, wrist"):
        Eyes(dataclasses.replace(RENDER, cameras=("front",)), make_env(2, "nominal"))


@pytest.fixture(scope="module")
def sensing_eyes(make_env, tmp_path_factory):
    """Eyes, both cameras, of an environment in which nothing of the looks varies but the image sensor's noise."""
    file = tmp_path_factory.mktemp("ranges") / "noisy.json"
    file.write_text(json.dumps({"base": "nominal", "image_noise": [0.1, 0.1]}))
    env = make_env(2, load_randomization(file))
    return Eyes(dataclasses.replace(RENDER, cameras=("wrist", "top")), env), env.reset(0)


def test_eyes_give_each_camera_through_the_sensor(sensing_eyes):
    seeing, state = sensing_eyes
    look = jax.jit(seeing.__call__)
    seen = look(state, KEY)
    assert set(seen) == {"pixels/wrist", "pixels/top"}
    bare = np.asarray(seeing.renderer.render(state)).astype(float)
    for i, name in enumerate(("wrist", "top")):
        picture = np.asarray(seen[f"pixels/{name}"])
        assert (picture.shape, picture.dtype) == ((2, 16, 16, 3), np.uint8)
        dim = (bare[:, i] > 80) & (bare[:, i] < 175)  # where no noise is clipped
        assert 15 < (picture - bare[:, i])[dim].std() < 36
    other = look(state, jax.random.PRNGKey(8))
    assert (np.asarray(other["pixels/top"]) != np.asarray(seen["pixels/top"])).mean() > 0.5
    noise = np.asarray(seen["pixels/top"]).astype(float) - bare[:, 1]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.3  # each environment has its own


def test_eyes_report_a_blank_picture(sensing_eyes, monkeypatch):
    seeing, state = sensing_eyes
    seeing.check(state)
    blank = jnp.zeros((2, 2, 16, 16, 3), jnp.uint8)
    monkeypatch.setattr(seeing.renderer, "render", lambda state: blank + 0 * state.step[0].astype(jnp.uint8))
    with pytest.raises(HealthError, match="env 0: the picture of camera 'wrist' is constant"):
        seeing.check(state)


# -- memory --------------------------------------------------------------------------------------------------------
def test_memory_is_refused_with_the_number_that_fits(monkeypatch):
    free = 10 * 2**20
    monkeypatch.setattr(eyes, "available_memory", lambda: free)
    sizes = {"unroll": 8, "minibatches": 4, "eval_envs": 16}
    with pytest.raises(ConfigError, match=r"too much.*the largest --num-envs that fits is \d+") as refused:
        check_memory(RENDER, 4096, **sizes)
    fitting = int(re.search(r"fits is (\d+)", str(refused.value))[1])
    assert fitting % 4 == 0 and fitting > 0
    assert "rollout" in check_memory(RENDER, fitting, **sizes)
    assert sum(pixel_memory(RENDER, fitting, **sizes).values()) <= free
    with pytest.raises(ConfigError, match=f"fits is {fitting}"):
        check_memory(RENDER, fitting + 4, **sizes)
    monkeypatch.setattr(eyes, "available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="choose smaller --width and --height"):
        check_memory(RENDER, 16, **sizes)


def test_memory_of_the_rollout_holds_its_pictures():
    parts = pixel_memory(RENDER, 100, unroll=8, minibatches=4, eval_envs=16)
    assert parts["rollout"] >= 100 * 8 * 16 * 16 * 3
    twice = pixel_memory(dataclasses.replace(RENDER, cameras=("top", "wrist")), 100, 8, 4, 16)
    assert {name: size / parts[name] for name, size in twice.items()} == pytest.approx(
        dict.fromkeys(parts, 2), rel=0.01
    )


# -- configuration and checkpoints ---------------------------------------------------------------------------------
def test_unknown_observation_lists_the_valid_ones():
    with pytest.raises(ConfigError, match="obs is 'nonsense'; choose one of 'state', 'pixels'"):
        TrainConfig(obs="nonsense")


def test_configuration_of_pictures_survives_its_record():
    config = TrainConfig(obs="pixels", render=RenderConfig(cameras=("top", "wrist"), width=32, height=24))
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.pictures == config.render
    assert TrainConfig().pictures is None and TrainConfig().render == RENDER_PRESETS["small"]
    record = config.to_dict()
    record["render"]["lens"] = "wide"
    with pytest.raises(ConfigError, match=r"unknown field.*lens of RenderConfig"):
        TrainConfig.from_dict(record)


@pytest.mark.parametrize(("saved", "now"), [("state", "pixels"), ("pixels", "state")])
def test_checkpoint_of_another_observation_is_refused(tmp_path, saved, now):
    config = TrainConfig(base="zero", physics="native", obs=saved, render=RENDER)
    best = tmp_path / "checkpoints" / "best"
    best.mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    meta = {"format": checkpoint.FORMAT, "layout": layout_sizes(0, config.pictures)}
    (best / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"another observation layout.*pixels\.top") as refused:
        load_policy(tmp_path, None, {"obs": now})
    assert "state.goal_vector: saved " + ("2, now None" if saved == "state" else "None, now 2") in str(refused.value)


def test_training_refuses_a_renderer_outside_jit(tmp_path, capsys):
    flags = ["--obs", "pixels", "--renderer", "mujoco", "--base", "zero", "--physics", "native", "--num-envs", "8"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *flags, "--preset", "cpu", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "learning from pixels needs 'warp'" in " ".join(capsys.readouterr().err.split())


# -- so101 render --------------------------------------------------------------------------------------------------
TINY = ["--num-envs", "2", "--width", "32", "--height", "24", "--steps", "2", "--detail", "coarse"]


def test_render_writes_a_contact_sheet(tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    main(["render", *TINY, "--camera", "top", "wrist", "--out", str(out)])
    picture = imageio.imread(out)
    assert picture.shape == (24 + 2, 2 * 2 * (32 + 2), 3)
    for column in (0, 34, 68, 102):
        assert np.ptp(picture[:24, column : column + 32].reshape(-1, 3), axis=0).min() > 30
    assert (picture[:24, :32] != picture[:24, 68:100]).any()  # two environments
    assert f"{out}: 2 environments, top and wrist, 32 x 24" in capsys.readouterr().out


def test_render_compares_renderers(tmp_path, capsys):
    out = tmp_path / "compared.png"
    main(["render", *TINY, "--camera", "top", "--compare", "--no-shadows", "--out", str(out)])
    (difference,) = re.findall(
        r"warp against mujoco: mean absolute difference ([\d.]+) of 255", capsys.readouterr().out
    )
    assert float(difference) <= 12
    assert imageio.imread(out).shape == (2 * (24 + 2), 3 * (32 + 2), 3)


def test_render_says_first_what_a_renderer_lacks(tmp_path, capsys, monkeypatch):
    """Not that it could not vary the looks, which would not matter without it."""
    monkeypatch.setattr("mjx_so101.render.madrona.missing_requirement", lambda: "package madrona is missing.")
    out = tmp_path / "compared.png"
    main(["render", *TINY, "--camera", "top", "--compare", "--randomize", "--out", str(out)])
    assert "without madrona: package madrona is missing.\n" in capsys.readouterr().err


def test_render_randomizes_looks(tmp_path):
    pictures = []
    for flag in ("--no-randomize", "--randomize"):
        out = tmp_path / f"{flag}.png"
        main(["render", *TINY, "--camera", "top", flag, "--renderer", "mujoco", "--base", "zero", "--out", str(out)])
        pictures.append(imageio.imread(out).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() > 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-envs", "0"], "num_envs is 0; it must be at least 1"),
        (["--num-envs", "many"], "--num-envs"),
        (["--camera", "front"], "camera 'front' is unknown; valid cameras are top, wrist"),
        (["--camera", "top", "top"], "name one twice"),
        (["--steps", "-1"], "steps is -1; it must be at least 0"),
        (["--width", "0"], "picture size is 0 x 24"),
        (["--renderer", "vulkan"], "renderer is 'vulkan'; choose one of 'warp', 'madrona', 'mujoco'"),
        (["--detail", "medium"], "detail is 'medium'; choose one of 'fine', 'coarse'"),
        (["--base", "jacobean"], "base is 'jacobean'"),
        (["--zoom", "2"], "--zoom"),
    ],
)
def test_render_refuses_bad_flags(tmp_path, capsys, flags, words):
    out = tmp_path / "never.png"
    with pytest.raises(SystemExit) as stopped:
        main(["render", *TINY, *flags, "--out", str(out)])
    assert stopped.value.code == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in message
    assert not out.exists()


# -- benches -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (FpsConfig(), "cpu_state_env_steps_per_s"),
        (FpsConfig(obs="rgb"), "cpu_rgb64x1_env_steps_per_s"),
        (FpsConfig(obs="rgb", render=RENDER_PRESETS["gr00t"]), "cpu_rgb320x240x2_env_steps_per_s"),
        (FpsConfig(obs="rgb", headline="mine"), "mine"),
    ],
)
def test_headline_names_size_and_cameras(config, name):
    assert headline_name(config) == name


@pytest.mark.parametrize(
    ("kind", "bad", "words"),
    [
        (FpsConfig, {"obs": "video"}, "obs is 'video'; choose one of 'state', 'rgb'"),
        (FpsConfig, {"obs": "rgb", "render": RenderConfig("madrona"), "num_envs": (8, 16)}, "madrona.*one num_envs"),
        (CamerasConfig, {"size": ("64x64",)}, "4 num_envs for 1 sizes"),
        (CamerasConfig, {"size": ("64",), "num_envs": (8,)}, "size '64' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"size": ("64xwide",), "num_envs": (8,)}, "size '64xwide' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"size": ("x64",), "num_envs": (8,)}, "size 'x64' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"cameras": (1, 3)}, r"cameras is \(1, 3\); give 1"),
        (CamerasConfig, {"cameras": ()}, r"cameras is \(\); give 1"),
        (CamerasConfig, {"size": (), "num_envs": ()}, "size is empty"),
        (CamerasConfig, {"size": ("0x0",), "num_envs": (8,)}, "picture size is 0 x 0"),
        (CamerasConfig, {"size": ("8x8",), "num_envs": (-4,)}, "num_envs is .*at least 1"),
        (CamerasConfig, {"renderer": "foo"}, "renderer is 'foo'; choose one of"),
        (CamerasConfig, {"physics": "foo"}, "physics is 'foo'; choose one of"),
        (CamerasConfig, {"detail": "foo"}, "detail is 'foo'; choose one of 'fine', 'coarse'"),
        (CamerasConfig, {"steps": 0}, "steps is 0"),
        (RenderConfig, {"cameras": "top"}, "cameras is 'top'; give a tuple"),
        (RenderConfig, {"cameras": ()}, "give a tuple of at least one name"),
        (RenderConfig, {"width": 16.5}, "picture size is 16.5 x 64"),
        (RenderFlags, {"out": Path("sheet")}, "out is 'sheet'; give a file that ends in .png"),
        (RenderFlags, {"out": Path(".")}, "give a file that ends in .png"),
    ],
)
def test_bad_bench_settings_are_refused(kind, bad, words):
    with pytest.raises(ConfigError, match=words):
        kind(**bad)


@pytest.mark.slow
def test_training_from_pixels_ends_in_a_policy_that_can_be_evaluated(tmp_path, capsys):
    """Rollout, update, evaluation, report and checkpoint with pictures, as small as they can be."""
    flags = [
        *("--obs", "pixels", "--width", "16", "--height", "16", "--physics", "native", "--num-envs", "4"),
        *("--unroll", "4", "--minibatches", "2", "--epochs", "1", "--steps", "32", "--episode-steps", "40"),
        *("--eval-episodes", "2", "--report-episodes", "2", "--eval-every", "0.5", "--hidden", "16", "16"),
        *(
            "--no-video",
            "--strict",
            "--randomization",
            "plain+looks",
            "--preset",
            "cpu",
            "--out",
            str(tmp_path / "run"),
        ),
    ]
    main(["train", *flags])
    assert "Pixels take" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] in (16, 32)  # two episodes may both succeed, which ends it early
    assert report["config"]["obs"] == "pixels" and report["results"]["mean"]["episodes"] == 2
    policy = load_policy(tmp_path / "run", None)
    last = checkpoint.restore(tmp_path / "run" / "checkpoints" / "last", "learner", policy.learner)
    fresh = policy.residual.init(jax.random.split(jax.random.PRNGKey(0), 4)[0])  # as Trainer begins with seed 0
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), last.policy, fresh.policy)
    changed = {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(moved)}
    kernels = {name: value for name, value in changed.items() if "Conv" in name and "kernel" in name}
    assert len(kernels) == 3 and all(kernels.values()), changed
