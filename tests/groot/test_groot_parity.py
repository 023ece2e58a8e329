"""Our model against what NVIDIA's own code returned for the same weights and inputs."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

LIMIT = 5e-6


def test_prompt_ids_equal(golden, golden_policy):
    assert golden_policy.prompt.ids == golden.output["input_ids"].tolist()


def test_pixels_agree(golden):
    from policies.groot.processor import prepare_images

    pixels = prepare_images(golden.inputs[0], 224).numpy()
    assert pixels.shape == (3, 2, 3, 224, 224)
    assert np.abs(pixels.mean((3, 4)) - golden.output["pixels_mean"]).max() < LIMIT
    assert np.abs(pixels[..., :4, :4] - golden.output["pixels_corner"]).max() < LIMIT


def test_actions_agree(golden, golden_policy):
    assert np.array_equal(golden.inputs[1].numpy(), golden.output["state"])
    normalised = golden_policy.normalised_chunk(*golden.inputs).numpy()
    assert np.abs(normalised - golden.output["action_normalised"]).max() < LIMIT
    action = golden_policy.chunk(*golden.inputs).numpy()
    assert action.dtype == np.float32
    assert np.abs(action - golden.output["action"]).max() < LIMIT


def test_bfloat16_stays_close(golden):
    from policies.groot import Gr00tPolicy

    policy = Gr00tPolicy.from_checkpoint(golden.folder, dtype="bfloat16", instruction_form="evaluation", **golden.sizes)
    error = np.abs(policy.normalised_chunk(*golden.inputs).numpy() - golden.output["action_normalised"])
    assert error.mean() < 0.01
