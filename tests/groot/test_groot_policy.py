"""Chunks for a batch: shapes, micro-batches, wrong feeding refused, and the door to JAX."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from spoil import edit_json  # noqa: E402

from mjx_so101.errors import ConfigError  # noqa: E402
from policies.groot import Gr00tPolicy, JointMap  # noqa: E402
from policies.groot.make_checkpoint import make_checkpoint  # noqa: E402
from policies.model import ModelOptions  # noqa: E402


@pytest.fixture
def policy(tiny):
    """A policy that has not seen an input yet."""
    return Gr00tPolicy.from_checkpoint(tiny)


def test_chunk_shape_and_units(policy, batch):
    chunk = policy.chunk(*batch(3))
    assert chunk.shape == (3, 16, 6) and chunk.dtype == torch.float32 and torch.isfinite(chunk).all()
    raw = policy.normalised_chunk(*batch(3))[..., :6]
    low, high = (torch.tensor(x) for x in (policy.metadata.action.low, policy.metadata.action.high))
    assert torch.allclose(chunk, (raw + 1) / 2 * (high - low) + low, atol=1e-6)


def test_every_input_matters(policy, batch):
    images, state, noise = batch()
    chunk = policy.chunk(images, state, noise)
    others = [
        (images.flip(1), state, noise),
        (images.roll(1, 0), state, noise),
        (images, state + 0.1, noise),
        (images, state, -noise),
    ]
    for other in others:
        assert not torch.allclose(policy.chunk(*other), chunk, atol=1e-3)


def test_environments_do_not_mix(policy, batch):
    images, state, noise = batch(3)
    whole = policy.chunk(images, state, noise)
    for env in range(3):
        one = policy.chunk(images[env : env + 1], state[env : env + 1], noise[env : env + 1])
        assert torch.allclose(one[0], whole[env], atol=1e-4)


def test_micro_batch_with_padded_tail(tiny, policy, batch):
    inputs = batch(5)
    small = Gr00tPolicy.from_checkpoint(tiny, micro_batch=2).chunk(*inputs)
    assert small.shape == (5, 16, 6)
    assert torch.allclose(small, policy.chunk(*inputs), atol=1e-4)


def test_one_camera_and_split_statistics(tmp_path, tiny, policy, batch):
    single = Gr00tPolicy.from_checkpoint(make_checkpoint(tmp_path / "one", cameras=1))
    assert single.cameras == ("top",)
    assert single.chunk(*batch(cameras=1)).shape == (2, 16, 6)
    split = Gr00tPolicy.from_checkpoint(make_checkpoint(tmp_path / "split", layout="single_arm"))
    assert torch.equal(split.chunk(*batch()), policy.chunk(*batch()))


def test_single_arm_of_six_beside_the_gripper(tmp_path, batch):
    """Joints and targets are six; the model reads and gives seven, with the gripper in the sixth place too."""
    seven = Gr00tPolicy.from_checkpoint(make_checkpoint(tmp_path / "seven", layout="single_arm_6"))
    images, state, noise = batch()
    chunk = seven.chunk(images, state, noise)
    raw = seven.normalised_chunk(images, state, noise)
    low, high = (torch.tensor(x) for x in (seven.metadata.action.low, seven.metadata.action.high))
    assert low.shape == (6,) and chunk.shape == (2, 16, 6)
    expected = (raw[..., [0, 1, 2, 3, 4, 6]] + 1) / 2 * (high - low) + low
    assert torch.allclose(chunk, expected, atol=1e-6)
    other = state.clone()
    other[:, 5] += 0.02  # the gripper counts
    assert not torch.allclose(seven.chunk(images, other, noise), chunk, atol=1e-5)


def test_statistics_of_seven_need_room(copy_of_tiny):
    edit_json(copy_of_tiny / "config.json", lambda document: document["action_head_cfg"].update(action_dim=6))
    edit_json(copy_of_tiny / "experiment_cfg" / "metadata.json", _seven)
    with pytest.raises(ConfigError, match=r"action_dim is 6; the statistics in metadata\.json hold 7 numbers"):
        Gr00tPolicy.from_checkpoint(copy_of_tiny)


def _seven(document):
    for groups in document["new_embodiment"]["statistics"].values():
        (six,) = [groups.pop(name) for name in list(groups)]
        groups.update(single_arm=six, gripper={name: values[5:] for name, values in six.items()})


# -- as a base policy ------------------------------------------------------------------------------------------------
def test_the_source_has_the_calibration_it_was_given(tiny, batch):
    sign, offset = (1.0, 1.0, -1.0, 1.0, 1.0, -1.0), (0.1, 0.0, 0.2, 0.0, 0.0, 0.3)
    mapped = ModelOptions(checkpoint=str(tiny), joint_sign=sign, joint_offset=offset).load("groot")
    plain = ModelOptions(checkpoint=str(tiny)).load("groot")
    images, state, noise = (x.numpy() for x in batch())
    data = np.asarray(sign) * state + np.asarray(offset)
    expected = np.asarray(sign) * (plain.chunk(images, data.astype(np.float32), noise) - np.asarray(offset))
    np.testing.assert_allclose(mapped.chunk(images, state, noise), expected, atol=1e-5)
    for name in ("training_range", "state_range"):
        low, high = getattr(plain, name)
        ends = np.sort([np.asarray(sign) * (end - np.asarray(offset)) for end in (low, high)], axis=0)
        np.testing.assert_allclose(getattr(mapped, name), ends, atol=1e-6)


def test_ranges_are_those_of_the_file(tiny, policy):
    assert policy.state_range[0] == pytest.approx(np.array(policy.metadata.state.low), abs=1e-6)
    assert policy.action_range[1] == pytest.approx(np.array(policy.metadata.action.high), abs=1e-6)
    assert not np.allclose(policy.state_range[0], policy.action_range[0], atol=1e-3)


def test_joint_map_of_a_flipped_gripper(tiny, policy, batch):
    images, state, noise = batch()
    flipped = Gr00tPolicy.from_checkpoint(tiny, joint_map=JointMap(sign=(1, 1, 1, 1, 1, -1)))
    turn = torch.tensor([1.0, 1, 1, 1, 1, -1])
    assert torch.allclose(flipped.chunk(images, state * turn, noise) * turn, policy.chunk(images, state, noise))


def test_instruction_changes_the_actions(tiny, policy, batch):
    other = Gr00tPolicy.from_checkpoint(tiny, instruction="Perform the default behavior.")
    assert not torch.allclose(other.chunk(*batch()), policy.chunk(*batch()), atol=1e-4)


def test_fewer_denoising_steps(tiny, policy, batch):
    two = Gr00tPolicy.from_checkpoint(tiny, denoising_steps=2)
    assert two.model.action_head.steps == 2
    assert not torch.equal(two.chunk(*batch()), policy.chunk(*batch()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, s, n: (i[:, :1], s, n), "images hold 1 cameras.*2: top, wrist"),
        (lambda i, s, n: (i.repeat(1, 2, 1, 1, 1)[:, :3], s, n), "images hold 3 cameras"),
        (lambda i, s, n: (i.float(), s, n), "images is torch.float32; it must be torch.uint8"),
        (lambda i, s, n: (i.permute(0, 1, 4, 2, 3), s, n), r"\[batch, camera, height, width, 3\]"),
        (lambda i, s, n: (i[0], s, n), "images has shape"),
        (lambda i, s, n: (i, s.double(), n), "state is torch.float64"),
        (lambda i, s, n: (i, s[:, :5], n), r"state has shape \(2, 5\); \(2, 6\)"),
        (lambda i, s, n: (i, s[:1], n), r"state has shape \(1, 6\)"),
        (lambda i, s, n: (i, s, n[:, :8]), r"noise has shape \(2, 8, 32\); \(2, 16, 32\)"),
        (lambda i, s, n: (i, s, n.half()), "noise is torch.float16"),
        (lambda i, s, n: (i.numpy(), s, n), "images is a ndarray"),
        (lambda i, s, n: (i[:0], s[:0], n[:0]), "empty"),
        (lambda i, s, n: (i.to("meta"), s, n), "images is on meta"),
    ],
)
def test_wrong_inputs(golden_policy, batch, change, message):
    with pytest.raises(ConfigError, match=message):
        golden_policy.chunk(*change(*batch()))


def spoiled(images, state, noise, name, value):
    {"images": images, "state": state}[name][:] = value
    return images, state, noise


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("state", 0.0, "all zero"),
        ("state", 0.3, "0.3 in all joints"),
        ("state", torch.tensor([90.0, 0, 0, 0, 0, 0]), "radians"),
        ("state", float("nan"), "NaN"),
        ("images", 0, "'top' is of one colour"),
        ("images", torch.randint(0, 256, (1, 1, 48, 64, 3), dtype=torch.uint8), "show the same picture"),
    ],
)
def test_impossible_first_inputs(policy, batch, name, value, message):
    for _ in range(2):  # a refused call does not count as the first
        with pytest.raises(ConfigError, match=message):
            policy.chunk(*spoiled(*batch(), name, value))
    assert policy.chunk(*batch()).shape == (2, 16, 6)


def test_one_zero_state_among_many_is_found(policy, batch):
    images, state, noise = batch(4)
    state[2] = 0
    with pytest.raises(ConfigError, match="environment 2"):
        policy.chunk(images, state, noise)


def test_later_chunks_read_no_values(policy, batch, monkeypatch):
    policy.chunk(*batch())
    monkeypatch.setattr("policies.groot.policy.require_plausible", lambda *_: pytest.fail("looked into the values"))
    policy.chunk(*batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": torch.float64}, "dtype"),
        ({"device": "tpu9"}, "device"),
        ({"cameras": ["wrist", "top"]}, "order is"),
        ({"cameras": ["top"]}, "1 cameras are given"),
        ({"embodiment": "gr1"}, "new_embodiment"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"denoising_steps": 2.5}, "denoising_steps"),
        ({"instruction": "Push."}, "instruction_ids"),
        ({"vision_config": {"depth": 3}}, "unknown keys depth"),
        ({"tokenizer": "/tmp"}, "no instruction as text"),
    ],
)
def test_wrong_options(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        Gr00tPolicy.from_checkpoint(tiny, **options)


def test_missing_metadata(copy_of_tiny):
    from mjx_so101.errors import CheckpointError

    path = copy_of_tiny / "experiment_cfg" / "metadata.json"
    document = json.loads(path.read_text())
    del document["new_embodiment"]["statistics"]["action"]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"no new_embodiment\.statistics\.action"):
        Gr00tPolicy.from_checkpoint(copy_of_tiny)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"metadata\.json is missing"):
        Gr00tPolicy.from_checkpoint(copy_of_tiny)


def test_jax_arrays_cross_without_a_copy(policy, batch):
    import jax
    import jax.numpy as jnp

    from policies.groot.dlpack import chunk_of_arrays, to_jax, to_torch

    inputs = [jnp.asarray(x.numpy()) for x in batch()]
    for array in inputs:
        assert to_torch(array).data_ptr() == array.unsafe_buffer_pointer()
    tensor = torch.rand(4, 16, 6)
    pointer, values = tensor.data_ptr(), tensor.numpy().copy()
    array = to_jax(tensor)
    assert array.unsafe_buffer_pointer() == pointer
    del tensor
    assert np.array_equal(array, values)  # the JAX array keeps the memory alive
    chunk = chunk_of_arrays(policy, *inputs)
    assert isinstance(chunk, jax.Array) and np.array_equal(chunk, policy.chunk(*batch()).numpy())
    with pytest.raises(ConfigError, match="inside jit"):
        jax.jit(to_torch)(inputs[0])


class Pending:
    """Torch's mark behind kernels that have not run until `done`."""

    def __init__(self, done):
        self.done = done

    def query(self):
        return self.done


def test_arrays_are_kept_until_both_sides_have_read_them(policy, batch):
    """A caller that lets go of its arrays at once must not give torch's queued kernels other memory to read."""
    import gc
    import weakref

    import jax
    import jax.numpy as jnp

    from policies.groot import dlpack

    def ask(seed):
        inputs = [jnp.array(x.numpy()) for x in batch(seed=seed)]
        chunk = jax.block_until_ready(dlpack.chunk_of_arrays(policy, *inputs))
        return weakref.ref(inputs[0]), chunk

    images, chunk = ask(0)
    gc.collect()
    assert images() is not None, "the caller's images are gone while kernels may read them"
    assert len(dlpack._in_use) == 1
    kept = dlpack._in_use[0][2][1]
    assert chunk.unsafe_buffer_pointer() != kept.data_ptr()  # torch may reuse its memory, JAX reads its own
    dlpack._in_use[0] = (Pending(False), *dlpack._in_use[0][1:])
    ask(1)
    gc.collect()
    assert images() is not None and len(dlpack._in_use) == 2
    dlpack._in_use[0] = (Pending(True), *dlpack._in_use[0][1:])
    ask(2)
    gc.collect()
    assert images() is None and len(dlpack._in_use) == 1


BLOCKED = """
import sys
sys.modules["{package}"] = None
import mjx_so101, policies.base, policies.groot
assert "{other}" not in sys.modules
from mjx_so101.errors import ConfigError
try:
    from policies.groot import Gr00tPolicy
except ConfigError as error:
    assert ".[groot]" in str(error) and "{package}" in str(error), error
else:
    raise AssertionError("no error")
"""


@pytest.mark.parametrize(("package", "other"), [("torch", "safetensors"), ("safetensors", "torch")])
def test_without_the_extra(package, other):
    code = BLOCKED.format(package=package, other=other)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
