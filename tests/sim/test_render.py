"""Pictures: `quad` and `warp` draw what MuJoCo draws, of what is asked for, or say why not."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import ConfigError, SceneConfig, TaskConfig
from mjx_so101.render.mujoco import MujocoRenderer
from mjx_so101.render.quad.renderer import QuadRenderer
from mjx_so101.render.warp import WarpRenderer
from mjx_so101.scene import CameraConfig, load_visual_model

KINDS = {"quad": QuadRenderer, "warp": WarpRenderer, "mujoco": MujocoRenderer}
CLOSE = 12  # of 255: what the issue allows between backends
GOAL = np.array([0.275, 0.175])
SIDE = CameraConfig("side", (0.6, 0.5, 0.25), (0.3943, 0.2209, 0.4391, 0.7758))


@pytest.fixture(scope="module")
def geoms():
    """Ids of the geoms of each object; what is neither table, tape nor sheet belongs to the robot."""
    model = load_visual_model()
    ids = {name: model.geom(name).id for name in ("table", "paper", "tape_0", "tape_1", "tape_2", "tape_3")}
    found = {"sheet": [ids["paper"]], "table": [ids["table"]], "tape": [ids[f"tape_{i}"] for i in range(4)]}
    return {**found, "robot": sorted(set(range(model.ngeom)) - set(ids.values()))}


@pytest.fixture(scope="module")
def fingers():
    """Ids of the geoms of gripper and jaw."""
    model = load_visual_model()
    return np.flatnonzero(model.geom_matid == model.material("finger").id)


def place(state, arm=None, sheet=None):
    """The state with all arms [6] or all sheets [3] moved."""
    qpos = state.physics.qpos
    qpos = qpos if arm is None else qpos.at[:, :6].set(jnp.asarray(arm))
    qpos = qpos if sheet is None else qpos.at[:, 6:].set(jnp.asarray(sheet))
    return state.replace(physics=state.physics.replace(qpos=qpos))


# -- warp against MuJoCo -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sheet", "table", "tape", "robot"])
@pytest.mark.parametrize("camera", [0, 1])
def test_masks_agree_with_mujoco(both, geoms, camera, name):
    """Intersection over union of the pixels of one object, in each picture that shows enough of it."""
    ours, theirs = (np.isin(frames.segmentation[:, camera], geoms[name]) for frames in both)
    shown = (ours | theirs).sum((1, 2)) >= 50
    agree = (ours & theirs).sum((1, 2))[shown] / (ours | theirs).sum((1, 2))[shown]
    assert shown.sum() >= 8
    assert agree.min() >= 0.97


def test_empty_pixels_are_the_same_in_both_backends(both):
    for frames in both:
        np.testing.assert_array_equal(frames.segmentation == -1, frames.depth == 0)
    ours, theirs = (frames.segmentation == -1 for frames in both)
    assert theirs.sum() > 100  # the wrist camera sees past the table in some states
    assert (ours == theirs).mean() > 0.999


def test_colours_agree_with_mujoco(both):
    difference = np.abs(both[0].rgb.astype(int) - both[1].rgb).mean((2, 3, 4))
    assert difference.shape == (16, 2)
    assert difference.max() <= 2 < CLOSE  # measured: 0.6


def test_depth_agrees_with_mujoco(both):
    for env in range(16):
        for camera in range(2):
            ours, theirs = (frames.depth[env, camera] for frames in both)
            seen = (ours > 0) & (theirs > 0)
            assert seen.mean() > 0.3
            assert np.median(np.abs(ours - theirs)[seen]) < 0.001


def test_shapes_and_types(both):
    for frames in both:
        assert (frames.rgb.shape, frames.rgb.dtype) == ((16, 2, 72, 96, 3), np.uint8)
        assert (frames.depth.shape, frames.depth.dtype) == ((16, 2, 72, 96), np.float32)
        assert (frames.segmentation.shape, frames.segmentation.dtype) == ((16, 2, 72, 96), np.int32)


# -- where things are in the picture -------------------------------------------------------------------------------
def test_first_pixel_is_the_corner_at_plus_x_and_plus_y(renderer, states, geoms):
    """From above: up in the picture is the world's x, left its y; colour, depth and geoms are in the same places."""
    moved = GOAL + (0.20, 0.25)
    frames = jax.tree.map(np.asarray, renderer.frames(place(states, sheet=(*moved, 0.0))))
    pixels_per_m = 36 / (0.70 * np.tan(np.radians(25)))
    expected = (36 - 0.20 * pixels_per_m, 48 - 0.25 * pixels_per_m)  # row 14 of 72, column 20 of 96
    mask = frames.segmentation[0, 0] == geoms["sheet"][0]
    bright = (frames.rgb[0, 0] > 150).all(-1) & (np.arange(96) < 40) & (np.arange(72)[:, None] < 30)
    for found in (mask, bright):
        np.testing.assert_allclose(np.argwhere(found).mean(0) + 0.5, expected, atol=0.7)
    np.testing.assert_allclose(frames.depth[0, 0][mask], 0.70 - 0.001, atol=2e-4)
    np.testing.assert_allclose(frames.depth[0, 0, 0, 0], 0.70, atol=2e-4)  # the table, to the plane of the lens


def test_colours_are_red_green_blue(both, geoms, fingers):
    for frames in both:
        tape = frames.rgb[np.isin(frames.segmentation, geoms["tape"])]
        red, green, blue = np.median(tape, axis=0)
        assert red > green + 80 and red > blue + 80
        hand = frames.rgb[np.isin(frames.segmentation, fingers)]
        red, green, blue = np.median(hand, axis=0)
        assert blue > green + 30 and blue > red + 50


def corners(states_xyyaw, half):
    """World positions [pose, 4, 2] of a rectangle's corners."""
    x, y, yaw = states_xyyaw.T
    local = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)]) * half
    turn = np.stack([np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)], -1).reshape(-1, 2, 2)
    return np.stack([x, y], -1)[:, None] + np.einsum("nij,kj->nki", turn, local)


@pytest.mark.parametrize("aspect", [4 / 3, 1.0])
def test_top_camera_sees_the_tape_and_every_start(make_env, aspect):
    """Projected with the pose and the field of view that MuJoCo compiled."""
    model = load_visual_model()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = model.camera("top").id
    eye, axes = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
    tangent = np.tan(np.radians(model.cam_fovy[camera]) / 2)

    def margin(points, height):
        """How far the outermost of points [..., 2] is from the picture's edge, 1 is half the picture."""
        world = np.concatenate([points, np.full((*points.shape[:-1], 1), height)], -1)
        right, up, back = np.moveaxis((world - eye) @ axes, -1, 0)
        return 1 - max(np.abs(right / -back / tangent / aspect).max(), np.abs(up / -back / tangent).max())

    bars = [model.geom(f"tape_{i}") for i in range(4)]
    tape = np.concatenate([corners(np.array([[*bar.pos[:2], 0.0]]), bar.size[:2]) for bar in bars])
    assert margin(tape, 0.0) > 0
    env = make_env(4, "wild")
    starts = np.asarray(env.reset(jax.random.split(jax.random.PRNGKey(0), 500)).physics.qpos[:, 6:])
    assert np.hypot(*(starts[:, :2] - GOAL).T).max() > 0.14  # far ones are among them
    assert margin(corners(starts, np.array([0.074, 0.105])), 0.001) > 0


MEAN_OF_DATA = (0.01, 0.47, -0.15, 0.76, -2.11, 0.030)
"""Mean state of the real data, where `--home checkpoint` starts: the hand is over the goal."""


@pytest.mark.parametrize(("home", "least"), [(TaskConfig().home, 2 / 3), (MEAN_OF_DATA, 1 / 2)])
def test_arm_at_home_hides_little_of_the_tape(opengl, states, rows_of, geoms, home, least):
    renderer = MujocoRenderer(num_envs=1, segmentation=True)
    state = place(rows_of(states, [0]), arm=home, sheet=(3.0, 3.0, 0.0))

    def tape():
        return int(np.isin(renderer.frames(state).segmentation, geoms["tape"]).sum())

    at_home = tape()
    renderer.model.geom_group[geoms["robot"]] = 5  # a group that is not drawn
    whole = tape()
    renderer.close()
    area = 0.250 * 0.188 - 0.210 * 0.148
    assert whole == pytest.approx(area * (120 / (0.70 * np.tan(np.radians(25)))) ** 2, rel=0.05)
    assert whole > at_home > least * whole


# -- environments --------------------------------------------------------------------------------------------------
def test_every_environment_has_its_own_picture(both):
    for frames in both:
        pictures = {picture.tobytes() for picture in frames.rgb.reshape(32, -1)}
        assert len(pictures) == 32


def test_same_state_gives_the_same_picture(renderer, states, request):
    first = request.getfixturevalue(f"{renderer.name}_frames")
    again = jax.tree.map(np.asarray, renderer.frames(states))
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_rows_of_a_larger_state(renderer, states, rows_of, request):
    """`envs` picks rows, repeated ones too, as many as the renderer was built for."""
    first = request.getfixturevalue(f"{renderer.name}_frames").rgb
    many = rows_of(states, np.r_[np.arange(16), np.arange(16)[::-1]])  # 32 environments
    rows = jnp.asarray(np.random.default_rng(1).integers(0, 32, 16))
    expected = first[np.where(rows < 16, rows, 31 - rows)]
    np.testing.assert_array_equal(renderer.render(many, envs=rows), expected)


@pytest.mark.parametrize("name", ["quad", "warp"])
def test_the_same_is_drawn_inside_jit(name, states, request):
    renderer, frames = (request.getfixturevalue(f"{name}_{what}") for what in ("renderer", "frames"))
    rows = np.arange(16)[::-1]
    assert renderer.jittable
    drawn = jax.jit(lambda state, envs: renderer.render(state, envs))(states, rows)
    np.testing.assert_array_equal(drawn, frames.rgb[rows])


def test_mujoco_inside_jit_is_refused(mujoco_renderer, states):
    assert not mujoco_renderer.jittable
    with pytest.raises(ConfigError, match=r"'mujoco' runs on the host.*jit; use 'quad'"):
        jax.jit(mujoco_renderer.render)(states)


@pytest.mark.parametrize("rows", [None, np.arange(3)])
def test_another_number_of_environments_is_refused(renderer, states, rows_of, rows):
    state = rows_of(states, np.arange(5)) if rows is None else states
    count = 5 if rows is None else 3
    words = rf"{count} environments.*{renderer.name} renderer was built for num_envs = 16.*`envs`"
    with pytest.raises(ConfigError, match=words):
        renderer.render(state, envs=rows)


@pytest.mark.parametrize("name", ["quad", "warp"])
def test_two_renderers_do_not_disturb_each_other(name, states, rows_of, small_pictures, request):
    larger, frames = (request.getfixturevalue(f"{name}_{what}") for what in ("renderer", "frames"))
    renderer, first = small_pictures[name]
    few = rows_of(states, [0, 1])
    for _ in range(2):
        np.testing.assert_array_equal(larger.render(states), frames.rgb)
        np.testing.assert_array_equal(renderer.render(few), first)


# -- cameras -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small_pictures(opengl, states, rows_of, request):
    """{backend: (renderer, rgb of the first two states)} of cameras side, wrist and top, in that order."""
    scene, few, made = SceneConfig(extra_cameras=(SIDE,)), rows_of(states, [0, 1]), {}
    for name, kind in KINDS.items():
        renderer = kind(scene, ("side", "wrist", "top"), 96, 72, 2, shadows=False, specular=False)
        made[name] = renderer, np.asarray(renderer.render(few))
        request.addfinalizer(renderer.close)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_cameras_come_in_the_order_asked_for(small_pictures, name, request):
    renderer, rgb = small_pictures[name]
    assert renderer.cameras == ("side", "wrist", "top")
    expected = request.getfixturevalue(f"{name}_frames").rgb[:2]
    np.testing.assert_array_equal(rgb[:, 1:], expected[:, ::-1])


@pytest.mark.parametrize("name", ["quad", "warp"])
def test_an_extra_camera_sees_the_same_in_both_backends(name, small_pictures):
    ours, theirs = (small_pictures[kind][1][:, 0] for kind in (name, "mujoco"))
    assert np.ptp(theirs, axis=(1, 2)).min() > 100  # it sees more than table
    assert np.abs(ours.astype(int) - theirs).mean((1, 2, 3)).max() <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "top"}, "camera name 'top' is empty or taken; choose another than top, wrist"),
        ({"name": ""}, "camera name '' is empty or taken"),
        ({"body": "elbow"}, "body of camera 'side' is 'elbow'.*'world', 'base', 'shoulder'.*'paper'"),
        ({"quaternion": (1, 1, 0, 0)}, r"quaternion of camera 'side' is \(1, 1, 0, 0\); give 4 numbers of norm 1"),
        ({"quaternion": (1, 0, 0)}, "quaternion of camera 'side'.*give 4 numbers"),
        ({"quaternion": (float("nan"), 0, 0, 0)}, "quaternion of camera 'side'"),
        ({"position": (0, 0)}, r"position of camera 'side' is \(0, 0\); give 3 finite lengths"),
        ({"position": (0, 0, float("inf"))}, "position of camera 'side'"),
        ({"fovy_deg": 0}, r"fovy_deg of camera 'side' is 0; it must be in \(0, 180\)"),
        ({"fovy_deg": 180}, r"fovy_deg of camera 'side' is 180; it must be in \(0, 180\)"),
        ({"fovy_deg": float("nan")}, r"fovy_deg of camera 'side' is nan; it must be in \(0, 180\)"),
    ],
)
def test_bad_cameras_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        CameraConfig(**{"name": "side", "position": (0, 0, 1), "quaternion": (1, 0, 0, 0), **change})


def test_camera_names_must_differ():
    with pytest.raises(ConfigError, match="camera names top, wrist, side, side are not unique"):
        SceneConfig(extra_cameras=(SIDE, SIDE))


def test_a_camera_by_name_alone_is_refused():
    with pytest.raises(ConfigError, match=r"extra_cameras holds 's'; give CameraConfig\("):
        SceneConfig(extra_cameras="side")


@pytest.mark.parametrize("body", ["base", "gripper", "paper"])
def test_a_camera_rides_on_the_body_it_names(body):
    scene = SceneConfig(extra_cameras=(CameraConfig("rider", (0.01, 0.02, 0.03), (1, 0, 0, 0), body),))
    model = load_visual_model(scene)
    assert scene.camera_names == ("top", "wrist", "rider")
    assert model.camera("rider").bodyid[0] == model.body(body).id
    np.testing.assert_allclose(model.camera("rider").pos, (0.01, 0.02, 0.03))
