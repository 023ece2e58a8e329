"""The Madrona renderer, on fakes of its libraries, and on a GPU where there is one."""

import dataclasses
import importlib.machinery
import json
import os
import re
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import ConfigError, SceneConfig
from mjx_so101.params import PRESETS, Randomization
from mjx_so101.render import RenderConfig, madrona, madrona_engine, make_renderer, shading
from mjx_so101.render.poses import rotation_matrix
from mjx_so101.render.tessellate import drawn_geoms
from mjx_so101.task import State
from policies.chunked import ChunkedPolicy
from train.eyes import Eyes

# --- poses


def test_quaternion_gives_the_matrix_back():
    quats = np.random.default_rng(1).normal(size=(200, 4))
    quats[:4] = np.eye(4)
    quats = jnp.asarray(quats / np.linalg.norm(quats, axis=1, keepdims=True), jnp.float32)
    found = madrona.quaternion(rotation_matrix(quats))
    np.testing.assert_allclose(np.abs(np.sum(found * quats, -1)), 1, atol=1e-5)


def test_camera_turns_from_minus_z_forward_to_y_forward():
    quat = jnp.asarray([0.68685, -0.17120, 0.16484, 0.68685])
    before, after = rotation_matrix(quat), rotation_matrix(madrona.y_forward(quat))
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-4)  # right
    np.testing.assert_allclose(after[:, 1], -before[:, 2], atol=1e-4)  # forward
    np.testing.assert_allclose(after[:, 2], before[:, 1], atol=1e-4)  # up


# --- what is missing, and what is refused


class FakeMadrona:
    def __init__(self):
        self.started = None

    def init(self, *tensors):
        self.started = tensors


class FakeAdapter:
    """Records what it is given and returns pictures that tests set."""

    living = None

    def __init__(self, retriever, gpu, envs, lights, fovy, near, far, projection, width, height, symbols, rasterizer):
        FakeAdapter.living = self
        self.geometry, self.retriever, self.rasterizer = retriever.retrieve_rigid_meshes_static(), retriever, rasterizer
        self.lights, self.fovy, self.madrona, self.renders = lights, fovy, FakeMadrona(), []
        shape = (envs, len(fovy), height, width)
        self.rgb = np.zeros((*shape, 4), np.uint8)
        self.depth = np.full((*shape, 1), np.inf, np.float32)
        self.segment = np.full((*shape, 1), -1, np.int32)
        self.fill = None

    def render(self, cam_pos, cam_quat, options):
        if self.fill is not None:  # overwrites the last picture, as Madrona does
            self.rgb[:] = self.fill
        poses = (*self.retriever.retrieve_rigid_state_torch(), cam_pos, cam_quat)
        self.renders.append((*(np.array(pose) for pose in poses), options))
        return self.rgb, self.depth, self.segment, self.rgb


def fake_module(name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(attributes)
    return module


def fake_modules():
    cuda = types.SimpleNamespace(
        is_available=lambda: True, synchronize=lambda: None, get_device_name=lambda i: "NVIDIA H100 80GB HBM3",
        mem_get_info=lambda: (1 << 30, 80 << 30),
    )  # fmt: skip
    torch = fake_module(
        "torch", cuda=cuda, version=types.SimpleNamespace(cuda="12.8"), uint32=np.uint32,
        as_tensor=lambda array, device=None: np.asarray(array), from_dlpack=np.from_dlpack,
    )  # fmt: skip
    adapter = fake_module("gs_madrona.renderer_gs", MadronaBatchRendererAdapter=FakeAdapter)
    return {"torch": torch, "gs_madrona": fake_module("gs_madrona"), "gs_madrona.renderer_gs": adapter}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which Madrona could run, made of fakes."""
    modules = fake_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MADRONA_ROOT_CACHE_DIR", "MADRONA_MWGPU_KERNEL_CACHE", "MADRONA_BVH_KERNEL_CACHE",
                 "MADRONA_MWGPU_DEVICE_HEAP_SIZE"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that the end of the test removes what the renderer sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(madrona_engine.sys, "platform", "linux")
    monkeypatch.setattr(madrona_engine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(madrona_engine.ctypes.util, "find_library", lambda name: "libvulkan.so.1")
    monkeypatch.setattr(madrona, "gpu_user", lambda: None)
    monkeypatch.setattr(madrona.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(madrona, "_living", None)
    return modules


def build(num_envs=3, cameras=("wrist", "top"), width=16, height=8, **options):
    return madrona.MadronaRenderer(SceneConfig(), cameras, width, height, num_envs, **options)


def test_a_fit_machine_misses_nothing(machine):
    assert madrona.missing_requirement() is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p, m: p.setattr(madrona_engine.platform, "machine", lambda: "aarch64"), "Linux on x86-64"),
        (lambda p, m: p.setattr(madrona_engine.sys, "platform", "darwin"), "Linux on x86-64"),
        (lambda p, m: p.setitem(sys.modules, "gs_madrona", None), r'gs_madrona is missing.*\.\[madrona\]'),
        (lambda p, m: p.setitem(sys.modules, "torch", None), r'torch is missing.*\.\[madrona\]'),
        (lambda p, m: p.setattr(madrona_engine.ctypes.util, "find_library", lambda n: None), "install libvulkan1"),
        (lambda p, m: p.setattr(m["torch"].version, "cuda", None), "built without CUDA"),
        (lambda p, m: p.setattr(m["torch"].cuda, "is_available", lambda: False), "no NVIDIA GPU"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_fix(machine, monkeypatch, change, expected):
    change(monkeypatch, machine)
    with pytest.raises(ConfigError, match=expected):
        build()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cameras": ("top", "side")}, "'side'.*'top', 'wrist'"),
        ({"cameras": ("top", "top")}, "each once"),
        ({"cameras": ()}, "at least one"),
        ({"width": 60}, "60 x 8.*multiples of 8"),
        ({"height": 0}, "16 x 0"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_envs": 100_000, "width": 320, "height": 240}, "the largest num_envs that fits is 291"),
    ],
)
def test_bad_request_is_refused(machine, options, expected):
    with pytest.raises(ConfigError, match=expected):
        build(**options)


def test_building_after_jax_or_warp_is_refused(machine, monkeypatch):
    monkeypatch.setattr(madrona, "gpu_user", madrona_engine.gpu_user)
    jnp.zeros(1)
    with pytest.raises(ConfigError, match=r"JAX has been used already.*first thing"):
        build()
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    runtime = types.SimpleNamespace(context=types.SimpleNamespace(runtime=object()))
    monkeypatch.setitem(sys.modules, "warp", fake_module("warp", _src=runtime))
    with pytest.raises(ConfigError, match="Warp has been used already"):
        build()


def test_jax_on_the_cpu_is_refused(machine, monkeypatch):
    monkeypatch.setattr(madrona.jax, "default_backend", lambda: "cpu")
    with pytest.raises(ConfigError, match="JAX runs on the cpu"):
        build()
    assert madrona._living is None


def test_second_renderer_is_refused_until_the_first_is_closed(machine):
    first = build()
    with pytest.raises(
        ConfigError, match=r"alive already.*share it.*'quad' \(--renderer .*--base-renderer .*close\(\)"
    ):
        build()
    first.close()
    build().close()
    with pytest.raises(ConfigError, match="is closed"):
        first.frames(None)


def test_failure_of_madrona_says_what_to_do(machine, monkeypatch):
    def fail(self, *tensors):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(FakeMadrona, "init", fail)
    with pytest.raises(ConfigError, match=r"OUT_OF_MEMORY.*fewer than 3"):
        build()


def test_the_field_of_view_is_refused_by_name():
    """What Madrona takes only when it is built. The preset's other looks it can draw, with the file that it names."""
    madrona.check_supported(PRESETS["wild"])
    with pytest.raises(ConfigError) as caught:
        madrona.check_supported(PRESETS["nominal+looks"])
    text = str(caught.value)
    assert "changes top_camera_fovy, wrist_camera_fovy, which renderer 'madrona' takes only once" in text
    named = json.loads(re.search(r"{.*}", text)[0])
    assert named.pop("base") == "plain+looks"
    madrona.check_supported(Randomization("file", {**PRESETS["plain+looks"].ranges, **named}))
    with pytest.raises(ConfigError, match="changes wrist_camera_fovy, which"):
        madrona.check_supported(Randomization("wide", {"wrist_camera_fovy": (5.0, 5.0)}))


# --- one instance for all

RENDER = RenderConfig("madrona", ("top", "wrist"), 16, 8)


def test_the_first_call_builds_and_later_ones_share_it(machine, state):
    owner = make_renderer(RENDER, num_envs=2)
    assert isinstance(owner, madrona.MadronaRenderer)
    native = SceneConfig(visual=False).with_acceleration_sensors()  # what an environment's scene is like
    five = make_renderer(RENDER, native, num_envs=3)
    FakeAdapter.living.segment[:] = 0
    FakeAdapter.living.rgb[:, 0], FakeAdapter.living.rgb[:, 1] = 200, 90
    before = len(FakeAdapter.living.renders)
    assert five.render(state).shape == (3, 2, 8, 16, 3) and len(FakeAdapter.living.renders) == before + 2
    wrist = make_renderer(dataclasses.replace(RENDER, cameras=("wrist",)), num_envs=3).render(state)
    assert wrist.shape == (3, 1, 8, 16, 3) and (wrist == 90).all()
    five.close()
    assert wrist.shape == make_renderer(dataclasses.replace(RENDER, cameras=("wrist",)), num_envs=3).render(state).shape
    owner.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 32}, r"draws width 16, and pictures of width 32 are asked for"),
        ({"detail": "coarse", "height": 16}, r"draws detail 'fine', height 8, .* detail 'coarse', height 16 are"),
        ({"fixed": True}, "draws fixed_looks True, and pictures of fixed_looks False"),
        ({"shadows": False}, r"draws shadows True, and pictures of shadows False"),
        ({"cameras": ("top", "wrist")}, r"draws cameras \('top',\), .* cameras \('top', 'wrist'\)"),
    ],
)
def test_other_pictures_than_those_of_the_one_alive_are_refused_with_the_fix(machine, change, words):
    render = dataclasses.replace(RENDER, cameras=("top",))
    fixed = change.pop("fixed", False)
    owner = make_renderer(render, num_envs=2, randomization=PRESETS["plain"] if fixed else None)
    with pytest.raises(ConfigError, match=words + r".*a process can hold one.*use|'quad'"):
        make_renderer(dataclasses.replace(render, **change), num_envs=2)
    owner.close()


def test_a_model_is_shown_any_subset_of_environments(machine, make_env):
    """Slots of a refill, by an instance of another size; only poses go in."""
    owner = make_renderer(dataclasses.replace(RENDER, width=64, height=48), num_envs=2)
    env = make_env(9, "nominal")
    base = ChunkedPolicy(Source(), 4, "madrona", env, (64, 48))
    state = env.reset(0)
    before = len(FakeAdapter.living.renders)
    carry = base.refill(base.init(9), state)
    assert base.slots == 3 and not np.asarray(carry.used_up).any()
    assert len(FakeAdapter.living.renders) - before == 3 * 2  # three passes, two parts each
    images, joints, _ = base.look(state, jnp.array([7, 2, 5]))
    assert images.shape == (3, 2, 48, 64, 3)
    np.testing.assert_allclose(joints, env.observe(state).joint_pos[jnp.array([7, 2, 5])])
    owner.close()


def test_training_and_evaluation_see_through_the_same_one(machine, make_env):
    """Eyes of other numbers of environments; the owner has as many worlds as training."""
    owner = make_renderer(RENDER, num_envs=4, randomization=PRESETS["nominal"])
    before = len(FakeAdapter.living.renders)
    for num_envs, parts in ((4, 1), (9, 3)):
        seeing, state = Eyes(RENDER, make_env(num_envs, "nominal")), make_env(num_envs, "nominal").reset(0)
        assert not seeing.jittable
        seen = jax.jit(seeing.__call__)(state, state.key[0], True, seeing.drawn(state))
        assert {name: picture.shape for name, picture in seen.items()} == {
            "pixels/top": (num_envs, 8, 16, 3), "pixels/wrist": (num_envs, 8, 16, 3),
        }  # fmt: skip
        assert len(FakeAdapter.living.renders) == before + parts
        before += parts
    owner.close()


class Source:
    """A model that holds still."""

    name, cameras, horizon, noise_shape, note = "still", ("top", "wrist"), 4, (1,), ""
    training_range = state_range = None

    def chunk(self, images, state, noise):
        return jnp.repeat(state[:, None], 4, axis=1)


# --- from start to picture, with fakes


def test_madrona_gets_geometry_lights_and_caches(machine, tmp_path, scene_model):
    renderer = build()
    adapter, geoms = FakeAdapter.living, drawn_geoms(scene_model)
    assert not adapter.rasterizer and adapter.lights == 1 + 4
    np.testing.assert_allclose(adapter.fovy, [75, 50])  # in the order asked for
    geometry = adapter.geometry
    assert all(value.flags.c_contiguous for value in geometry.values())
    assert len(geometry["geom_types"]) == len(geoms) and (geometry["geom_types"] == 7).all()
    assert geometry["mesh_faces"].max() < np.diff(geometry["mesh_vertex_offsets"]).max()
    red = geometry["mat_rgba"][geometry["geom_mat_ids"][geoms.index(scene_model.geom("tape_0").id)]]
    np.testing.assert_allclose(red, [*shading.srgb_to_linear([0.8, 0.1, 0.1]), 1], rtol=1e-5)
    position, quat, cam, cam_quat, material, override, size, *light = adapter.madrona.started
    assert position.shape == (3, len(geoms), 3) and quat.shape == (3, len(geoms), 4)
    assert cam.shape == (3, 2, 3) and cam_quat.shape == (3, 2, 4)
    assert material.dtype == np.int32 and override.dtype == np.uint32 and (size == 1).all()
    assert light[2].dtype == np.uint32 and light[4].dtype == bool and light[4].sum() == 3
    np.testing.assert_allclose(np.linalg.norm(light[1], axis=-1), 1, atol=1e-6)
    assert len(adapter.renders) == 1
    folder = os.environ["MADRONA_ROOT_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "mjx_so101" / "madrona")) and "H100" in folder and os.path.isdir(folder)
    assert os.environ["MADRONA_BVH_KERNEL_CACHE"].startswith(folder)
    renderer.close()


def test_each_environment_gets_the_looks_of_its_episode(machine, make_env, scene_model, sampled_looks):
    renderer = build(num_envs=5, textures=False)
    adapter, geoms = FakeAdapter.living, drawn_geoms(scene_model)
    first = adapter.madrona.started
    state = make_env(5).reset(seed=0)
    renderer.render(state)
    assert adapter.madrona.started is first  # nominal looks, as it was built with
    varied = state.replace(params=jax.tree.map(jnp.asarray, sampled_looks))
    renderer.render(varied)
    *_, material, color, _, _, direction, light, _, cast, _, _, strength = adapter.madrona.started
    sheet = geoms.index(scene_model.geom("paper").id)
    assert (material[:, sheet] == -2).all()  # UseOverrideColor
    seen = shading.linear_to_srgb(channels(color[:, sheet]))
    np.testing.assert_allclose(seen, np.clip(0.95 + sampled_looks.sheet_color, 0, 1), atol=0.003)
    np.testing.assert_array_equal(cast[:, 0], sampled_looks.light_shadow > 0)
    wanted = shading.scene_lights(scene_model, True, sampled_looks)
    np.testing.assert_allclose(direction, wanted.direction)
    np.testing.assert_allclose(channels(light) * strength[..., None], wanted.color, atol=0.004 * wanted.color.max())

    painted = adapter.madrona.started
    renderer.render(varied)
    assert adapter.madrona.started is painted  # nothing new to tell
    renderer.render(state)
    for now, then in zip(adapter.madrona.started[4:], first[4:], strict=True):  # looks, after the poses
        np.testing.assert_array_equal(now, then)
    renderer.close()


def channels(packed):
    """[..., 3] in [0, 1] of 8 bits each of red, green and blue."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1) / 255


def test_fixed_looks_are_never_painted(machine, make_env, sampled_looks):
    renderer = build(num_envs=5, fixed_looks=True)
    first = FakeAdapter.living.madrona.started
    renderer.render(make_env(5).reset(seed=0).replace(params=jax.tree.map(jnp.asarray, sampled_looks)))
    assert FakeAdapter.living.madrona.started is first
    renderer.close()


@pytest.fixture
def state(make_env):
    return make_env(3).reset(seed=0)


def test_poses_follow_the_state_as_in_mujoco(machine, state, scene_model):
    renderer = build()
    renderer.render(state)
    position, quat, cam, cam_quat, _ = FakeAdapter.living.renders[-1]
    data, geoms = mujoco.MjData(scene_model), drawn_geoms(scene_model)
    for env in range(3):
        data.qpos[:] = state.physics.qpos[env]
        mujoco.mj_forward(scene_model, data)
        np.testing.assert_allclose(position[env], data.geom_xpos[geoms], atol=1e-5)
        matrices = rotation_matrix(jnp.asarray(quat[env])).reshape(-1, 9)
        np.testing.assert_allclose(matrices, data.geom_xmat[geoms], atol=1e-5)
        np.testing.assert_allclose(cam[env], data.cam_xpos[[1, 0]], atol=1e-5)
        forward = rotation_matrix(jnp.asarray(cam_quat[env]))[:, :, 1]
        np.testing.assert_allclose(forward, -data.cam_xmat[[1, 0]].reshape(-1, 3, 3)[:, :, 2], atol=1e-5)
    renderer.close()


def test_first_picture_shows_the_zero_position(machine, state, scene_model):
    renderer = build()
    qpos = jnp.zeros_like(state.physics.qpos) + scene_model.qpos0
    renderer.render(state.replace(physics=state.physics.replace(qpos=qpos.astype(jnp.float32))))
    first, second = FakeAdapter.living.renders
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(first[1] * second[1], -1)), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(first[3] * second[3], -1)), 1, atol=1e-5)
    renderer.close()


def test_pictures_become_frames(machine, state, scene_model):
    renderer = build(depth=True, segmentation=True)
    adapter, geoms = FakeAdapter.living, drawn_geoms(scene_model)
    paper = scene_model.geom("paper").id
    adapter.rgb[1, 0, 2, 3] = (200, 100, 50, 255)
    adapter.segment[1, 0, 2, 3], adapter.depth[1, 0, 2, 3] = geoms.index(paper), 0.5
    frames = renderer.frames(state)
    assert frames.rgb.shape == (3, 2, 8, 16, 3) and frames.rgb.dtype == jnp.uint8
    assert frames.rgb[1, 0, 2, 3].tolist() == [200, 100, 50]
    assert frames.segmentation[1, 0, 2, 3] == paper and (frames.segmentation[0] == -1).all()
    slope = np.tan(np.radians(75 / 2)) * np.array([2 * (3.5 / 16 * 2 - 1), 2.5 / 8 * 2 - 1])
    assert float(frames.depth[1, 0, 2, 3]) == pytest.approx(0.5 / np.sqrt(1 + slope @ slope), rel=1e-5)
    assert (frames.depth[0] == 0).all()
    np.testing.assert_array_equal(frames.rgb[0, 0, 0, 0], shading.background(scene_model))
    renderer.close()


def test_earlier_pictures_outlive_the_next_render(machine, state):
    renderer = build()
    FakeAdapter.living.segment[:] = 0
    pictures = []
    for FakeAdapter.living.fill in (90, 180, 40):
        pictures.append(renderer.render(state))
    renderer.close()
    for picture, fill in zip(pictures, (90, 180, 40), strict=True):
        assert (picture == fill).all()


def test_rows_of_a_larger_state(machine, make_env):
    state, renderer = make_env(4).reset(seed=0), build()
    with pytest.raises(ConfigError, match=r"4 environments to draw.*num_envs = 3"):
        renderer.render(state)
    renderer.render(state, jnp.array([3, 0, 2]))
    rows = FakeAdapter.living.renders[-1][0]
    renderer.render(state, jnp.array([0, 2, 3]))
    np.testing.assert_allclose(FakeAdapter.living.renders[-1][0], rows[[1, 2, 0]])
    renderer.close()


def test_tracing_is_refused(machine, state):
    renderer = build()

    def draw(state: State):
        return renderer.render(state)

    with pytest.raises(ConfigError, match="cannot be traced"):
        jax.jit(draw)(state)
    renderer.close()


def test_nothing_of_jax_runs_before_the_first_picture():
    """In a fresh process, with fakes: Madrona fails if JAX has touched the GPU before it has drawn."""
    script = """
        import sys
        sys.path[:0] = ["tests/sim", "."]
        import test_madrona as t
        from jax._src import xla_bridge
        sys.modules.update(t.fake_modules())
        t.madrona_engine.ctypes.util.find_library = lambda name: "libvulkan.so.1"
        draw = t.FakeAdapter.render
        def watched(self, *given):
            print("JAX at picture", len(self.renders), xla_bridge.backends_are_initialized())
            return draw(self, *given)
        t.FakeAdapter.render = watched
        try:
            t.build(num_envs=2)
        except t.ConfigError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert "JAX at picture 0 False" in done.stdout, done.stdout + done.stderr
    assert "JAX runs on the cpu" in done.stdout


@pytest.mark.gpu
def test_real_pictures_agree_with_warp():
    """In a fresh process, because Madrona has to come before JAX."""
    missing = madrona.missing_requirement()
    if missing:
        pytest.skip(missing)
    script = """
        import numpy as np
        from mjx_so101 import PRESETS, PaperReturnEnv, Randomization, SceneConfig
        from mjx_so101.render.madrona import MadronaRenderer
        from mjx_so101.render.parts import InParts
        options = dict(depth=True, segmentation=True, textures=False)
        size = (SceneConfig(), ("top", "wrist"), 128, 96, 4)
        mine = MadronaRenderer(*size, **options)
        from mjx_so101.render.warp import WarpRenderer
        theirs = WarpRenderer(*size, **options)
        state = PaperReturnEnv(num_envs=4, physics="warp").reset(seed=0)
        for _ in range(2):
            a, b = mine.frames(state), theirs.frames(state)
        same = np.mean(np.asarray(a.segmentation) == np.asarray(b.segmentation))
        hit = (np.asarray(a.segmentation) == np.asarray(b.segmentation)) & (np.asarray(a.segmentation) >= 0)
        depth = np.median(np.abs(np.asarray(a.depth) - np.asarray(b.depth))[hit])
        color = np.median(np.abs(np.asarray(a.rgb, int) - np.asarray(b.rgb, int))[hit])
        print("segmentation", same, "depth", depth, "colour", color)
        assert same > 0.97 and depth < 1e-3 and color < 12

        # an episode with other colours and lights, and back
        still = {"top_camera_fovy": (0, 0), "wrist_camera_fovy": (0, 0)}
        looks = Randomization("looks", {**PRESETS["nominal+looks"].ranges, **still})
        varied = PaperReturnEnv(num_envs=4, physics="warp", randomization=looks).reset(seed=0)
        c, d = mine.frames(varied), theirs.frames(varied)
        hit = (np.asarray(c.segmentation) == np.asarray(d.segmentation)) & (np.asarray(c.segmentation) >= 0)
        color = np.median(np.abs(np.asarray(c.rgb, int) - np.asarray(d.rgb, int))[hit])
        moved = np.median(np.abs(np.asarray(c.rgb, int) - np.asarray(a.rgb, int)))
        print("looks: colour", color, "against nominal looks", moved)
        assert color < 12 < moved
        assert (np.asarray(mine.render(state)) == np.asarray(a.rgb)).all()

        # parts of another size
        seven = PaperReturnEnv(num_envs=7, physics="warp").reset(seed=0)
        parts = np.asarray(InParts(mine, 7, ("wrist",)).render(seven))
        assert (parts[3:] == np.asarray(mine.render(seven, np.arange(3, 7)))[:, 1:]).all()
    """
    environ = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=900, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
