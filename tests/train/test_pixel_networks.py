"""The networks that see pictures, and what an actor with pictures is told beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101.render import RenderConfig
from policies.residual import (
    ACTOR_LAYOUT,
    Residual,
    ResidualConfig,
    actor_layout,
    actor_vector,
    layout_sizes,
)
from policies.vision import cells

KEY = jax.random.PRNGKey(7)
RENDER = RenderConfig(width=16, height=16, detail="coarse")
OF_THE_SHEET = {"goal_vector", "goal_yaw", "overshoot", "sheet_vel", "effector_on_sheet"}


@pytest.fixture(scope="module")
def residual():
    """A residual over a base policy with six features, as `jacobian` has them."""
    return Residual(ResidualConfig(hidden=(16, 16)), 6, RENDER)


@pytest.fixture(scope="module")
def vectors(residual):
    """Random input of five actors, pictures included."""
    rng = np.random.default_rng(0)
    return {
        "state": jnp.asarray(rng.normal(size=(5, residual.sizes["state"])), jnp.float32),
        "pixels/top": jnp.asarray(rng.integers(0, 256, (5, 16, 16, 3)), jnp.uint8),
    }


# -- the networks --------------------------------------------------------------------------------------------------
def test_fresh_mean_is_exactly_zero_whatever_is_seen(residual, vectors):
    mean = residual.distribution.mode(residual.logits(residual.init(KEY), vectors))
    assert mean.shape == (5, 6)
    assert not np.asarray(mean).any()


def test_an_actor_that_has_learned_uses_its_pictures(residual, vectors, shaken):
    learner = shaken(residual.init(KEY), 0.5)
    other = {**vectors, "pixels/top": vectors["pixels/top"][:, ::-1]}
    means = [residual.distribution.mode(residual.logits(learner, seen)) for seen in (vectors, other)]
    assert np.abs(means[0] - means[1]).max(1).min() > 1e-4


def test_gradients_reach_every_layer_of_the_convolutions(residual, vectors, shaken):
    learner = shaken(residual.init(KEY), 0.1)

    def loss(policy):
        mean = residual.distribution.mode(residual.logits(learner.replace(policy=policy), vectors))
        return jnp.sum((mean - 1) ** 2)

    gradient = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(learner.policy))
    names = [jax.tree_util.keystr(path) for path, _ in gradient]
    convolutions = [leaf for name, (_, leaf) in zip(names, gradient, strict=True) if "conv" in name.lower()]
    assert len(convolutions) >= 4, names  # kernel and bias of at least two
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in convolutions)


def test_a_kernel_over_cells_is_one_of_eight_pixels_every_four():
    """Against the convolution over pixels whose kernel is the same numbers."""
    rng = np.random.default_rng(0)
    pictures = jnp.asarray(rng.normal(size=(2, 24, 32, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, 8, 3, 5)), jnp.float32)

    def convolve(images, kernel, stride):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=layout)

    over_cells = jnp.stack([jnp.stack([kernel[y : y + 4, x : x + 4].reshape(48, 5) for x in (0, 4)]) for y in (0, 4)])
    np.testing.assert_allclose(convolve(cells(pictures), over_cells, 1), convolve(pictures, kernel, 4), atol=1e-3)


def test_sizes_that_do_not_divide_into_cells_are_filled_up_with_black():
    pictures = jnp.full((2, 5, 6, 7, 3), 9, jnp.uint8)
    made = cells(pictures)
    assert (made.shape, made.dtype) == ((2, 5, 2, 2, 48), jnp.uint8)
    assert int(made.astype(int).sum()) == int(pictures.astype(int).sum())
    assert not made[..., 1, :, 24:].any() and (made[..., 0, 0, :] == 9).all()  # rows 6 and 7 are missing


def test_a_gpu_computes_the_first_convolutions_in_half_the_bits(residual, vectors, shaken, monkeypatch):
    learner = shaken(residual.init(KEY), 0.05)
    exact = residual.logits(learner, vectors)[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rounded = residual.logits(learner, vectors)[0]
    assert rounded.dtype == jnp.float32
    difference = np.abs(exact - rounded).max()
    assert 0 < difference < 0.02 * np.abs(exact).max()
    gradient = jax.grad(lambda policy: residual.logits(learner.replace(policy=policy), vectors)[0].sum())
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient(learner.policy))} == {jnp.dtype("float32")}


def test_pictures_are_scaled_inside_the_network(residual, vectors, shaken):
    """uint8 goes in; a float32 copy of the same values gives the same answer."""
    learner = shaken(residual.init(KEY), 0.5)
    floats = {**vectors, "pixels/top": vectors["pixels/top"].astype(jnp.float32)}
    np.testing.assert_allclose(residual.logits(learner, vectors), residual.logits(learner, floats), atol=1e-6)


# -- what the actor is told ----------------------------------------------------------------------------------------
def test_layout_with_pixels_says_nothing_of_the_sheet():
    assert {name for name, _, _ in actor_layout("state")} == {name for name, _, _ in ACTOR_LAYOUT}
    assert {name for name, _, _ in ACTOR_LAYOUT} - {name for name, _, _ in actor_layout("pixels")} == OF_THE_SHEET


def test_layout_with_pixels_lists_its_pictures():
    with_pixels = Residual(ResidualConfig(), 6, RenderConfig(cameras=("top", "wrist"), width=10, height=20)).layout
    assert with_pixels["pixels"] == {"top": 600, "wrist": 600}
    assert with_pixels["privileged_state"] == layout_sizes(6)["privileged_state"]
    assert set(with_pixels["state"]) == set(layout_sizes(6)["state"]) - OF_THE_SHEET


def test_vector_with_pixels_does_not_change_with_the_sheet(make_env):
    env = make_env(4, "nominal")
    seen = jax.tree.map(lambda leaf: leaf[0], env.observe(env.reset(0)))
    moved = seen.replace(sheet=seen.sheet + jnp.array([0.05, -0.03, 0.4]), sheet_vel=seen.sheet_vel + 0.1)
    rest = (seen.target, jnp.zeros(0), jnp.zeros(6))

    def vector(seen, pixels):
        return np.asarray(actor_vector(env.task, seen, *rest, layout=actor_layout("pixels" if pixels else "state")))

    np.testing.assert_array_equal(vector(moved, True), vector(seen, True))
    assert (vector(moved, False) != vector(seen, False)).sum() >= 8
    assert vector(seen, True).shape == (Residual(ResidualConfig(), 0, RENDER).sizes["state"],)
