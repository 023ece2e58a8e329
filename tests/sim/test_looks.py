"""Looks: every parameter changes the picture it should, nominal ones change nothing; sensor effects and textures."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.ndimage

from mjx_so101 import ConfigError, Randomization, SceneConfig
from mjx_so101.params import FIELDS, PRESETS, SHEET_TEXTURES, TABLE_TEXTURES
from mjx_so101.render import RenderConfig, looks_vary, make_renderer
from mjx_so101.render.color import linear_to_srgb, srgb_to_linear
from mjx_so101.render.looks import Looks
from mjx_so101.render.poses import Poses, SceneKinematics
from mjx_so101.render.quad.renderer import QuadRenderer
from mjx_so101.render.sensor import SENSOR_FIELDS, sense, sensor_varies
from mjx_so101.render.warp import WarpRenderer
from mjx_so101.scene import load_visual_model
from mjx_so101.textures import SIZE, make_texture

LOOKS = [name for name, field in FIELDS.items() if field.group == "look" and name not in SENSOR_FIELDS]
CHANGED = {  # one value for each look that is far from its default
    "table_color": 0.4, "sheet_color": -0.5, "tape_color": 0.4, "link_color": -0.5, "finger_color": 0.4,
    "table_texture": 1, "sheet_texture": 1, "light_azimuth": 2.0, "light_tilt": 0.6, "light_intensity": 0.5,
    "light_color": (1.5, 1.0, 0.5), "light_shadow": 0, "top_camera_position": 0.1, "top_camera_rotation": 0.3,
    "top_camera_fovy": 10.0, "wrist_camera_position": 0.02, "wrist_camera_rotation": 0.3, "wrist_camera_fovy": 10.0,
}  # fmt: skip
FIELD_OF = {  # what of the model it sets
    **{f"{part}_color": {"mat_rgba"} for part in ("table", "sheet", "tape", "link", "finger")},
    **{f"{part}_texture": {"mat_texid"} for part in ("table", "sheet")},
    **{f"light_{turn}": {"light_pos", "light_dir"} for turn in ("azimuth", "tilt")},
    "light_intensity": {"light_diffuse"}, "light_color": {"light_diffuse"}, "light_shadow": {"light_castshadow"},
    **{f"{camera}_camera_{what}": {field} for camera in ("top", "wrist")
       for what, field in (("position", "cam_pos"), ("rotation", "cam_quat"), ("fovy", "cam_fovy"))},
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_visual_model()


@pytest.fixture(scope="module")
def looks(model):
    return jax.jit(Looks(model))


@pytest.fixture(scope="module")
def nominal(states):
    """EnvParams of one environment with default looks and sensor."""
    return jax.tree.map(lambda leaf: leaf[0], states.params)


def changed(params, name, value):
    """params with one field set, whatever its size."""
    old = getattr(params, name)
    return dataclasses.replace(params, **{name: jnp.broadcast_to(jnp.asarray(value, old.dtype), old.shape)})


# -- model fields --------------------------------------------------------------------------------------------------
def test_nominal_looks_are_the_model(model, looks, nominal):
    fields = looks(nominal)
    assert set(fields) == set(Looks.NAMES)
    for name, value in fields.items():
        np.testing.assert_allclose(value, getattr(model, name), rtol=1e-6, atol=1e-8, err_msg=name)
    for name in ("mat_rgba", "mat_texid", "light_diffuse", "light_castshadow", "cam_pos", "cam_quat", "cam_fovy"):
        np.testing.assert_array_equal(fields[name], Looks(model).nominal[name], err_msg=name)


@pytest.mark.parametrize("name", LOOKS)
def test_each_look_sets_its_fields_and_no_others(looks, nominal, name):
    before, after = looks(nominal), looks(changed(nominal, name, CHANGED[name]))
    moved = {field for field in before if not np.allclose(before[field], after[field], atol=1e-6)}
    assert moved == FIELD_OF[name]


@pytest.mark.parametrize("table", range(len(TABLE_TEXTURES)))
def test_texture_numbers_follow_their_names(model, looks, nominal, table):
    sheet = table % len(SHEET_TEXTURES)
    fields = looks(changed(changed(nominal, "table_texture", table), "sheet_texture", sheet))
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    for material, name in (("table", TABLE_TEXTURES[table]), ("sheet", SHEET_TEXTURES[sheet])):
        assert model.texture(int(fields["mat_texid"][model.material(material).id, role])).name == name


def test_colours_stay_colours(model, looks, nominal):
    for value in (-1.0, 1.0):
        fields = looks(changed(nominal, "tape_color", value))
        color = np.asarray(fields["mat_rgba"][model.material("tape").id])
        np.testing.assert_array_equal(color, (value > 0, value > 0, value > 0, 1))


def test_main_light_turns_about_the_goal(model, looks, nominal):
    """The azimuth turns it about the vertical, the tilt about the world's y axis, and it keeps its aim."""
    light = model.light("main").id
    x, y, z = np.asarray(looks(nominal)["light_dir"][light])
    turned = looks(changed(nominal, "light_azimuth", np.pi / 2))["light_dir"][light]
    np.testing.assert_allclose(turned, (-y, x, z), atol=1e-6)
    tilted = looks(changed(nominal, "light_tilt", 0.3))
    cos, sin = np.cos(0.3), np.sin(0.3)
    np.testing.assert_allclose(tilted["light_dir"][light], (cos * x + sin * z, y, cos * z - sin * x), atol=1e-6)
    goal = np.array([0.275, 0.175, 0])
    before, after = looks(nominal)["light_pos"][light] - goal, tilted["light_pos"][light] - goal
    np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(before), rtol=1e-5)


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_cameras_move_by_what_is_asked_and_turn_about_their_own_axes(model, looks, nominal, camera):
    """The turn is a rotation vector in the camera's frame, as MuJoCo composes quaternions."""
    vector, number = np.array([0.1, -0.2, 0.05]), model.camera(camera).id
    params = changed(changed(nominal, f"{camera}_camera_rotation", vector), f"{camera}_camera_fovy", -7.0)
    fields = looks(changed(params, f"{camera}_camera_position", (0.01, 0.02, -0.03)))
    turn, expected = np.zeros(4), np.zeros(4)
    mujoco.mju_axisAngle2Quat(turn, vector / np.linalg.norm(vector), np.linalg.norm(vector))
    mujoco.mju_mulQuat(expected, model.cam_quat[number], turn)
    np.testing.assert_allclose(fields["cam_quat"][number], expected, atol=1e-6)
    np.testing.assert_allclose(fields["cam_pos"][number], model.cam_pos[number] + (0.01, 0.02, -0.03), atol=1e-6)
    assert float(fields["cam_fovy"][number]) == model.cam_fovy[number] - 7


# -- poses ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", ["nominal", "nominal+looks"])
def test_poses_are_those_of_mujoco(states, looks, preset):
    """Of geoms, cameras and lights, for randomized looks too, from MuJoCo C with the same model fields; on a GPU too,
    which would round matrix products to 0.25 mm."""
    model = load_visual_model()
    data = mujoco.MjData(model)
    kinematics = jax.jit(SceneKinematics(model))
    for env in range(4):
        fields = looks(PRESETS[preset].sample(jax.random.PRNGKey(env)))
        qpos = states.physics.qpos[env]
        poses: Poses = kinematics(qpos, fields)
        for name, value in fields.items():
            getattr(model, name)[:] = value
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        for name, value in poses._asdict().items():
            expected = getattr(data, name)
            np.testing.assert_allclose(
                np.reshape(value, expected.shape), expected, atol=1e-6, err_msg=name
            )  # on a GPU too: no TF32


def test_only_hinges_and_slides_can_be_drawn():
    free = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    with pytest.raises(ConfigError, match="only hinge and slide joints"):
        SceneKinematics(mujoco.MjModel.from_xml_string(free))


# -- presets -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["nominal", "plain", "real", "wild"])
def test_presets_with_looks_vary_looks_and_the_same_physics(name):
    without, with_looks = PRESETS[name], PRESETS[f"{name}+looks"]
    assert not looks_vary(without) and not sensor_varies(without)
    assert looks_vary(with_looks) and sensor_varies(with_looks)
    a, b = (preset.sample(jax.random.PRNGKey(3)) for preset in (without, with_looks))
    for field in FIELDS:
        same = np.array_equal(getattr(a, field), getattr(b, field))
        assert same or FIELDS[field].group == "look", field
    assert not np.array_equal(a.table_color, b.table_color) and not np.array_equal(a.exposure, b.exposure)


@pytest.mark.parametrize(("name", "draws", "senses"), [("light_shadow", True, False), ("image_blur", False, True)])
def test_one_varied_field_is_enough(name, draws, senses):
    one = Randomization("one", {name: (0, 1)})
    assert (looks_vary(one), sensor_varies(one)) == (draws, senses)


def test_a_look_fixed_at_another_value_counts_as_varied():
    assert looks_vary(Randomization("dark", {"light_intensity": (0.5, 0.5)}))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.group == "look"])
def test_looks_outside_their_limits_are_refused(name):
    field = FIELDS[name]
    for bad in ((field.low - 1, field.high), (field.low, field.high + 1)):
        with pytest.raises(ConfigError, match=f"range of {name} .* outside its limits; give .*low <= high"):
            Randomization("bad", {name: bad})


# -- pictures ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def varied(states, rows_of, nominal):
    """Environment 0 with nominal looks, the others with one look changed each; the same qpos for all. Two batches."""
    first = rows_of(states, np.zeros(16, int))
    batches = {}
    for names in (LOOKS[:9], LOOKS[9:]):
        rows = [nominal, *(changed(nominal, name, CHANGED[name]) for name in names)]
        rows += [nominal] * (16 - len(rows))
        batches[tuple(names)] = first.replace(params=jax.tree.map(lambda *x: jnp.stack(x), *rows))
    return batches


@pytest.fixture(scope="module")
def drawn(varied, quad_renderer, warp_renderer, mujoco_renderer):
    """{backend: {look: the pictures [camera, height, width, 3]}}, and 'nominal'."""
    pictures = {}
    for renderer in (quad_renderer, warp_renderer, mujoco_renderer):
        found = pictures.setdefault(renderer.name, {})
        for names, state in varied.items():
            rgb = np.asarray(renderer.render(state)).astype(int)
            found |= {"nominal": rgb[0], **dict(zip(names, rgb[1:], strict=False))}
    return pictures


@pytest.mark.parametrize("backend", ["quad", "warp", "mujoco"])
@pytest.mark.parametrize("name", [name for name in LOOKS if name != "light_shadow"])
def test_each_look_changes_the_picture(drawn, backend, name):
    """Of the camera that it is about, and of that alone."""
    top, wrist = np.abs(drawn[backend][name] - drawn[backend]["nominal"]).mean((1, 2, 3))
    assert (top > 0.02) == (not name.startswith("wrist")), (top, wrist)
    assert (wrist > 0.02) == (not name.startswith("top")), (top, wrist)


@pytest.mark.parametrize("backend", ["quad", "warp"])
@pytest.mark.parametrize("name", ["nominal", *LOOKS])
def test_changed_looks_agree_with_mujoco(drawn, backend, name):
    assert np.abs(drawn[backend][name] - drawn["mujoco"][name]).mean((1, 2, 3)).max() <= 12


@pytest.mark.parametrize("backend", ["quad", "warp", "mujoco"])
def test_shadows_come_and_go_with_their_parameter(states, rows_of, opengl, backend):
    """Where the light casts none, the picture is nowhere darker and in some places brighter."""
    state = rows_of(states, [0, 0])
    params = dataclasses.replace(state.params, light_shadow=jnp.array([1, 0], jnp.int32))
    config = RenderConfig(backend, ("top",), 48, 36)
    renderer = make_renderer(config, num_envs=2, randomization=PRESETS["nominal+looks"])
    with_shadow, without = np.asarray(renderer.render(state.replace(params=params)))[:, 0].astype(int)
    renderer.close()
    brighter = (without - with_shadow).mean(-1)
    assert (brighter > 5).mean() > 0.015
    assert (brighter < -5).mean() < 0.003  # MuJoCo's own shadow map lights a few edges


@pytest.mark.parametrize("kind", [QuadRenderer, WarpRenderer])
def test_fixed_looks_draw_the_nominal_picture(states, rows_of, kind, request):
    """The fast path for randomizations without looks gives the same picture, and ignores looks."""
    frames = request.getfixturevalue(f"{kind.name}_frames")
    fixed = kind(SceneConfig(), ("top", "wrist"), 96, 72, 2, shadows=False, specular=False, fixed_looks=True)
    state = rows_of(states, [0, 1])
    rgb = np.asarray(fixed.render(state)).astype(int)
    difference = np.abs(rgb - frames.rgb[:2])
    assert difference.max() <= 1 or (difference > 1).mean() < 1e-3  # a ray on an edge may fall to either side
    dark = state.replace(params=changed(state.params, "light_intensity", 0.2))
    np.testing.assert_array_equal(fixed.render(dark), rgb)


@pytest.mark.parametrize("size", [(24, 16), (26, 18)], ids=["tiles", "rows"])
def test_rays_in_tiles_give_whole_pictures(states, rows_of, size):
    """Pictures that divide into tiles are drawn tile by tile; colours, depth and segmentation come back in rows."""
    state = rows_of(states, [0, 1])
    tiled, rows = (
        WarpRenderer(
            SceneConfig(), ("wrist", "top"), *size, 2, fixed_looks=fixed, depth=True, segmentation=True
        ).frames(state)
        for fixed in (True, False)
    )
    assert tiled.rgb.shape == (2, 2, *size[::-1], 3)
    assert np.std(tiled.segmentation[0, 1], axis=0).max() > 0
    for name in ("rgb", "depth", "segmentation"):
        same = np.isclose(getattr(tiled, name), getattr(rows, name), atol=1e-3 if name == "depth" else 1)
        assert same.mean() > 0.995, name  # a ray on an edge may fall to either side


# -- sensor --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def grey():
    return np.full((1, 48, 64, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def noisy():
    """Two random pictures of all values."""
    return np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def sensed(nominal):
    """Function from pictures [camera, height, width, 3] and sensor fields to what the sensor makes of them."""

    def apply(rgb, seed=0, **fields):
        params = dataclasses.replace(nominal, **{name: jnp.float32(value) for name, value in fields.items()})
        params = jax.tree.map(lambda leaf: leaf[None], params)
        seen = np.asarray(sense(rgb[None], params, jax.random.PRNGKey(seed)[None]))[0]
        assert (seen.dtype, seen.shape) == (np.uint8, rgb.shape)
        return seen

    return apply


def test_default_sensor_changes_nothing(sensed, noisy):
    np.testing.assert_array_equal(sensed(noisy), noisy)
    every = np.tile(np.arange(256, dtype=np.uint8)[None, None, :, None], (1, 2, 1, 3))
    np.testing.assert_array_equal(sensed(every), every)


def test_one_stop_doubles_the_light(sensed, grey):
    """sRGB 128 is 0.2159 of linear light; twice and half as much are 175.6 and 92.2."""
    assert abs(int(sensed(grey, exposure=1.0)[0, 0, 0, 0]) - 176) <= 1
    assert abs(int(sensed(grey, exposure=-1.0)[0, 0, 0, 0]) - 92) <= 1


def test_warm_white_balance_is_redder_and_less_blue(sensed, grey):
    red, green, blue = sensed(grey, white_balance=0.6)[0, 0, 0].astype(int)
    assert red > 135 and green == 128 and blue < 121
    assert (sensed(grey, white_balance=-0.6)[0, 0, 0] == (blue, green, red)).all()


@pytest.mark.parametrize(("gamma", "expected"), [(0.8, 147), (1.3, 104)])
def test_gamma_bends_the_middle_and_keeps_the_ends(sensed, grey, gamma, expected):
    assert abs(int(sensed(grey, image_gamma=gamma)[0, 0, 0, 0]) - expected) <= 1
    for end in (0, 255):
        assert (sensed(np.full_like(grey, end), image_gamma=gamma) == end).all()


def test_blur_smooths_and_keeps_the_mean(sensed, noisy):
    variance = [float(sensed(noisy, image_blur=sigma).astype(float).var()) for sigma in (0.0, 0.5, 1.0, 1.5)]
    assert variance == sorted(variance, reverse=True) and variance[-1] < 0.1 * variance[0]
    for sigma in (0.5, 1.5):
        np.testing.assert_allclose(sensed(noisy, image_blur=sigma).mean((1, 2)), noisy.mean((1, 2)), atol=1.5)


def test_blur_is_the_gaussian_asked_for(sensed, grey):
    """An edge spreads with the standard deviation given, along both axes and in all channels alike."""
    for axis in (1, 2):
        step = grey.copy()
        step[(slice(None),) * axis + (slice(grey.shape[axis] // 2, None),)] = 28
        seen = np.moveaxis(sensed(step, image_blur=1.2), axis, -1).astype(float)
        weights = -np.diff(seen) / 100
        at = np.arange(weights.shape[-1])
        mean = (weights * at).sum(-1, keepdims=True)
        np.testing.assert_allclose(np.sqrt((weights * (at - mean) ** 2).sum(-1)), 1.2, atol=0.1)


@pytest.mark.parametrize("std", [0.01, 0.03, 0.1])
def test_noise_has_the_size_asked_for(sensed, grey, std):
    seen = sensed(grey, image_noise=std).astype(float)
    np.testing.assert_allclose(seen.std(), 255 * std, rtol=0.1)
    assert abs(seen.mean() - 128) < 0.05 * 255 * std + 0.2
    flat = seen.reshape(-1, 3) - 128
    assert abs(np.corrcoef(flat.T)[0, 1]) < 0.1  # each channel has its own


def test_sensor_is_that_of_the_formula(sensed, noisy):
    """Against SciPy's Gaussian, and the published sRGB curve in float64; 42 x 35 pixels fill no block of a kernel."""
    rgb = noisy[:, :42, :35]
    light = srgb_to_linear(rgb / 255.0) * 2.0**0.4 * np.array([2**0.15, 1, 2**-0.15])
    seen = linear_to_srgb(np.clip(light, 0, 1)) ** 1.2
    for axis in (1, 2):
        seen = scipy.ndimage.gaussian_filter1d(seen, 0.9, axis, mode="nearest", radius=4)
    found = sensed(rgb, exposure=0.4, white_balance=0.3, image_gamma=1.2, image_blur=0.9)
    assert np.abs(found - 255 * seen).max() <= 0.51


def test_every_environment_and_camera_has_its_own_sensor(sensed, noisy, nominal):
    """Two cameras, environments with other fields and keys: each row is what it is alone."""
    rows = [{}, {"image_blur": 1.0}, {"image_noise": 0.1}, {"image_noise": 0.1, "exposure": 1.0}]
    params = [dataclasses.replace(nominal, **{k: jnp.float32(v) for k, v in row.items()}) for row in rows]
    keys = jax.random.split(jax.random.PRNGKey(3), len(rows))
    pictures = np.stack([np.roll(noisy, i, 1) for i in range(len(rows))])
    assert pictures.shape[1] == 2
    seen = np.asarray(sense(pictures, jax.tree.map(lambda *leaf: jnp.stack(leaf), *params), keys))
    for i, row in enumerate(rows):
        alone = sense(pictures[i : i + 1], jax.tree.map(lambda leaf: leaf[None], params[i]), keys[i : i + 1])
        np.testing.assert_array_equal(seen[i], alone[0], err_msg=str(row))
    same = np.asarray(sense(np.full_like(pictures, 128), jax.tree.map(lambda *x: jnp.stack(x), *params), keys))
    noise = same[2].astype(int) - 128
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1  # each camera has its own noise
    assert abs(np.corrcoef(noise[0, 1:].ravel(), noise[0, :-1].ravel())[0, 1]) < 0.1  # and each row


def test_noise_is_normal(sensed, grey):
    """Kurtosis and the share beyond two standard deviations, over 200,000 values."""
    noise = np.concatenate([sensed(grey, seed=seed, image_noise=0.1).ravel() for seed in range(40)]).astype(float) - 128
    noise /= noise.std()
    assert abs((noise**4).mean() - 3) < 0.1 and abs((noise**3).mean()) < 0.05
    assert abs((np.abs(noise) > 2).mean() - 0.0455) < 0.005


def test_noise_depends_on_the_key_alone(sensed, grey):
    first = sensed(grey, image_noise=0.05)
    np.testing.assert_array_equal(sensed(grey, image_noise=0.05), first)
    assert (sensed(grey, seed=1, image_noise=0.05) != first).mean() > 0.5


def test_extremes_are_clipped_not_wrapped(sensed, noisy):
    assert (sensed(np.full_like(noisy, 200), exposure=3.0) == 255).all()
    seen = sensed(noisy, exposure=-3.0, white_balance=1.0, image_gamma=0.3, image_blur=3.0, image_noise=0.3)
    assert 0 < seen.mean() < 255


# -- textures ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TABLE_TEXTURES, *SHEET_TEXTURES])
def test_textures_are_pictures_made_from_nothing_but_their_name(name):
    image = make_texture(name)
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(make_texture(name), image)
    assert image.mean() > 100  # they tint a colour, and must leave some of it
    assert (image.std() > 2) == (name != "blank")


def test_textures_differ():
    images = {make_texture(name).tobytes() for name in (*TABLE_TEXTURES, *SHEET_TEXTURES)}
    assert len(images) == len(TABLE_TEXTURES) + len(SHEET_TEXTURES)


@pytest.mark.parametrize("name", [name for name in TABLE_TEXTURES if name != "tiles"])
@pytest.mark.parametrize("axis", [0, 1])
def test_table_textures_repeat_without_a_seam(name, axis):
    """From the last row to the first is no greater step than between other neighbours."""
    image = make_texture(name).astype(float)
    steps = np.abs(image - np.roll(image, 1, axis)).mean(tuple({0, 1, 2} - {axis}))
    assert steps[0] <= 1.5 * steps[1:].max()
    assert steps[0] <= 3 * np.median(steps) + 1


def test_the_model_carries_every_texture(model):
    assert {model.texture(i).name for i in range(model.ntex)} == {*TABLE_TEXTURES, *SHEET_TEXTURES, "room"}
    for name in (*TABLE_TEXTURES, *SHEET_TEXTURES):
        texture = model.texture(name)
        start = int(model.tex_adr[texture.id])
        stored = model.tex_data[start : start + SIZE * SIZE * 3].reshape(SIZE, SIZE, 3)
        np.testing.assert_array_equal(stored, make_texture(name))
