"""Checkpoints for the tests of GR00T: NVIDIA's golden one rebuilt from its recipe, and our own tiny one."""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

STATE = ([-0.540, -0.470, -1.677, -0.285, -2.849, 0.022], [0.580, 1.588, 1.117, 1.775, -0.235, 0.066])
ACTION = ([-0.565, -0.571, -1.929, -0.345, -2.860, -0.014], [0.618, 1.585, 1.132, 1.847, -0.226, 0.072])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # tiny models are several times slower with two


def metadata_document(cameras=("image_cam_0", "image_cam_1")):
    statistics = {
        kind: {"arm_0": {"min": low, "max": high}} for kind, (low, high) in {"state": STATE, "action": ACTION}.items()
    }
    return {"new_embodiment": {"statistics": statistics, "modalities": {"video": {name: {} for name in cameras}}}}


def golden_tensor(name, shape, seed):
    """The recipe in the golden data's README."""
    x = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1 and name.endswith("weight") and ("norm" in name or "vlln" in name):
        return 1 + np.float32(0.1) * x
    return np.float32(0.05 if len(shape) > 1 else 0.02) * x


@pytest.fixture(scope="session")
def golden(data_dir, tmp_path_factory):
    """Folder, sizes, inputs and NVIDIA's outputs of the golden 2-camera case. Backbone bfloat16, head float32."""
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    recipe = json.loads((data_dir / "groot" / "tiny_checkpoint.json").read_text())
    folder = tmp_path_factory.mktemp("golden")
    tensors = {}
    for name, shape in recipe["tensors"].items():
        rounded = torch.from_numpy(golden_tensor(name, shape, recipe["seed"])).bfloat16()
        tensors[name] = rounded.float() if name.startswith("action_head") else rounded
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(recipe["config"]))
    (folder / "experiment_cfg").mkdir()
    (folder / "experiment_cfg" / "metadata.json").write_text(json.dumps(metadata_document()))

    random = np.random.default_rng(recipe["seed"] + 100)
    images = random.integers(0, 256, (3, 2, 224, 224, 3), dtype=np.uint8)
    state = random.uniform(*STATE, (3, 6)).astype(np.float32)
    noise = random.standard_normal((3, 16, 32), dtype=np.float32)
    return SimpleNamespace(
        folder=folder,
        sizes={key: recipe[key] for key in ("vision_config", "text_config")},
        inputs=[torch.from_numpy(x) for x in (images, state, noise)],
        output=dict(np.load(data_dir / "groot" / "tiny_2cam.npz")),
    )


@pytest.fixture(scope="session")
def golden_policy(golden):
    from policies.groot import Gr00tPolicy

    return Gr00tPolicy.from_checkpoint(golden.folder, instruction_form="evaluation", **golden.sizes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a checkpoint that `make_checkpoint` wrote. Read it only."""
    pytest.importorskip("safetensors")
    from policies.groot.make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def copy_of_tiny(tiny, tmp_path):
    """A copy to spoil: small files are copied, the weights are linked (replace the link, never write through it)."""
    folder = tmp_path / "copy"
    (folder / "experiment_cfg").mkdir(parents=True)
    for name in ("config.json", "experiment_cfg/metadata.json"):
        (folder / name).write_text((tiny / name).read_text())
    (folder / "model.safetensors").symlink_to(tiny / "model.safetensors")
    return folder


@pytest.fixture
def batch():
    """Function that gives random images, state and noise as `Gr00tPolicy.chunk` takes them."""
    torch = pytest.importorskip("torch")

    def make(num_envs=2, cameras=2, height=48, width=64, seed=0):
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (num_envs, cameras, height, width, 3), dtype=torch.uint8, generator=random)
        state = torch.rand(num_envs, 6, generator=random)
        return images, state, torch.randn(num_envs, 16, 32, generator=random)

    return make
