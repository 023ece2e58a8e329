"""Learning from pixels: what actor and rollout see, store and cost."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import CheckpointError, ConfigError, HealthError, TaskConfig
from mjx_so101.params import load_randomization
from mjx_so101.render import PRESETS as RENDER_PRESETS
from mjx_so101.render import RenderConfig
from policies.base import SEES_POSE, make_base
from policies.pose import PoseNetwork
from policies.residual import ACTOR_LAYOUT, Residual, ResidualConfig, actor_layout
from train import checkpoint, eyes
from train import config as train_config
from train.cli import main
from train.config import TrainConfig
from train.eyes import Eyes, check_memory, pixel_memory
from train.policy import load_policy
from train.ppo import PPO, PPOConfig
from train.rollout import MEAN, SAMPLE, Mix, Roller

KEY = jax.random.PRNGKey(7)
RENDER = RenderConfig(width=16, height=16, detail="coarse")


# -- the rollout ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def roller(make_env):
    """Two environments that `jacobian` acts in, seen by the top camera; keeps all that PPO stores."""
    env = make_env(2, "nominal")
    base = make_base("jacobian", env.task)
    told = actor_layout("pixels", base_sees_pose=True)
    residual = Residual(ResidualConfig(hidden=(16, 16)), base.num_features, RENDER, told)
    return Roller(env, base, residual, lambda pending, transition, result: transition, mode=SAMPLE)


@pytest.fixture(scope="module")
def learner(roller, shaken):
    return shaken(roller.residual.init(KEY), 0.5)


@pytest.fixture(scope="module")
def rolled(roller, learner):
    """Carry and transitions of four steps with large residuals."""
    return roller.roll(learner, roller.start(KEY), 4)


@pytest.mark.slow
def test_transitions_hold_their_own_pictures_as_bytes_and_no_others(roller, rolled):
    _, transition = rolled
    assert set(transition.vectors) == {"state", "privileged_state", "pixels/top"}
    pixels = transition.vectors["pixels/top"]
    assert (pixels.shape, pixels.dtype) == ((4, 2, 16, 16, 3), np.uint8)
    sizes = sorted(leaf[0, 0].size for leaf in jax.tree.leaves(transition))
    assert sizes == sorted([*roller.residual.sizes.values(), RENDER.bytes_per_env, 6, 1, 1, 1, 1])
    assert np.ptp(pixels, axis=(2, 3)).min() > 50


@pytest.mark.slow
def test_pictures_are_of_the_state_acted_in(roller, rolled, learner):
    """Not of the one after: the first is that of the start, and the arm moves on."""
    _, transition = rolled
    start = roller.start(KEY)
    expected = np.asarray(roller.eyes.renderer.render(start.state))[:, 0]
    pixels = transition.vectors["pixels/top"]
    np.testing.assert_array_equal(pixels[0], expected)
    assert (pixels[3] != pixels[0]).any()
    assert transition.vectors["state"].shape[2] == roller.residual.sizes["state"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_residual_from_pixels_moves_the_arm(roller, rolled, learner):
    without, _ = copy_with_authority(roller, 0.0).roll(learner, roller.start(KEY), 4)
    assert np.abs(rolled[0].state.physics.qpos - without.state.physics.qpos)[:, :6].max(1).min() > 1e-3


@pytest.mark.slow
def test_an_update_by_calls_is_the_update_in_a_loop(roller, rolled, learner):
    """A CPU makes a call for each minibatch, because XLA is slow at convolutions inside a loop there."""
    carry, transition = rolled
    ppo = PPO(PPOConfig(epochs=2, minibatches=2), roller.residual, updates=1)
    given = (learner, ppo.init(learner), transition, roller.value_vectors(carry), KEY)
    assert ppo.update == ppo._update_from_host
    by_calls, in_a_loop = ppo.update(*given), jax.jit(ppo._update)(*given)
    assert jax.tree.structure(by_calls) == jax.tree.structure(in_a_loop)
    for one, other in zip(jax.tree.leaves(by_calls), jax.tree.leaves(in_a_loop), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), by_calls[0].policy, learner.policy)
    assert min(jax.tree.leaves(moved)) > 1e-3


def copy_with_authority(roller, authority):
    """The roller with another authority (rad); alpha 0 gives 0. What is compiled is shared."""
    assert Residual(ResidualConfig(alpha=0.0), 6, RENDER).authority == 0
    other = roller.variant(SAMPLE)
    other.mix = Mix.of(SAMPLE, authority)
    return other


# -- what the actor can know ---------------------------------------------------------------------------------------
class Canned:
    """A renderer whose pictures show nothing of the sheet: they follow the arm alone."""

    jittable, cameras = True, RENDER.cameras

    def render(self, state, envs=None):
        joints = state.physics.qpos[:, :6] if envs is None else state.physics.qpos[envs, :6]
        shades = 128 + 40 * jnp.sin(3 * jnp.repeat(joints, 43, axis=1)[:, :256]).reshape(-1, 16, 16)
        return jnp.repeat(shades.astype(jnp.uint8)[:, None, :, :, None], 3, axis=-1)


def executed_targets(roller, shaken, with_sheet, pose, steps=40):
    """[time, env, 6] targets of a whole episode from the same start, with the sheets at `pose`."""
    learner, carry = shaken(roller.residual.init(KEY), 0.3), roller.start(KEY)
    _, kept = roller.roll(learner, carry.replace(state=with_sheet(carry.state, pose)), steps)
    return np.asarray(kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "obs", "camera", "equal"),
    [
        ("zero", "pixels", False, True), ("jacobian", "pixels", False, False), ("jacobian", "pixels", True, True),
        ("jacobian", "state", True, True), ("oracle", "state", True, True), ("jacobian", "state25", True, True),
    ],
)  # fmt: skip
def test_without_a_privileged_base_no_target_depends_on_the_true_sheet(
    make_env, shaken, with_sheet, monkeypatch, base, obs, camera, equal
):
    """Two sheets out of the arm's reach, the same joints and pictures: the same targets over a whole episode. A base
    that reads the true pose cannot pass, which is why it must be asked for and is said in the report; with a pose
    network in between it does."""
    monkeypatch.setattr(eyes, "make_renderer", lambda *_, **__: Canned())
    env = make_env(2, "nominal", auto_reset=False, task=TaskConfig(episode_steps=40))
    policy = make_base(base, env.task)
    told = actor_layout(obs, base in SEES_POSE and not camera)
    pose = PoseNetwork(RENDER, env.task.geometry.goal, channels=8, hidden=16) if camera else None
    render = RENDER if obs == "pixels" else None
    residual = Residual(ResidualConfig(hidden=(16,)), policy.num_features, render, told, pose)
    roller = Roller(env, policy, residual, lambda pending, *_: pending.carry.state.target, mode=MEAN)
    one = executed_targets(roller, shaken, with_sheet, (0.55, 0.45, 1.2))
    other = executed_targets(roller, shaken, with_sheet, (0.60, 0.30, 1.9))
    assert np.ptp(one, axis=0).max() > 0.05  # the residual moves the arm
    assert (one == other).all() == equal


def test_actor_with_pixels_is_not_told_the_plan_of_a_base_that_sees_the_pose():
    parts = {name for name, _, _ in actor_layout("pixels", base_sees_pose=True)}
    assert parts == {"joint_pos", "joint_vel", "effector_height", "target_lead", "last_residual"}
    assert {name for name, _, _ in actor_layout("pixels")} - parts == {"base_lead", "base_features"}
    assert actor_layout("state", base_sees_pose=True) == actor_layout("state") == ACTOR_LAYOUT


@pytest.mark.parametrize("base", ["jacobian", "oracle"])
def test_pixels_over_a_base_that_reads_the_true_pose_must_be_asked_for(base):
    with pytest.raises(ConfigError, match=rf"base '{base}' reads the sheet's true pose.*--privileged-base"):
        TrainConfig(obs="pixels", base=base)
    allowed = TrainConfig(obs="pixels", base=base, privileged_base=True).make_residual(6)
    assert "base_lead" not in allowed.layout["state"]
    assert "base_lead" in TrainConfig(obs="pixels", base="zero").make_residual(0).layout["state"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"privileged_base": True}, "privileged_base is for a residual that sees pictures"),
        ({"obs": "pixels", "privileged_base": True, "sheet_pose": "camera"}, "without --sheet-pose camera"),
        ({"blind": True}, "blind is for a policy that sees pictures"),
        ({"sheet_pose": "radar"}, "sheet_pose is 'radar'.*simulation.*camera"),
        ({"pose_network": "pose"}, "pose_network is 'pose', which --sheet-pose camera reads"),
        ({"obs": "pixels", "base": "zero", "privileged_base": True}, "base 'zero' does not read the sheet's pose"),
    ],
)
def test_flags_of_sight_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@pytest.mark.slow
def test_blank_pictures_are_the_control_of_a_policy_and_of_a_run(roller, learner, rolled):
    """A variant without sight is shown black, by the same compiled program; a blind roller never draws."""
    begin = roller.start(KEY)
    _, unseen = roller.variant(MEAN, blind=True).roll(learner, begin, 2)
    _, seen = roller.variant(MEAN).roll(learner, roller.start(KEY), 2)
    assert not unseen.vectors["pixels/top"].any() and seen.vectors["pixels/top"].any()
    assert (unseen.raw != seen.raw).any()
    blind = Roller(roller.env, roller.base, roller.residual, roller.keep, mode=MEAN, blind=True)
    assert not hasattr(blind.eyes, "renderer")
    _, control = blind.roll(learner, blind.start(KEY), 2)
    assert not control.vectors["pixels/top"].any()
    np.testing.assert_array_equal(control.raw[0], unseen.raw[0])


# -- pictures that cannot be real ----------------------------------------------------------------------------------
def seen_in_a_rollout(moved=1.0):
    """Vectors of 3 steps of 4 environments: random pictures, an arm that moves by `moved` rad in environment 1, 2."""
    rng = np.random.default_rng(0)
    joints = np.zeros((3, 4, 10), np.float32)
    joints[2, 1:3, 4] = moved
    return {"state": joints, "pixels/top": rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)}


@pytest.mark.parametrize(
    ("spoil", "constant", "frozen"), [("nothing", 0, 0), ("one colour", 1, 0), ("one step", 0, 0), ("frozen", 0, 2)]
)
def test_pictures_of_one_colour_or_that_do_not_follow_the_arm_are_counted(spoil, constant, frozen):
    vectors = seen_in_a_rollout()
    pictures = vectors["pixels/top"]
    if spoil == "one colour":
        pictures[:, 3] = np.arange(3, dtype=np.uint8)[:, None, None, None]
    elif spoil == "one step":
        pictures[1, 3] = 7  # a blink
    elif spoil == "frozen":
        pictures[:] = pictures[:1]  # of which only two show an arm that moved
    found = eyes.picture_faults(vectors)
    assert {name: int(count) for name, count in found.items()} == {
        "constant_pictures": constant,
        "frozen_pictures": frozen,
    }


def test_one_frozen_camera_of_two_is_seen():
    vectors = seen_in_a_rollout()
    frozen = np.repeat(vectors["pixels/top"][:1], 3, axis=0)
    assert int(eyes.picture_faults({**vectors, "pixels/wrist": frozen})["frozen_pictures"]) == 2


# -- eyes ----------------------------------------------------------------------------------------------------------
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
    with pytest.raises(ConfigError, match="obs is 'nonsense'; choose one of 'state', 'state25', 'pixels'"):
        TrainConfig(obs="nonsense")


def test_configuration_of_pictures_survives_its_record():
    config = TrainConfig(base="zero", obs="pixels", render=RenderConfig(cameras=("top", "wrist"), width=32, height=24))
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
    meta = {"format": checkpoint.FORMAT, "config": config.to_dict(), "layout": config.make_residual(0).layout}
    checkpoint.write_meta(best, meta)
    with pytest.raises(CheckpointError, match=r"another observation layout.*pixels\.top") as refused:
        load_policy(tmp_path, None, {"obs": now})
    assert "state.goal_vector: saved " + ("2, now None" if saved == "state" else "None, now 2") in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("renderer", ["auto", "mujoco"])
def test_training_from_pixels_ends_in_a_policy_that_can_be_evaluated(tmp_path, capsys, monkeypatch, renderer):
    """Rollout, update, evaluation, report and checkpoint with pictures, as small as they can be."""
    monkeypatch.setattr(train_config, "TaskConfig", functools.partial(TaskConfig, episode_steps=20))  # evaluations too
    flags = [
        *("--obs", "pixels", "--width", "16", "--height", "16", "--physics", "native", "--num-envs", "4"),
        *("--unroll", "4", "--minibatches", "2", "--epochs", "1", "--steps", "32", "--episode-steps", "20"),
        *("--eval-episodes", "2", "--report-episodes", "2", "--eval-every", "0.5", "--hidden", "16", "16"),
        *("--no-video", "--strict", "--randomization", "plain+looks", "--preset", "cpu", "--eval-batch", "2"),
        *("--privileged-base", "--renderer", renderer),
        *("--out", str(tmp_path / "run")),
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
