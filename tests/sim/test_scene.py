"""The scene: promised names, contacts, sizes, cameras, and clear errors for bad values."""

import mujoco
import numpy as np
import pytest

from mjx_so101 import JOINTS, ConfigError, SceneConfig, load_model

BODIES = ("base", "shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "moving_jaw_so101_v1", "paper")
SHEET_JOINTS = ("paper_x", "paper_y", "paper_yaw")


@pytest.fixture(scope="module")
def full():
    """The default scene, with visuals."""
    return load_model()


@pytest.fixture(scope="module")
def posed(full):
    data = mujoco.MjData(full)
    data.qpos[6:8] = 0.275, 0.175
    mujoco.mj_forward(full, data)
    return data


def test_promised_names(full):
    assert all(full.body(name).id > 0 for name in BODIES)
    assert [full.joint(name).qposadr[0] for name in (*JOINTS, *SHEET_JOINTS)] == list(range(9))
    assert [full.actuator(name).id for name in JOINTS] == list(range(6))
    assert full.site("gripperframe").bodyid[0] == full.body("gripper").id
    assert {full.camera(i).name for i in range(full.ncam)} == {"top", "wrist"}
    assert (full.nq, full.nv, full.nu) == (9, 9, 6)


def test_only_the_four_explicit_pairs_collide(full):
    assert not full.geom_contype.any() and not full.geom_conaffinity.any()
    pairs = {
        frozenset((full.geom(full.pair(i).geom1[0]).name, full.geom(full.pair(i).geom2[0]).name)) for i in range(4)
    }
    tips, surfaces = ("fixed_fingertip", "moving_fingertip"), ("paper_collision", "table")
    assert full.npair == 4
    assert pairs == {frozenset((tip, surface)) for tip in tips for surface in surfaces}


def test_rates_and_solver(full):
    config = SceneConfig()
    assert full.opt.timestep * config.substeps * config.control_hz == pytest.approx(1, abs=1e-12)
    assert full.opt.timestep == pytest.approx(1 / 240)
    assert (config.control_hz, config.substeps) == (30, 8)
    assert (full.opt.iterations, full.opt.ls_iterations) == (8, 10)


def test_timestep_follows_the_rates():
    model = load_model(SceneConfig(control_hz=20, substeps=5, visual=False))
    assert model.opt.timestep == pytest.approx(0.01)


def test_visuals_do_not_change_physics(full, model, joints_at):
    rng = np.random.default_rng(0)
    pressed = joints_at((0.25, 0.15, -0.01))
    ctrls = pressed + rng.uniform(-0.1, 0.1, (50, 6))
    ends, contacts = [], 0
    for scene in (full, model):
        data = mujoco.MjData(scene)
        data.qpos[:] = [*joints_at((0.25, 0.15, 0.006)), 0.26, 0.16, 1.3]
        for ctrl in ctrls:
            data.ctrl[:] = ctrl
            mujoco.mj_step(scene, data)
            contacts += data.ncon
        ends.append(data.qpos.copy())
    assert contacts > 20  # the comparison includes pressing on the sheet
    np.testing.assert_array_equal(ends[0], ends[1])


def test_sheet_is_a_light_thin_a5_plate(full):
    sheet = full.body("paper")
    np.testing.assert_allclose(full.geom("paper").size[:2], (0.074, 0.105))
    np.testing.assert_allclose(full.geom("paper_collision").size[:2], (0.074, 0.105))
    np.testing.assert_allclose(sheet.mass[0], 0.005)
    plate = 0.005 / 12 * np.array([0.210**2, 0.148**2, 0.210**2 + 0.148**2])
    np.testing.assert_allclose(np.sort(sheet.inertia), np.sort(plate), rtol=1e-9)


def test_sheet_joints_carry_no_motor_constants(full):
    dofs = [full.joint(name).dofadr[0] for name in SHEET_JOINTS]
    assert not full.dof_armature[dofs].any()
    np.testing.assert_allclose(full.dof_frictionloss[dofs], (0.0147, 0.0147, 0.001))
    np.testing.assert_allclose(full.dof_damping[dofs], (0.02, 0.02, 1e-4))


def test_viscous_sheet_has_no_dry_friction():
    model = load_model(SceneConfig(sheet_friction="viscous", visual=False))
    dofs = [model.joint(name).dofadr[0] for name in SHEET_JOINTS]
    assert not model.dof_frictionloss[dofs].any()
    np.testing.assert_allclose(model.dof_damping[dofs], (0.5, 0.5, 0.0025))


def test_tape_rectangle(full, posed):
    center = np.array([0.275, 0.175])
    bars = [full.geom(f"tape_{i}") for i in range(4)]
    low = np.array([posed.geom(bar.id).xpos - bar.size for bar in bars])
    high = np.array([posed.geom(bar.id).xpos + bar.size for bar in bars])

    def covered(half):
        """How many bars reach into the rectangle of this half size around the centre."""
        return ((low[:, :2] < center + half) & (high[:, :2] > center - half)).all(1).sum()

    np.testing.assert_allclose(low.min(0), (*(center - (0.125, 0.094)), 0), atol=1e-9)
    np.testing.assert_allclose(high.max(0)[:2], center + (0.125, 0.094), atol=1e-9)
    assert high.max(0)[2] < 0.001  # flat on the table
    assert covered(np.array([0.1049, 0.0739])) == 0  # the opening of 210 x 148 mm is free
    assert covered(np.array([0.1051, 0.0741])) == 4  # and not larger


def test_robot_stands_where_the_real_one_does(full):
    base = full.body("base")
    np.testing.assert_allclose(base.pos, (0.050, -0.029, 0.0024))
    np.testing.assert_allclose(base.quat, (np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)))


def test_top_camera_looks_straight_down_on_the_tape(full, posed):
    camera = posed.camera("top")
    np.testing.assert_allclose(camera.xpos, (0.275, 0.175, 0.70))
    right, up, back = camera.xmat.reshape(3, 3).T
    np.testing.assert_allclose(right, (0, -1, 0), atol=1e-12)
    np.testing.assert_allclose(up, (1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(back, (0, 0, 1), atol=1e-12)
    assert full.camera("top").fovy[0] == 50
    half_height = 0.70 * np.tan(np.radians(25))
    assert half_height > 0.125 and half_height * 4 / 3 > 0.094  # a 4:3 image shows the whole tape


def test_wrist_camera_rides_on_the_gripper(full):
    camera = full.camera("wrist")
    assert camera.bodyid[0] == full.body("gripper").id
    np.testing.assert_allclose(camera.pos, (0.0025, 0.0609, 0.0120))
    np.testing.assert_allclose(camera.quat, (0.68685, -0.17120, 0.16484, 0.68685), atol=1e-5)
    assert camera.fovy[0] == 75


def test_default_renderer_draws_no_marker_and_no_collision_box(full, posed):
    drawn = mujoco.MjvScene(full, maxgeom=500)
    mujoco.mjv_updateScene(
        full, posed, mujoco.MjvOption(), None, mujoco.MjvCamera(), mujoco.mjtCatBit.mjCAT_ALL.value, drawn
    )
    geoms = drawn.geoms[: drawn.ngeom]
    ids = {(geom.objtype, geom.objid) for geom in geoms}
    assert not any(kind == mujoco.mjtObj.mjOBJ_SITE for kind, _ in ids)
    assert not any(mujoco.MjvOption().sitegroup[group] for group in full.site_group)  # however opaque
    assert (mujoco.mjtObj.mjOBJ_GEOM, full.geom("paper_collision").id) not in ids
    assert (mujoco.mjtObj.mjOBJ_GEOM, full.geom("paper").id) in ids
    assert (mujoco.mjtObj.mjOBJ_GEOM, full.geom("tape_0").id) in ids


def test_missing_assets_folder_is_named(monkeypatch, tmp_path):
    missing = tmp_path / "nowhere"
    monkeypatch.setenv("SO101_ASSETS", str(missing))
    with pytest.raises(ConfigError, match=str(missing)):
        load_model()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sheet_friction", "wet"), ("control_hz", 0), ("control_hz", float("nan")), ("control_hz", float("inf")),
        ("substeps", -1), ("substeps", 2.5), ("solver_iterations", 0), ("line_search_iterations", 0),
        ("sheet_mass", -0.005), ("sheet_mass", float("inf")),
    ],
)  # fmt: skip
def test_bad_scene_values_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        SceneConfig(**{field: value})
