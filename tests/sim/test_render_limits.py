"""Pictures: what is refused, which OpenGL draws, contact sheets, and what a renderer must survive."""

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
from mjx_so101.render.quad.renderer import QuadRenderer
from mjx_so101.render.sheet import contact_sheet, save_png, side_by_side
from mjx_so101.render.warp import WarpRenderer
from mjx_so101.scene import CameraConfig

KINDS = {"quad": QuadRenderer, "warp": WarpRenderer, "mujoco": MujocoRenderer}
SIDE = CameraConfig("side", (0.6, 0.5, 0.25), (0.3943, 0.2209, 0.4391, 0.7758))
FLOOR = CameraConfig("floor", (0.7, 0.7, 0.05), (1, 0, 0, 0))  # sees nothing but table


# -- what is refused -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", KINDS)
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


@pytest.mark.parametrize("backend", KINDS)
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
        ({"renderer": "vulkan"}, "renderer is 'vulkan'; choose one of 'auto', 'quad', 'warp', 'madrona', 'mujoco'"),
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
    with pytest.raises(ConfigError, match=r"renderer 'madrona' cannot be used: .*(install|use renderer 'quad')"):
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
    with pytest.raises(HealthError, match="3 of 10 pictures"):
        check_pictures(rgb, ("top", "wrist"), most=0.29)
    assert check_pictures(rgb, ("top", "wrist"), most=0.3) == 0.3


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
