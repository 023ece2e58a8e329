"""The remote policy against servers that are right, slow, dead or lying: a chunk, or an error that says what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack")
zmq = pytest.importorskip("zmq")

from remote_servers import (  # noqa: E402
    DIE,
    HORIZON,
    JOINTS,
    LAYOUTS,
    Server,
    array,
    expected_chunk,
    modality,
    modality_config,
)

import policies.remote  # noqa: E402
from mjx_so101.errors import ConfigError, RemoteError  # noqa: E402
from policies.joints import JointMap  # noqa: E402
from policies.model import ModelOptions  # noqa: E402
from policies.remote import RemotePolicy  # noqa: E402

PACKAGE = Path(policies.remote.__file__).parent


@pytest.fixture
def serve():
    """Function that starts a `Server`; all are stopped at the end of the test."""
    servers = []

    def start(*args, **options) -> Server:
        servers.append(Server(*args, **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def inputs(batch=3, cameras=2, height=6, width=8):
    random = np.random.default_rng(batch)
    images = random.integers(0, 256, (batch, cameras, height, width, 3), dtype=np.uint8)
    return images, random.uniform(-1.5, 1.5, (batch, 6)).astype(np.float32)


def answer_with(**arrays):
    """Handler of get_action that answers with these arrays whatever was asked."""
    return lambda request: {f"action.{name}": array(value) for name, value in arrays.items()}


def chunk_of(server, batch=3, **options):
    with RemotePolicy(server.url, timeout_s=2, retries=0, **options) as policy:
        return policy.chunk(*inputs(batch))


# -- servers that are right ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_both_joint_layouts(serve, layout):
    server = serve(layout)
    images, state = inputs()
    with RemotePolicy(server.url, instruction="Return the paper.") as policy:
        assert (policy.name, policy.cameras, policy.horizon) == ("remote", ("top", "wrist"), HORIZON)
        assert policy.noise_shape == () and policy.training_range is None and policy.state_range is None
        assert policy.describe() == {
            "url": server.url, "cameras": ["top", "wrist"], "instruction": "Return the paper.", "horizon": HORIZON,
            "batch_size": 64, "state": {f"state.{name}": JOINTS[name] for name in LAYOUTS[layout]},
        }  # fmt: skip
        chunk = policy.chunk(images, state, noise=np.zeros(3))
    assert chunk.dtype == np.float32 and chunk.shape == (3, HORIZON, 6)
    np.testing.assert_allclose(chunk, expected_chunk(images, state), atol=1e-5)

    (data,) = server.data()
    assert set(data) == {
        "video.image_cam_0", "video.image_cam_1", "annotation.human.task_description",
        *(f"state.{name}" for name in LAYOUTS[layout]),
    }  # fmt: skip
    for place in (0, 1):
        video = data[f"video.image_cam_{place}"]
        assert video.dtype == np.uint8 and np.array_equal(video, images[:, place][:, None])
    sent = [data[f"state.{name}"] for name in sorted(LAYOUTS[layout], reverse=True)]
    assert all(value.dtype == np.float64 and value.shape[:2] == (3, 1) for value in sent)
    np.testing.assert_array_equal(np.concatenate(sent, -1)[:, 0], state)
    assert list(data["annotation.human.task_description"]) == ["Return the paper."] * 3


def test_single_arm_of_six_beside_the_gripper(serve):
    """The gripper is sent twice, and the targets of single_arm's sixth are not executed."""
    arm = np.random.default_rng(0).uniform(-1, 1, (3, HORIZON, 6)).astype(np.float32)
    gripper = np.full((3, HORIZON, 1), 0.03, np.float32)
    for layout in ("split", "gripper first"):
        server = serve(layout, get_action=answer_with(single_arm=arm, gripper=gripper))
        chunk = chunk_of(server, single_arm=6)
        np.testing.assert_array_equal(chunk, np.concatenate([arm[..., :5], gripper], -1))
        (data,) = server.data()
        assert data["state.single_arm"].shape == (3, 1, 6) and data["state.gripper"].shape == (3, 1, 1)
        np.testing.assert_array_equal(data["state.single_arm"][..., 5:], data["state.gripper"])
    server = serve("split", get_action=answer_with(single_arm=arm, gripper=gripper))
    with pytest.raises(RemoteError, match=r"action\.single_arm has shape \(3, 16, 6\).*Give --single-arm 6"):
        chunk_of(server)


def test_options_reach_the_policy(serve):
    server = serve("split")
    options = ModelOptions(url=server.url, joint_sign=(1, 1, 1, 1, 1, -1), joint_offset=(0.1,) * 6, single_arm=6)
    with options.load("remote") as policy:
        assert policy.joint_map == JointMap((1, 1, 1, 1, 1, -1), (0.1,) * 6)
        assert policy.describe()["state"] == {"state.single_arm": 6, "state.gripper": 1}
    for wrong in (4, 7):
        with pytest.raises(ConfigError, match=f"single_arm is {wrong}; it must be 5 or 6"):
            ModelOptions(single_arm=wrong)
        with pytest.raises(ConfigError, match=f"single_arm is {wrong}"):
            RemotePolicy(server.url, single_arm=wrong)


def test_batch_is_split_in_order(serve):
    server = serve("split")
    images, state = inputs(7)
    with RemotePolicy(server.url, batch_size=3) as policy:
        chunk = policy.chunk(images, state)
    np.testing.assert_allclose(chunk, expected_chunk(images, state), atol=1e-5)
    assert [len(data["state.gripper"]) for data in server.data()] == [3, 3, 1]
    assert {request["endpoint"] for request in server.requests} == {"ping", "get_modality_config", "get_action"}


def test_joint_map_applies_both_ways(serve):
    server = serve()
    images, state = inputs()
    joint_map = JointMap(sign=(1, 1, -1, 1, 1, -1), offset=(0.1, 0, 0, 0, 0, 0.2))
    with RemotePolicy(server.url, joint_map=joint_map) as policy:
        chunk = policy.chunk(images, state)
    data = np.array(joint_map.sign) * state + np.array(joint_map.offset)
    np.testing.assert_allclose(server.data()[0]["state.arm_0"][:, 0], data, atol=1e-6)
    expected = np.array(joint_map.sign) * (expected_chunk(images, data) - np.array(joint_map.offset))
    np.testing.assert_allclose(chunk, expected, atol=1e-5)


def test_jax_arrays(serve):
    import jax.numpy as jnp

    images, state = inputs()
    with RemotePolicy(serve().url) as policy:
        chunk = policy.chunk(jnp.asarray(images), jnp.asarray(state))
    np.testing.assert_allclose(chunk, expected_chunk(images, state), atol=1e-5)


def test_server_for_one_observation(serve):
    one = np.linspace(-1, 1, HORIZON * 6).reshape(HORIZON, 6)
    squeezed = answer_with(single_arm=one[:, :5], gripper=one[:, 5])  # np.squeeze leaves [16] of the gripper
    server = serve("split", get_action=squeezed)
    np.testing.assert_allclose(chunk_of(server, 2, batch_size=1), np.stack([one, one]), atol=1e-6)
    with pytest.raises(RemoteError, match="give batch_size=1"):
        chunk_of(serve(get_action=answer_with(arm_0=one)), 2)


def test_cameras_are_matched_by_name(serve):
    server = serve(config=modality_config(cameras=("wrist_view", "overhead")))
    with RemotePolicy(server.url) as policy:
        assert policy.cameras == ("wrist", "top")
    with pytest.raises(ConfigError, match="camera 0 of the checkpoint is wrist_view"):
        RemotePolicy(server.url, cameras=("top", "wrist"))
    with RemotePolicy(server.url, cameras={"wrist_view": "side", "overhead": "top"}) as policy:
        assert policy.cameras == ("side", "top")


def test_plain_json_object_as_modality_config(serve):
    config = {
        name: {"delta_indices": list(range(HORIZON if name == "action" else 1)), "modality_keys": [f"{name}.{key}"]}
        for name, key in (("video", "image_cam_0"), ("state", "arm_0"), ("action", "arm_0"))
    }
    server = serve(config=config)  # no language: the server fills in its own text
    with RemotePolicy(server.url) as policy:
        assert policy.chunk(*inputs(2, cameras=1)).shape == (2, HORIZON, 6)
    assert set(server.data()[0]) == {"video.image_cam_0", "state.arm_0"}
    with pytest.raises(ConfigError, match="takes no text"):
        RemotePolicy(server.url, instruction="Return the paper.")


# -- servers that are slow or dead ---------------------------------------------------------------------------------
def test_unreachable():
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    with pytest.raises(RemoteError, match=rf"127.0.0.1:{port} gave no answer to ping within 0.1 s, 2 times.*runs"):
        RemotePolicy(f"tcp://127.0.0.1:{port}", timeout_s=0.1, retries=1)


def test_server_that_hangs(serve):
    server = serve(get_action=lambda request: None)
    with RemotePolicy(server.url, timeout_s=1, retries=2) as policy:
        with pytest.raises(RemoteError, match=r"no answer to get_action within 1 s, 3 times.*--timeout-s"):
            policy.chunk(*inputs())
        assert len(server.data()) == 3
        server.spoilt.clear()
        assert policy.chunk(*inputs()).shape == (3, HORIZON, 6)  # the next call finds it awake


@pytest.mark.parametrize("death", [DIE, None])
def test_answer_lost_midway(serve, death):
    server = serve()

    def dies_once(request):
        del server.spoilt["get_action"]
        return death

    images, state = inputs(4)
    with RemotePolicy(server.url, timeout_s=0.5, retries=5, batch_size=2) as policy:
        server.spoilt["get_action"] = dies_once
        np.testing.assert_allclose(policy.chunk(images, state), expected_chunk(images, state), atol=1e-5)


def test_late_answer_is_not_taken_for_the_next(serve):
    images, state = inputs(2)
    with RemotePolicy(serve_slowly_once(serve).url, timeout_s=0.2, retries=0, batch_size=1) as policy:
        with pytest.raises(RemoteError, match="no answer"):
            policy.chunk(images[:1], state[:1])
        policy._connection.timeout_s = 2
        np.testing.assert_allclose(policy.chunk(images[1:], state[1:]), expected_chunk(images, state)[1:], atol=1e-5)


def serve_slowly_once(serve):
    from remote_servers import act

    server = serve()

    def slow(request):
        del server.spoilt["get_action"]
        server.stopping.wait(0.4)
        return act(request["data"], "one")

    server.spoilt["get_action"] = slow
    return server


def test_closed_policy(serve):
    policy = RemotePolicy(serve().url)
    policy.close()
    policy.close()
    with pytest.raises(RemoteError, match="has been closed"):
        policy.chunk(*inputs())


# -- servers that lie ----------------------------------------------------------------------------------------------
GOOD = np.zeros((3, HORIZON, 6), np.float32)
NAN = np.where(np.arange(6) == 4, np.nan, GOOD)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (answer_with(arm_0=GOOD[:2]), r"shape \(2, 16, 6\); \(3, 16, 6\)"),
        (answer_with(arm_0=GOOD[:, :8]), r"shape \(3, 8, 6\)"),
        (answer_with(arm_0=GOOD[..., :5]), r"shape \(3, 16, 5\)"),
        (answer_with(arm_0=NAN), "action.arm_0 holds NaN or infinity"),
        (answer_with(arm_0=GOOD.astype(np.float64) + 1e300), "not radians"),
        (answer_with(arm_0=GOOD + 93), "reaches 93, not radians"),
        (answer_with(arm_0=GOOD.astype(str)), "dtype <U32; numbers"),
        (answer_with(arm_0=GOOD.astype(complex)), "dtype complex128; numbers"),
        (answer_with(arm_0=GOOD > 0), "dtype bool; numbers"),
        (answer_with(arm_1=GOOD), "action.arm_0 is missing; expected action.arm_0, got action.arm_1"),
        (lambda request: {}, "action.arm_0 is missing.*got nothing"),
        (lambda request: {"action.arm_0": [[0.0] * 6] * 16}, "is a list; an array"),
        (lambda request: [1, 2], "is a list; a map"),
        (lambda request: {"error": "Video video.top has invalid shape (6, 8)"}, "error: Video video.top has invalid"),
        (lambda request: b"\x80\x04}\x94.", "is a pickle, .*load the checkpoint locally with --base groot"),
        (lambda request: b"PK\x03\x04 archive/data.pkl", "torch.save, .*--base groot --checkpoint DIR"),
        (lambda request: b"ERROR", "not msgpack: b'ERROR'"),
        (lambda request: b"", "not msgpack"),
        (lambda request: msgpack.packb({"a": "b" * 99})[:-1], "not msgpack"),
        (lambda request: {"action.arm_0": {"__ndarray_class__": True, "as_npy": "text"}}, "str, not bytes"),
        (lambda request: {"action.arm_0": {"__ndarray_class__": True, "as_npy": b"text"}}, "not a readable npy"),
        (lambda request: {"action.arm_0": {"__ndarray_class__": True}}, "NoneType, not bytes"),
    ],
)
def test_reply_is_refused(serve, handler, message):
    server = serve(get_action=handler)
    with pytest.raises(RemoteError, match=message) as caught:
        chunk_of(server)
    assert server.url in str(caught.value)


def test_array_that_claims_more_than_it_holds(serve):
    npy = array(np.zeros((3, 16, 600)))["as_npy"]
    huge = npy.replace(b"(3, 16, 600), ", b"(99999999999,)")[:200]
    with pytest.raises(RemoteError, match="header states 799999999992 bytes of data, 72 follow"):
        chunk_of(serve(get_action=lambda request: {"action.arm_0": {"__ndarray_class__": True, "as_npy": huge}}))


def test_pickled_array_is_not_read(serve):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\x80\x04N."
    with pytest.raises(RemoteError, match="not a readable npy file: Object arrays cannot be loaded"):
        chunk_of(serve(get_action=lambda request: {"action.arm_0": {"__ndarray_class__": True, "as_npy": npy}}))


def test_oversize_reply(serve):
    server = serve(get_action=lambda request: bytes(2**24 + 1))
    with RemotePolicy(server.url, timeout_s=0.5, retries=0) as policy, pytest.raises(RemoteError, match="above 16 MiB"):
        policy.chunk(*inputs())


def test_pickle_server_is_recognised_at_once(serve):
    with pytest.raises(RemoteError, match="to ping is refused: this is a pickle"):
        RemotePolicy(serve(ping=lambda request: b"\x80\x04}\x94.").url)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": modality(["state.left_arm", "state.right_arm"])}, "state.left_arm, state.right_arm; one key"),
        ({"action": modality(["action.single_arm", "action.hand"], 16)}, "action.single_arm, action.hand; one key"),
        ({"video": modality(["front", "wrist"])}, "key 'front' does not begin with 'video.'"),
        ({"video": modality(["video.a", "video.a"])}, "twice"),
        ({"video": modality(["video.a"], 2)}, r"video.delta_indices is \[0, 1\]; only \[0\]"),
        ({"video": modality([])}, r"video.modality_keys is \[\]"),
        ({"state": 5}, "config has no state; it has video, state"),
        ({"state": {"__ModalityConfig_class__": True, "as_json": "{"}}, "not JSON"),
        ({"action": modality(["action.arm_0"], 0)}, r"action.delta_indices is \[\]"),
        ({"language": modality(["annotation.a", "annotation.b"])}, "language has 2 keys"),
    ],
)
def test_modality_config_is_refused(serve, change, message):
    server = serve(config=modality_config() | change)
    with pytest.raises(RemoteError, match=message) as caught:
        RemotePolicy(server.url)
    assert server.url in str(caught.value)


def test_other_horizon(serve):
    server = serve(config=modality_config(horizon=8))
    with pytest.raises(ConfigError, match=r"horizon is 16; chunks of .* have 8 targets"):
        RemotePolicy(server.url, horizon=16)
    for horizon in (8, None):
        with RemotePolicy(server.url, horizon=horizon) as policy:
            assert policy.horizon == 8


# -- what the user gives -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "url", ["localhost:5555", "tcp://localhost", "tcp://:5555", "tcp://*:5555", "http://a:80", "tcp://a:99999", 5555]
)
def test_bad_url(url):
    with pytest.raises(ConfigError, match="give tcp://HOST:PORT"):
        RemotePolicy(url)


@pytest.mark.parametrize(
    "option",
    [
        {"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": "1"}, {"retries": -1}, {"retries": True},
        {"batch_size": 0}, {"batch_size": 2.0}, {"horizon": 0}, {"instruction": ""}, {"instruction": None},
    ],
)  # fmt: skip
def test_bad_option(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; give"):
        RemotePolicy("tcp://localhost:5555", **option)


def test_bad_inputs_are_not_sent(serve):
    server = serve()
    images, state = inputs()
    with RemotePolicy(server.url) as policy:
        for wrong, message in (
            ((images.astype(np.float32), state), "images is float32"),
            ((images, state.astype(np.float64)), "state is float64"),
            ((images[:, :1], state), "hold 1 cameras; .* top, wrist"),
            ((images[0], state), "images has shape"),
            ((images, state[:2]), r"state has shape \(2, 6\); \(3, 6\)"),
            ((images[:0], state[:0]), "nothing in it"),
            ((images, state * np.nan), "state holds NaN"),
            ((images, state * 57), "radians"),
        ):
            with pytest.raises(ConfigError, match=message):
                policy.chunk(*wrong)
    assert not server.data()


def test_source_has_no_pickle():
    sources = "\n".join(path.read_text() for path in PACKAGE.glob("*.py"))
    for word in ("import pickle", "from pickle", "pickle.load", "allow_pickle=True", "eval(", "import torch"):
        assert word not in sources
    assert "np.load(" in sources and sources.count("np.load(") == sources.count("allow_pickle=False)") - 1  # + np.save


@pytest.mark.parametrize(("module", "package"), [("zmq", "pyzmq"), ("msgpack", "msgpack")])
def test_missing_package_and_no_torch(module, package):
    code = f"""
import sys
import policies.remote, policies.cameras
sys.modules[{module!r}] = None
try:
    policies.remote.RemotePolicy
except Exception as error:
    print(type(error).__name__, error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent.parent)
    assert f"ConfigError A remote policy needs {package}: pip install -e '.[remote]'" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")
