"""What makes inference fast must not change what it computes, and must say what fits."""

import types

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from mjx_so101.errors import ConfigError  # noqa: E402
from policies.groot import Gr00tPolicy, accelerate  # noqa: E402
from policies.groot import policy as policy_module  # noqa: E402
from policies.groot.accelerate import (  # noqa: E402
    Float8Linear,
    bytes_per_sample,
    largest_micro_batch,
    quantize,
    use_float8,
)
from policies.groot.layers import linear_of  # noqa: E402
from policies.groot.make_checkpoint import _config  # noqa: E402
from policies.groot.policy import pass_size  # noqa: E402

GIB = 2**30


# -- micro-batch -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("batch", "most", "size"),
    [(148, 128, 74), (148, 148, 148), (10, None, 10), (5, 8, 5), (300, 128, 100), (129, 128, 65), (1, 1, 1)],
)
def test_passes_are_few_and_equal(batch, most, size):
    assert pass_size(batch, most) == size


def test_memory_of_a_sample_is_that_measured_on_the_3b_model():
    from policies.groot.config import ModelConfig

    config = ModelConfig.from_json(_config("full"))
    two = bytes_per_sample(config, 2, 560, torch.bfloat16)
    assert 50e6 < two < 70e6  # 60 to 70 MB by the reference's measurement, 55 by ours
    assert bytes_per_sample(config, 2, 560, torch.float32) == 2 * two
    assert bytes_per_sample(config, 1, 300, torch.bfloat16) < two


def test_micro_batch_follows_free_memory():
    assert largest_micro_batch(80 * GIB, 55 * 2**20) == accelerate.BEST_MICRO_BATCH
    assert largest_micro_batch(1 * GIB, 55 * 2**20) == 14
    with pytest.raises(ConfigError, match=r"0.05 GiB of memory are free, one environment needs 0.07 GiB.*--jax-memory"):
        largest_micro_batch(int(0.05 * GIB), 55 * 2**20)


def test_out_of_memory_names_the_micro_batch_that_fits(tiny, batch, monkeypatch):
    policy = Gr00tPolicy.from_checkpoint(tiny)

    def full(*inputs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(policy, "_pass", full)
    monkeypatch.setattr(policy_module, "free_memory", lambda device: int(3.1 * 1.25 * policy.bytes_per_sample))
    with pytest.raises(ConfigError, match="does not hold a pass of 8 environments; 3 fit: --micro-batch 3"):
        policy.chunk(*batch(8))
    with pytest.raises(ConfigError, match="2 fit"):  # never more than half of what has just failed
        policy.chunk(*batch(4))


def test_micro_batch_of_a_large_batch_is_padded_and_equal(tiny, batch):
    inputs = batch(7)
    whole = Gr00tPolicy.from_checkpoint(tiny).chunk(*inputs)
    parts = Gr00tPolicy.from_checkpoint(tiny, micro_batch=3)
    sizes = []
    one_pass = parts._pass
    parts._pass = lambda *x: sizes.append(len(x[0])) or one_pass(*x)
    torch.testing.assert_close(parts.chunk(*inputs), whole, atol=1e-5, rtol=0)
    assert sizes == [3, 3, 3]


def test_the_whole_model_is_one_graph(tiny, batch):
    policy = Gr00tPolicy.from_checkpoint(tiny)
    inputs = batch(accelerate.SMALLEST_COMPILED)
    expected = policy.chunk(*inputs)
    policy._compiled_model = torch.compile(policy.model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(policy.chunk(*inputs), expected, atol=1e-5, rtol=0)


# -- fp8 ---------------------------------------------------------------------------------------------------------------
def test_quantize_uses_the_whole_range_of_each_row():
    rows = torch.randn(64, 128) * torch.logspace(-3, 3, 64)[:, None]
    quantized, scale = quantize(rows)
    assert quantized.dtype == torch.float8_e4m3fn and scale.shape == (64, 1)
    assert (quantized.float().abs().amax(1) == accelerate.LARGEST_FP8).all()
    error = (quantized.float() * scale - rows).abs().amax(1) / rows.abs().amax(1)
    assert error.max() < 2**-4  # three bits of mantissa
    assert torch.isfinite(quantize(torch.zeros(2, 16))[0].float()).all()


def test_float8_linear_is_near_the_layer_it_replaces(monkeypatch):
    layer = linear_of(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)), torch.ones(48))

    def scaled_mm(a, b, *, scale_a, scale_b, bias, out_dtype, use_fast_accum):
        return ((a.float() * scale_a) @ (b.float() * scale_b) + bias).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)  # only GPUs multiply fp8 rows
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    exact, fast = layer(x), Float8Linear(layer)(x)
    assert fast.shape == exact.shape
    assert 0 < (fast - exact).abs().mean() < 0.05 * exact.std()


def test_float8_replaces_the_large_layers_only(tiny, monkeypatch):
    policy = Gr00tPolicy.from_checkpoint(tiny, dtype="bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    use_float8(policy.model, torch.device("cuda"), torch.bfloat16)
    head = policy.model.action_head
    assert isinstance(policy.model.vision.layers[0].feed_forward.first, Float8Linear)
    assert isinstance(policy.model.language.layers[0].gate_up, Float8Linear)
    assert isinstance(head.layers[0].attention.key_value, Float8Linear)
    coders = [*head.state_encoder.modules(), *head.action_encoder.modules(), *head.action_decoder.modules()]
    assert not any(isinstance(module, Float8Linear) for module in coders)


def test_float8_is_refused_where_it_cannot_work(tiny, monkeypatch):
    with pytest.raises(ConfigError, match=r"fp8 needs a GPU of compute capability 8.9 or newer.*not cpu"):
        Gr00tPolicy.from_checkpoint(tiny, fp8=True, dtype="bfloat16")
    fake = types.SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="not cuda"):
        use_float8(fake, torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ConfigError, match="fp8 goes with dtype 'bfloat16', not 'float32'"):
        use_float8(fake, torch.device("cuda"), torch.float32)


# -- on a GPU ----------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("options", "atol"),
    [
        ({"dtype": "float32"}, 1e-3),  # TF32 is off by default; kernels add in another order
        ({"dtype": "bfloat16"}, 0.15),
        ({"dtype": "bfloat16", "compile": True}, 0.15),
        ({"dtype": "bfloat16", "fp8": True}, 0.5),
    ],
)
def test_gpu_agrees_with_the_cpu(tiny, batch, options, atol):
    inputs = batch(accelerate.SMALLEST_COMPILED)
    exact = Gr00tPolicy.from_checkpoint(tiny).normalised_chunk(*inputs)
    policy = Gr00tPolicy.from_checkpoint(tiny, device="cuda", **options)
    fast = policy.normalised_chunk(*(x.cuda() for x in inputs)).cpu()
    assert (fast - exact).abs().mean() < atol * exact.std()
