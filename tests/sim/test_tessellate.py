"""Geoms as triangles: closed, of the right volume and area, flat or round as they are."""

import mujoco
import numpy as np
import pytest
import trimesh

from mjx_so101.render.tessellate import PLANE_THICKNESS, drawn_geoms, offsets, tessellate

A, B, C = 0.03, 0.05, 0.02
PRIMITIVES = """
<mujoco>
  <asset><mesh name="corner" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/></asset>
  <worldbody>
    <geom name="box" type="box" size=".03 .05 .02"/> <geom name="sphere" type="sphere" size=".03"/>
    <geom name="ellipsoid" type="ellipsoid" size=".03 .05 .02"/> <geom name="cylinder" type="cylinder" size=".03 .05"/>
    <geom name="capsule" type="capsule" size=".03 .05"/> <geom name="plane" type="plane" size=".03 .05 .1"/>
    <geom name="endless" type="plane" size="0 0 .1"/> <geom name="corner" type="mesh" mesh="corner"/>
  </worldbody>
</mujoco>
"""
VOLUME = {
    "box": 8 * A * B * C,
    "plane": 4 * A * B * PLANE_THICKNESS,
    "sphere": 4 / 3 * np.pi * A**3,
    "ellipsoid": 4 / 3 * np.pi * A * B * C,
    "cylinder": 2 * np.pi * A**2 * B,
    "capsule": 2 * np.pi * A**2 * B + 4 / 3 * np.pi * A**3,
    "corner": 1 / 6,
}
AREA = {
    "box": 8 * (A * B + B * C + A * C),
    "plane": 8 * A * B + 4 * (A + B) * PLANE_THICKNESS,
    "sphere": 4 * np.pi * A**2,
    "cylinder": 2 * np.pi * A**2 + 4 * np.pi * A * B,
    "capsule": 4 * np.pi * A * B + 4 * np.pi * A**2,
}


@pytest.fixture(scope="module")
def primitives():
    return mujoco.MjModel.from_xml_string(PRIMITIVES)


def shade_normals(vertices, faces):
    """Madrona's normals: at each vertex the sum of its faces' cross products (render_ctx.cpp, loadObjects)."""
    normals = np.zeros_like(vertices, dtype=float)
    a, b, c = (vertices[faces[:, i]].astype(float) for i in range(3))
    for i in range(3):
        np.add.at(normals, faces[:, i], np.cross(b - a, c - a))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


@pytest.mark.parametrize("name", VOLUME)
def test_primitive_fills_its_volume(primitives, name):
    mesh = tessellate(primitives, primitives.geom(name).id)
    assert mesh.vertices.dtype == np.float32 and mesh.faces.dtype == np.int32
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces)  # merges equal vertices
    assert solid.is_watertight and solid.is_winding_consistent
    flat = name in ("box", "plane", "corner")
    assert solid.volume == pytest.approx(VOLUME[name], rel=1e-5 if flat else 0.02)  # positive: faces wind outwards
    if name in AREA:
        assert solid.area == pytest.approx(AREA[name], rel=1e-5 if flat else 0.02)


def test_plane_ends_at_its_surface_and_endless_plane_is_wide(primitives):
    mesh = tessellate(primitives, primitives.geom("plane").id)
    assert mesh.vertices[:, 2].max() == 0 and mesh.vertices[:, 2].min() == pytest.approx(-PLANE_THICKNESS)
    assert np.ptp(tessellate(primitives, primitives.geom("endless").id).vertices, 0)[0] >= 5


@pytest.mark.parametrize("name", ["box", "cylinder", "sphere", "capsule"])
def test_surfaces_are_shaded_flat_or_round_as_they_are(primitives, name):
    mesh = tessellate(primitives, primitives.geom(name).id)
    normals = shade_normals(mesh.vertices, mesh.faces)
    if name == "box":
        np.testing.assert_allclose(np.abs(normals).max(1), 1, atol=1e-6)
    elif name == "cylinder":
        ends = np.abs(normals[:, 2]) > 0.5
        np.testing.assert_allclose(np.abs(normals[ends, 2]), 1, atol=1e-6)
        radial = mesh.vertices[~ends, :2] / A
        assert (np.sum(radial * normals[~ends, :2], 1) > 0.999).all()
    else:
        axis = mesh.vertices - np.clip(mesh.vertices, [0, 0, -B], [0, 0, B]) * [0, 0, name == "capsule"]
        assert (np.sum(axis / A * normals, 1) > 0.99).all()


def test_mesh_geom_is_taken_as_it_is(primitives):
    mesh = tessellate(primitives, primitives.geom("corner").id)
    np.testing.assert_array_equal(mesh.vertices, primitives.mesh_vert)
    np.testing.assert_array_equal(mesh.faces, primitives.mesh_face)


def test_drawn_geoms_leave_out_collision_slab(scene_model):
    names = [scene_model.geom(g).name for g in drawn_geoms(scene_model)]
    assert {"table", "paper", "tape_0", "fixed_fingertip"} <= set(names) and "paper_collision" not in names


def test_offsets_are_where_each_mesh_begins():
    starts = offsets([np.zeros((4, 3)), np.zeros((2, 3)), np.zeros((7, 3))])
    assert starts.tolist() == [0, 4, 6] and starts.dtype == np.int32
