"""Pictures: `warp` draws what MuJoCo draws, of the environments, cameras and sizes asked for, or says why not."""

import re

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import ConfigError, HealthError, SceneConfig, gl
from mjx_so101.render import BACKENDS, RenderConfig, base, check_pictures, make_renderer
from mjx_so101.render.madrona import missing_requirement
from mjx_so101.render.mujoco import MujocoRenderer
from mjx_so101.render.sheet import contact_sheet, save_png, side_by_side
from mjx_so101.render.warp import WarpRenderer
from mjx_so101.scene import CameraConfig, load_visual_model

KINDS = {"warp": WarpRenderer, "mujoco": MujocoRenderer}
CLOSE = 12  # of 255: what the issue allows between backends
GOAL = np.array([0.275, 0.175])
SIDE = CameraConfig("side", (0.6, 0.5, 0.25), (0.3943, 0.2209, 0.4391, 0.7758))
FLOOR = CameraConfig("floor", (0.7, 0.7, 0.05), (1, 0, 0, 0))  # sees nothing but table


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


def test_arm_at_home_hides_less_than_a_third_of_the_tape(opengl, states, rows_of, geoms, make_env):
    renderer = MujocoRenderer(num_envs=1, segmentation=True)
    home = make_env(16, "nominal").task.config.home
    state = place(rows_of(states, [0]), arm=home, sheet=(3.0, 3.0, 0.0))

    def tape():
        return int(np.isin(renderer.frames(state).segmentation, geoms["tape"]).sum())

    at_home = tape()
    renderer.model.geom_group[geoms["robot"]] = 5  # a group that is not drawn
    whole = tape()
    renderer.close()
    area = 0.250 * 0.188 - 0.210 * 0.148
    assert whole == pytest.approx(area * (120 / (0.70 * np.tan(np.radians(25)))) ** 2, rel=0.05)
    assert whole > at_home > 2 / 3 * whole


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


def test_warp_draws_the_same_inside_jit(warp_renderer, warp_frames, states):
    rows = np.arange(16)[::-1]
    assert warp_renderer.jittable
    drawn = jax.jit(lambda state, envs: warp_renderer.render(state, envs))(states, rows)
    np.testing.assert_array_equal(drawn, warp_frames.rgb[rows])


def test_mujoco_inside_jit_is_refused(mujoco_renderer, states):
    assert not mujoco_renderer.jittable
    with pytest.raises(ConfigError, match=r"'mujoco' runs on the host.*jit; use 'warp'"):
        jax.jit(mujoco_renderer.render)(states)


@pytest.mark.parametrize("rows", [None, np.arange(3)])
def test_another_number_of_environments_is_refused(renderer, states, rows_of, rows):
    state = rows_of(states, np.arange(5)) if rows is None else states
    count = 5 if rows is None else 3
    words = rf"{count} environments.*{renderer.name} renderer was built for num_envs = 16.*`envs`"
    with pytest.raises(ConfigError, match=words):
        renderer.render(state, envs=rows)


def test_two_warp_renderers_do_not_disturb_each_other(warp_renderer, warp_frames, states, rows_of, small_pictures):
    renderer, first = small_pictures["warp"]
    few = rows_of(states, [0, 1])
    for _ in range(2):
        np.testing.assert_array_equal(warp_renderer.render(states), warp_frames.rgb)
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


def test_an_extra_camera_sees_the_same_in_both_backends(small_pictures):
    ours, theirs = (small_pictures[name][1][:, 0] for name in KINDS)
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


# -- what is refused -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["warp", "mujoco"])
@pytest.mark.parametrize(
    ("cameras", "width", "height", "num_envs", "words"),
    [
        (("front",), 8, 8, 1, "camera 'front' is unknown; valid cameras are top, wrist, side.*extra_cameras"),
        (("top", "top"), 8, 8, 1, "top, top name one twice"),
        ((), 8, 8, 1, "no camera given; valid cameras are top, wrist, side"),
        (("top",), 0, 8, 1, "0 x 8.*at least 1 pixel"),
        (("top",), 8, -1, 1, "8 x -1.*at least 1 pixel"),
        (("top",), 8, 8, 0, "num_envs is 0; it must be at least 1"),
    ],
)
def test_bad_requests_are_refused(backend, cameras, width, height, num_envs, words):
    with pytest.raises(ConfigError, match=words):
        KINDS[backend](SceneConfig(extra_cameras=(SIDE,)), cameras, width, height, num_envs)


@pytest.mark.parametrize("backend", ["warp", "mujoco"])
def test_too_many_pixels_are_refused_with_the_number_that_fits(monkeypatch, backend):
    monkeypatch.setattr(base, "available_memory", lambda: 2**20)
    request = (SceneConfig(), ("top", "wrist"), 64, 64)
    with pytest.raises(ConfigError, match=r"100000 envs x 2 cameras x 64 x 64 pixels need .* GiB") as refused:
        KINDS[backend](*request, 100_000)
    fitting = int(re.search(r"the largest num_envs that fits is (\d+)", str(refused.value))[1])
    assert fitting > 0
    assert base.check_request(*request, fitting) == ("top", "wrist")
    with pytest.raises(ConfigError, match=f"the largest num_envs that fits is {fitting}"):
        base.check_request(*request, fitting + 1)
    with pytest.raises(ConfigError, match="draw smaller pictures"):
        base.check_request(SceneConfig(), ("top",), 4096, 4096, 1)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"renderer": "vulkan"}, "renderer is 'vulkan'; choose one of 'warp', 'madrona', 'mujoco'"),
        ({"detail": "medium"}, "detail is 'medium'; choose one of 'fine', 'coarse'"),
        ({"width": 0}, "picture size is 0 x 64"),
        ({"height": -3}, "picture size is 64 x -3"),
    ],
)
def test_bad_render_config_is_refused(bad, words):
    with pytest.raises(ConfigError, match=words):
        RenderConfig(**bad)


def test_render_config_counts_its_bytes():
    config = RenderConfig(cameras=("top", "wrist"), width=10, height=20)
    assert (config.channels, config.bytes_per_env) == (6, 1200)


@pytest.mark.parametrize("name", BACKENDS)
def test_unknown_camera_is_refused_by_every_backend(name):
    with pytest.raises(ConfigError, match=r"'front'.*top.*wrist"):
        make_renderer(RenderConfig(name, ("front",), 16, 16))


@pytest.mark.skipif(missing_requirement() is None, reason="madrona works here")
def test_madrona_says_what_is_missing_and_what_to_do():
    with pytest.raises(ConfigError, match=r"renderer 'madrona' cannot be used: .*(install|use renderer 'warp')"):
        make_renderer(RenderConfig("madrona"))


def test_missing_opengl_is_named_with_its_fix(monkeypatch):
    def broken(*_):
        raise RuntimeError("gladLoadGL error")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    with pytest.raises(ConfigError, match=r"cannot draw here \(gladLoadGL error\).*libegl1.*MUJOCO_GL=egl"):
        make_renderer(RenderConfig("mujoco"))


@pytest.mark.parametrize("name", KINDS)
def test_a_blank_picture_is_named_in_strict_mode(opengl, states, rows_of, name):
    few, scene = rows_of(states, [0, 1]), SceneConfig(extra_cameras=(FLOOR,), detail="coarse")
    renderer = KINDS[name](scene, ("top", "floor"), 16, 12, 2, textures=False, shadows=False, strict=True)
    with pytest.raises(HealthError, match=r"env 0: the picture of camera 'floor' is constant \(RGB \[\d+.*2 of 4"):
        renderer.render(few)
    renderer.strict = False
    assert np.ptp(np.asarray(renderer.render(few))[:, 0]) > 50  # the other camera is fine
    renderer.close()


def test_the_first_blank_picture_is_the_one_named(both):
    rgb = both[1].rgb[:5].copy()
    check_pictures(rgb, ("top", "wrist"))
    rgb[3, 1] = (7, 8, 9)
    rgb[4] = 0
    with pytest.raises(HealthError, match=r"env 3: .*'wrist' is constant \(RGB \[7, 8, 9\]\), 3 of 10 pictures"):
        check_pictures(rgb, ("top", "wrist"))


# -- which OpenGL --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("libraries", "before", "display", "expected"),
    [
        (("EGL", "OSMesa"), None, None, "egl"),
        (("OSMesa",), None, None, "osmesa"),
        ((), None, None, None),
        (("EGL",), "glfw", None, "glfw"),
        ((), "osmesa", None, "osmesa"),
        (("EGL",), None, ":0", None),
        (("EGL",), None, "", "egl"),
    ],
)
def test_opengl_is_chosen_by_what_is_there(monkeypatch, libraries, before, display, expected):
    for name, value in (("MUJOCO_GL", before), ("DISPLAY", display)):
        monkeypatch.setenv(name, value or "")  # so that it is put back afterwards
        if value is None:
            monkeypatch.delenv(name)
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: f"lib{name}.so" if name in libraries else None)
    assert gl.choose_gl() == expected
    assert gl.os.environ.get("MUJOCO_GL") == expected


# -- contact sheets ------------------------------------------------------------------------------------------------
def test_contact_sheet_shows_each_environment_with_its_cameras_side_by_side(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (5, 2, 6, 8, 3), np.uint8)
    sheet = contact_sheet(rgb)
    cell = (6 + 2, 2 * (8 + 2))  # a white gap after each picture
    assert (sheet.shape, sheet.dtype) == ((2 * cell[0], 3 * cell[1], 3), np.uint8)
    np.testing.assert_array_equal(sheet[8:14, 20:28], rgb[4, 0])
    np.testing.assert_array_equal(sheet[8:14, 30:38], rgb[4, 1])
    assert (sheet[8:, 40:] == 255).all()  # no sixth environment
    assert contact_sheet(rgb, columns=5).shape == (8, 5 * 20, 3)
    save_png(tmp_path / "new" / "sheet.png", sheet)
    assert (tmp_path / "new" / "sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_side_by_side_ends_with_the_differences(both):
    ours, theirs = (frames.rgb[:3] for frames in both)
    picture = side_by_side([theirs, ours])
    assert picture.shape == (6 * 74, 3 * 98, 3)
    third = picture[74 : 74 + 72, 2 * 98 : 2 * 98 + 96]
    np.testing.assert_array_equal(third, np.abs(ours[0, 1].astype(int) - theirs[0, 1]))
    np.testing.assert_array_equal(picture[74 : 74 + 72, :96], theirs[0, 1])
    assert not side_by_side([ours, ours])[:72, 2 * 98 : 2 * 98 + 96].any()


# -- found by trying to break it -------------------------------------------------------------------------------------
def test_single_picture_keeps_nominal_looks(opengl, states, rows_of):
    renderer = MujocoRenderer(width=32, height=24)
    before = renderer.picture(states.physics.qpos[0])
    one = rows_of(states, [0])
    renderer.render(one.replace(params=one.params.replace(table_color=jnp.ones((1, 3)))))
    np.testing.assert_array_equal(renderer.picture(states.physics.qpos[0]), before)
    renderer.close()
    with pytest.raises(ConfigError, match="closed"):
        renderer.picture(states.physics.qpos[0])
    with pytest.raises(ConfigError, match="closed"):
        renderer.render(one)


@pytest.mark.parametrize(
    ("envs", "words"),
    [
        (np.arange(1, 17), "envs names row 16 of 16"),
        (np.arange(-1, 15), "envs names row -1 of 16"),
        (3, r"envs has shape \(\); give a vector of 16"),
        (np.ones(16), "give a vector of 16 row numbers"),
        (np.zeros((4, 4), int), r"envs has shape \(4, 4\)"),
    ],
)
def test_rows_that_do_not_exist_are_refused(warp_renderer, mujoco_renderer, states, envs, words):
    for renderer in (warp_renderer, mujoco_renderer):
        with pytest.raises(ConfigError, match=words):
            renderer.render(states, envs)


def test_rows_may_be_a_list(warp_renderer, states):
    order = list(range(15, -1, -1))
    np.testing.assert_array_equal(warp_renderer.render(states, order), warp_renderer.render(states)[::-1])


def test_traced_rows_are_refused_by_the_renderer_on_the_host(mujoco_renderer, states):
    with pytest.raises(ConfigError, match="cannot be traced inside jit"):
        jax.jit(lambda envs: mujoco_renderer.render(states, envs))(jnp.arange(16))


def test_picture_that_opengl_cannot_draw_names_its_size(monkeypatch):
    def fail(*_):
        raise RuntimeError("Offscreen framebuffer is not complete, error 0x8cdd")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(ConfigError, match="cannot draw 20000 x 10 pixels"):
        MujocoRenderer(SceneConfig(), ("top",), 20000, 10)


@pytest.mark.parametrize("position", [None, ("x", 0, 0), (0, 0), (0, 0, float("nan"))])
def test_camera_position_that_is_no_vector_is_refused(position):
    with pytest.raises(ConfigError, match="position of camera 'a'"):
        CameraConfig("a", position, (1, 0, 0, 0))


def test_name_of_the_free_view_is_taken():
    with pytest.raises(ConfigError, match="'scene' is empty or taken"):
        CameraConfig("scene", (0, 0, 1), (1, 0, 0, 0))


def test_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_png(tmp_path / "file" / "sheet.png", np.zeros((2, 2, 3), np.uint8))
