"""The scene: SO-101 arm, desk, tape rectangle, A5 sheet and cameras, compiled to one MuJoCo model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import mujoco
import numpy as np

from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.meshes import MIN_TRIANGLES, use_meshes
from mjx_so101.params import SHEET_TEXTURES, TABLE_TEXTURES
from mjx_so101.textures import SIZE, make_texture

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SHEET_JOINTS = ("paper_x", "paper_y", "paper_yaw")
ARM_BODIES = ("shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "moving_jaw_so101_v1")
FINGERTIPS = ("fixed_fingertip", "moving_fingertip")
CAMERAS = ("top", "wrist")
SHEET_FRICTIONS = ("dry", "viscous")
DETAILS = ("fine", "coarse")
COARSE = "coarse_"
"""Names of the coarse robot's boxes begin with it."""
_HIDDEN_GROUP = 3  # geoms that no camera sees


def _is_vector(value: object, length: int) -> bool:
    try:
        return len(value) == length and bool(np.isfinite(value).all())  # type: ignore[arg-type, call-overload]
    except TypeError:
        return False


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """A camera beside `top` and `wrist`."""

    name: str
    position: tuple[float, float, float]
    """In the frame of `body` (m)."""
    quaternion: tuple[float, float, float, float]
    """Orientation in the frame of `body`, w first; a camera looks along its -z axis, its y axis is up in the image."""
    body: str = "world"
    """Body that carries the camera."""
    fovy_deg: float = 50.0
    """Vertical field of view."""

    def __post_init__(self) -> None:
        taken = (*CAMERAS, "scene")  # 'scene' is the free view of render.mujoco
        if not self.name or self.name in taken:
            raise ConfigError(f"camera name {self.name!r} is empty or taken; choose another than {', '.join(taken)}.")
        require_choice(f"body of camera {self.name!r}", self.body, ("world", "base", *ARM_BODIES, "paper"))
        if not _is_vector(self.position, 3):
            raise ConfigError(f"position of camera {self.name!r} is {self.position}; give 3 finite lengths (m).")
        if not _is_vector(self.quaternion, 4) or not abs(np.linalg.norm(self.quaternion) - 1) < 1e-3:
            raise ConfigError(f"quaternion of camera {self.name!r} is {self.quaternion}; give 4 numbers of norm 1.")
        if not 0 < self.fovy_deg < 180:
            raise ConfigError(f"fovy_deg of camera {self.name!r} is {self.fovy_deg}; it must be in (0, 180).")


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Sizes, poses and solver settings of the scene. SI units; angles in radians unless the name says degrees."""

    sheet_friction: str = "dry"
    """How the sheet rubs on the table: 'dry' (Coulomb) or 'viscous'."""
    visual: bool = True
    """Draw links, tape and sheet. False keeps only what physics needs, which steps faster."""
    acceleration_sensors: bool = False
    """Add the sensors from which the native backend reads the solver's warm start."""
    control_hz: float = 30.0
    """Control steps per second."""
    substeps: int = 8
    """Physics steps per control step; the timestep is 1 / (control_hz * substeps)."""
    solver_iterations: int = 8
    """Newton iterations; fewer let a dry sheet glide after the finger has left it."""
    line_search_iterations: int = 10
    """Line-search steps of each Newton iteration."""
    base_position: tuple[float, float, float] = (0.050, -0.029, 0.0024)
    """Origin of the robot in the world."""
    base_yaw: float = np.pi / 4
    """Rotation of the robot about the world's z axis."""
    goal_center: tuple[float, float] = (0.275, 0.175)
    """Centre of the tape rectangle."""
    goal_inner: tuple[float, float] = (0.210, 0.148)
    """Inner opening of the tape rectangle along world x and y."""
    tape_width: float = 0.020
    sheet_size: tuple[float, float] = (0.148, 0.210)
    """Sheet's extent along its own x and y: A5, long side along its y axis."""
    sheet_mass: float = 0.005
    sheet_top: float = 0.001
    """Height of the sheet's upper surface over the table."""
    sheet_dry_friction: tuple[float, float] = (0.0147, 0.001)
    """Dry friction of the sheet on the table: force (N) per axis and torque (N m); 0.3 x 5 g x 9.81 m/s2."""
    sheet_dry_damping: tuple[float, float] = (0.02, 1e-4)
    """Damping beside dry friction: N s/m and N m s."""
    sheet_viscous_damping: tuple[float, float] = (0.5, 0.0025)
    """Damping of the viscous sheet: N s/m and N m s."""
    fingertip_table_friction: float = 0.5
    top_camera_height: float = 0.70
    top_camera_fovy_deg: float = 50.0
    wrist_camera_position: tuple[float, float, float] = (0.0025, 0.0609, 0.0120)
    wrist_camera_quaternion: tuple[float, float, float, float] = (0.68685, -0.17120, 0.16484, 0.68685)
    wrist_camera_fovy_deg: float = 75.0
    extra_cameras: tuple[CameraConfig, ...] = ()
    """Cameras beside `top` and `wrist`."""
    detail: str = "fine"
    """Shapes of the robot in pictures: 'fine' (44 primitives), or 'coarse' (15 boxes: batches are drawn in half the
    time)."""
    meshes: str = ""
    """Draw the robot with the official SO-101 meshes: a folder with the STL files, 'package' for an installed package
    that carries them, '' for primitives. Ignored where `visual` is False."""
    mesh_triangles: int = 1_000
    """Triangles of the robot's meshes, all together; larger files are decimated. 1,000 are drawn fast and look right in
    pictures up to about 320 x 240; 20,000 show every screw hole, by renderers 'warp', 'madrona' and 'mujoco'."""

    def __post_init__(self) -> None:
        require_choice("sheet_friction", self.sheet_friction, SHEET_FRICTIONS)
        require_choice("detail", self.detail, DETAILS)
        for name in ("control_hz", "substeps", "solver_iterations", "line_search_iterations", "sheet_mass"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be finite and greater than 0.")
        for name in ("substeps", "solver_iterations", "line_search_iterations"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a whole number.")

        if self.mesh_triangles < MIN_TRIANGLES:
            raise ConfigError(f"mesh_triangles is {self.mesh_triangles}; it must be at least {MIN_TRIANGLES}.")
        for camera in self.extra_cameras:
            if not isinstance(camera, CameraConfig):
                raise ConfigError(f"extra_cameras holds {camera!r}; give CameraConfig(name, position, quaternion).")
        names = self.camera_names
        if len(set(names)) != len(names):
            raise ConfigError(f"camera names {', '.join(names)} are not unique; rename the repeated one.")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """All cameras of the scene, in the order of the model."""
        return (*CAMERAS, *(camera.name for camera in self.extra_cameras))

    def with_acceleration_sensors(self) -> SceneConfig:
        """The same scene with `acceleration_sensors` on."""
        return dataclasses.replace(self, acceleration_sensors=True)

    @property
    def timestep(self) -> float:
        """Physics timestep in seconds."""
        return 1.0 / (self.control_hz * self.substeps)


def assets_dir() -> Path:
    """Folder of the MJCF files: SO101_ASSETS if set, else beside the installed package or in the checkout.

    Raises ConfigError if no folder with so101.xml is found.
    """
    here = Path(__file__).resolve().parent
    given = os.environ.get("SO101_ASSETS")
    places = [Path(given)] if given else [here / "assets", here.parent / "assets"]
    for place in places:
        if (place / "so101.xml").is_file() and (place / "desk.xml").is_file():
            return place
    looked = ", ".join(str(p) for p in places)
    raise ConfigError(
        f"assets folder not found: looked for so101.xml and desk.xml in {looked}. "
        "Reinstall the package, or set SO101_ASSETS to the folder that holds them."
    )


def load_model(config: SceneConfig | None = None) -> mujoco.MjModel:
    """Compile the scene.

    Bodies: base, shoulder, upper_arm, lower_arm, wrist, gripper, moving_jaw_so101_v1, paper. qpos and qvel are
    9 long: the six joints of `JOINTS` (rad), then the sheet's x, y (m) and yaw (rad) in the world. ctrl is 6 long,
    absolute joint targets in rad. Raises ConfigError if the assets folder is missing, or `meshes` cannot be used.
    """
    config = config or SceneConfig()
    folder = assets_dir()
    spec = mujoco.MjSpec.from_file(str(folder / "desk.xml"))
    base = spec.body("base")
    base.pos = config.base_position
    base.quat = [np.cos(config.base_yaw / 2), 0, 0, np.sin(config.base_yaw / 2)]
    _add_sheet(spec, config)
    _add_contacts(spec, config)
    _add_tape(spec, config)
    _add_cameras(spec, config)
    _set_options(spec, config)
    if config.acceleration_sensors:
        _add_acceleration_sensors(spec)
    if config.visual:
        _choose_detail(spec, config)
        _add_textures(spec)
        if config.meshes:
            use_meshes(spec, config.meshes, config.mesh_triangles)
    else:
        _drop_visuals(spec)
    return spec.compile()


def load_visual_model(config: SceneConfig | None = None) -> mujoco.MjModel:
    """The scene as renderers draw it: with everything that physics may leave out. Geom ids are those of this model."""
    return load_model(dataclasses.replace(config or SceneConfig(), visual=True, acceleration_sensors=False))


def _set_options(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    option = spec.option
    option.timestep = config.timestep
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    option.iterations = config.solver_iterations
    option.ls_iterations = config.line_search_iterations


def _add_sheet(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    """A planar body. Its collision box is 20 mm thick, top at the sheet's surface, so that a fingertip pressed
    into it never gets past its middle, where the contact normal would flip; it is drawn thin."""
    half_x, half_y = config.sheet_size[0] / 2, config.sheet_size[1] / 2
    inertia = config.sheet_mass / 12 * np.array([4 * half_y**2, 4 * half_x**2, 4 * (half_x**2 + half_y**2)])
    body = spec.worldbody.add_body(
        name="paper", mass=config.sheet_mass, inertia=inertia, ipos=[0, 0, config.sheet_top], explicitinertial=True
    )
    dry = config.sheet_friction == "dry"
    damping = config.sheet_dry_damping if dry else config.sheet_viscous_damping
    friction = config.sheet_dry_friction if dry else (0.0, 0.0)
    slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
    for name, kind, axis, i in (
        ("paper_x", slide, [1, 0, 0], 0),
        ("paper_y", slide, [0, 1, 0], 0),
        ("paper_yaw", hinge, [0, 0, 1], 1),
    ):
        joint = body.add_joint(name=name, type=kind, axis=axis)
        joint.damping[0] = damping[i]
        joint.frictionloss = friction[i]
    thick = 0.010
    box = mujoco.mjtGeom.mjGEOM_BOX
    body.add_geom(
        name="paper_collision", type=box, size=[half_x, half_y, thick], pos=[0, 0, config.sheet_top - thick],
        contype=0, conaffinity=0, group=_HIDDEN_GROUP, mass=0, rgba=[1, 1, 1, 0],
    )  # fmt: skip
    body.add_geom(
        name="paper", type=box, size=[half_x, half_y, 0.0002], pos=[0, 0, config.sheet_top - 0.0002],
        contype=0, conaffinity=0, group=2, mass=0, material="sheet",
    )  # fmt: skip


def _add_contacts(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    """Explicit pairs are the only contacts: two fingertips with the sheet and with the table."""
    surfaces = (("paper_collision", 1.0), ("table", config.fingertip_table_friction))
    for fingertip in FINGERTIPS:
        for surface, friction in surfaces:
            spec.add_pair(
                name=f"{fingertip}_{surface}", geomname1=fingertip, geomname2=surface, condim=3,
                friction=[friction, friction, 0.005, 0.0001, 0.0001],
                solref=[0.01, 1], solimp=[0.99, 0.999, 0.001, 0.5, 2],
            )  # fmt: skip


def _add_tape(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    half_x, half_y = config.goal_inner[0] / 2, config.goal_inner[1] / 2
    bar = config.tape_width / 2
    across, along = (half_x + 2 * bar, bar), (bar, half_y)
    for i, (offset, half) in enumerate(
        (((0, half_y + bar), across), ((0, -half_y - bar), across),
         ((half_x + bar, 0), along), ((-half_x - bar, 0), along))
    ):  # fmt: skip
        spec.worldbody.add_geom(
            name=f"tape_{i}", type=mujoco.mjtGeom.mjGEOM_BOX, size=[*half, 0.0001],
            pos=[config.goal_center[0] + offset[0], config.goal_center[1] + offset[1], 0.0001],
            contype=0, conaffinity=0, group=2, mass=0, material="tape",
        )  # fmt: skip


def _choose_detail(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    """Keep one set of the robot's shapes. The coarse one hides the fingertips, which physics needs, in its fingers;
    beside meshes it is itself hidden, and casts their shadows in renderer 'quad'."""
    coarse = config.detail == "coarse" and not config.meshes
    for geom in list(spec.geoms):
        if geom.name.startswith(COARSE):
            if config.meshes:
                geom.group = _HIDDEN_GROUP
            elif not coarse:
                spec.delete(geom)
        elif coarse and not geom.name:
            spec.delete(geom)
    if coarse:
        for name in FINGERTIPS:
            spec.geom(name).group = _HIDDEN_GROUP


def _add_textures(spec: mujoco.MjSpec) -> None:
    """All textures that looks may choose from; the first of each list is the default."""
    for name in (*TABLE_TEXTURES, *SHEET_TEXTURES):
        texture = spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=SIZE, height=SIZE, nchannel=3,
            colorspace=mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR,
        )  # fmt: skip
        texture.data = make_texture(name).tobytes()
    for material, names in (("table", TABLE_TEXTURES), ("sheet", SHEET_TEXTURES)):
        spec.material(material).textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = names[0]


def _add_cameras(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    """`top` looks straight down, image-right = world -y, image-up = world +x; `wrist` rides on the gripper."""
    half = np.sqrt(0.5)
    spec.worldbody.add_camera(
        name="top", pos=[*config.goal_center, config.top_camera_height], quat=[half, 0, 0, -half],
        fovy=config.top_camera_fovy_deg,
    )  # fmt: skip
    spec.body("gripper").add_camera(
        name="wrist", pos=config.wrist_camera_position, quat=config.wrist_camera_quaternion,
        fovy=config.wrist_camera_fovy_deg,
    )  # fmt: skip
    for camera in config.extra_cameras:
        body = spec.worldbody if camera.body == "world" else spec.body(camera.body)
        body.add_camera(name=camera.name, pos=camera.position, quat=camera.quaternion, fovy=camera.fovy_deg)


def _add_acceleration_sensors(spec: mujoco.MjSpec) -> None:
    def add(name: str, kind: mujoco.mjtSensor, body: str) -> None:
        spec.add_sensor(name=f"{name}_{body}", type=kind, objtype=mujoco.mjtObj.mjOBJ_XBODY, objname=body)

    for body in ARM_BODIES:
        add("axis", mujoco.mjtSensor.mjSENS_FRAMEZAXIS, body)
    for body in (*ARM_BODIES, "paper"):
        add("spin", mujoco.mjtSensor.mjSENS_FRAMEANGACC, body)
    add("slide", mujoco.mjtSensor.mjSENS_FRAMELINACC, "paper")


def _drop_visuals(spec: mujoco.MjSpec) -> None:
    keep = {*FINGERTIPS, "paper_collision", "table"}
    for geom in list(spec.geoms):
        if geom.name not in keep:
            spec.delete(geom)
