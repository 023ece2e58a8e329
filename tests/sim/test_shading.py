"""Colours and lights for Madrona shade as MuJoCo does."""

import jax
import mujoco
import numpy as np
import pytest

from mjx_so101 import ConfigError
from mjx_so101.render import shading
from mjx_so101.render.looks import Looks


def test_srgb_round_trip_and_known_values():
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(shading.linear_to_srgb(shading.srgb_to_linear(values)), values, atol=1e-6)
    assert shading.srgb_to_linear(0.5) == pytest.approx(0.21404, abs=1e-5)


def test_repair_table_undoes_madronas_encoding():
    linear = np.linspace(0.0012, 1, 5000)
    wrong = np.where(linear <= 0.00031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    drawn = (255 * np.clip(wrong, 0, 1)).astype(np.uint8)
    table = shading.repair_table()
    assert np.abs(table[drawn] - 255 * shading.linear_to_srgb(linear)).max() <= 1.5
    assert table[0] == 0 and (table[11:] == np.arange(11, 256)).all() and (np.diff(table.astype(int)) >= 0).all()


def test_upward_face_is_as_bright_as_in_mujoco_lit_and_in_shadow(scene_model):
    model, lights = scene_model, shading.scene_lights(scene_model, shadows=True)
    facing = np.maximum(-lights.direction[0, :, 2:], 0)  # [light, 1]
    shares = lights.color[0] * facing
    up = np.maximum(-model.light_dir[:, 2:], 0)
    shadowless = ~model.light_castshadow.astype(bool)
    for mine, theirs in ((shares, slice(None)), (shares[~lights.castshadow[0]], shadowless)):
        expected = model.vis.headlight.ambient + model.light_ambient.sum(0) + (model.light_diffuse * up)[theirs].sum(0)
        seen = shading.linear_to_srgb(mine.sum(0) + shading.MADRONA_AMBIENT)
        np.testing.assert_allclose(seen, expected, atol=1e-4)


def test_ambient_lights_shine_alike_from_all_sides():
    faces = np.random.default_rng(0).normal(size=(2000, 3))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    received = np.maximum(-faces @ shading._AROUND.T, 0).sum(1)
    assert received.min() > 0.80 and received.max() < 1.16
    assert np.maximum(-shading._AROUND[:, 2], 0).sum() == pytest.approx(1)


def test_no_light_casts_shadows_when_they_are_off(scene_model):
    assert shading.scene_lights(scene_model, True).castshadow.sum() == 1
    assert not shading.scene_lights(scene_model, False).castshadow.any()


def test_point_light_is_refused_by_name():
    xml = '<mujoco><worldbody><light name="bulb" type="point"/><geom size="1"/></worldbody></mujoco>'
    with pytest.raises(ConfigError, match="'bulb' is not directional"):
        shading.scene_lights(mujoco.MjModel.from_xml_string(xml), True)


def test_fixed_looks_are_those_of_the_other_renderers(scene_model, sampled_looks):
    fields = jax.vmap(Looks(scene_model))(sampled_looks)
    direction, diffuse, ambient, cast = shading._light_fields(scene_model, sampled_looks)
    np.testing.assert_allclose(direction, fields["light_dir"], atol=1e-6)
    np.testing.assert_allclose(diffuse, fields["light_diffuse"], atol=1e-6)
    np.testing.assert_allclose(ambient, fields["light_ambient"], atol=1e-6)
    np.testing.assert_array_equal(cast, fields["light_castshadow"])
    colors = shading._material_colors(scene_model, False, sampled_looks)
    np.testing.assert_allclose(colors, fields["mat_rgba"][..., :3], atol=1e-6)


def test_texture_enters_by_its_mean_colour(scene_model):
    table = scene_model.geom("table").id
    bare = shading.geom_colors(scene_model, [table], False)[0, 0]
    tinted = shading.geom_colors(scene_model, [table], True)[0, 0]
    np.testing.assert_allclose(bare, 0.06, atol=1e-6)
    assert (0.5 * bare < tinted).all() and (tinted < bare).all()
