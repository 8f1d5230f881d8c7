"""Schedules at their ends, and what weight decay touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from training.optimizers import decays, learning_rate_schedule, make_optimizer


def section(**fields):
    return {
        "steps": 100, "learning_rate": 0.5, "schedule": "constant", "warmup_steps": 0, "final_share": 0.0,
        "optimizer": {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1}, "clip_norm": 0.0, **fields,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedule_begins_peaks_and_ends_where_it_should(name, warmup):
    schedule = learning_rate_schedule(section(schedule=name, warmup_steps=warmup, final_share=0.1))
    if warmup:
        np.testing.assert_allclose([schedule(0), schedule(warmup // 2)], [0.0, 0.25], atol=1e-6)
    np.testing.assert_allclose(schedule(warmup), 0.5, rtol=1e-6)
    np.testing.assert_allclose(schedule(100), 0.5 if name == "constant" else 0.05, rtol=1e-5)
    halfway = {"constant": 0.5, "cosine": 0.275, "linear": 0.275}[name]
    np.testing.assert_allclose(schedule(warmup + (100 - warmup) // 2), halfway, rtol=1e-5)


def test_unknown_schedule_and_optimizer_offer_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        learning_rate_schedule(section(schedule="cosin"))
    with pytest.raises(UserError, match="did you mean 'adam'"):
        make_optimizer(section(optimizer={"name": "adamv"}), {})


def decay_factors(axes, shapes, **fields):
    """What one update without a gradient multiplies each parameter by."""
    optimizer = make_optimizer(section(**fields), axes)
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {name: float((params[name] + updates[name]).mean()) for name in params}


AXES = {
    "kernel": ("embed", "mlp"), "stacked kernel": ("layers", "embed", "mlp"), "scale": ("norm",),
    "stacked scale": ("layers", "norm"), "convolution": (None, None, "channels_in", "channels_out"),
}  # fmt: skip
SHAPES = {
    "kernel": (4, 4), "stacked kernel": (3, 4, 4), "scale": (4,), "stacked scale": (3, 4), "convolution": (3, 3, 4, 4),
}  # fmt: skip


def test_matrices_decay_and_vectors_do_not_stacked_or_not():
    factors = decay_factors(AXES, SHAPES)
    decayed = pytest.approx(1 - 0.5 * 0.1)
    assert factors == {
        "kernel": decayed, "stacked kernel": decayed, "scale": 1.0, "stacked scale": 1.0, "convolution": decayed,
    }  # fmt: skip


def test_positions_and_offsets_of_norms_do_not_decay():
    assert decays(("vocab", "embed"))
    assert decays(("layers", "embed", "mlp"))
    for axes in (("slots", "embed"), ("norm", "norm"), ("layers", "norm", "norm"), ("layers", "norm"), ("norm",)):
        assert not decays(axes)


def test_adam_decays_nothing():
    factors = decay_factors(AXES, SHAPES, optimizer={"name": "adam", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1})
    assert set(factors.values()) == {1.0}


def test_axes_of_the_real_models_say_which_are_vectors(generator_learner, tokenizer_learner):
    # A vector's parameters have one axis beside `layers`; a mask by ndim would decay the stacked norms.
    blocks = generator_learner.description.shapes["transformer"]["blocks"]
    axes = generator_learner.description.axes["transformer"]["blocks"]
    pairs = list(zip(jax.tree.leaves(blocks), jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))))
    assert {names[0] for _, names in pairs} == {"layers"}
    assert any(leaf.ndim == 2 and len(names) == 2 for leaf, names in pairs)
    for learner in (generator_learner, tokenizer_learner):
        for leaf, names in zip(
            jax.tree.leaves(learner.description.shapes),
            jax.tree.leaves(learner.description.axes, is_leaf=lambda leaf: isinstance(leaf, tuple)),
        ):
            assert leaf.ndim == len(names)


def test_gradient_is_clipped_by_its_global_norm_before_the_optimizer():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    gradient = {"a": jnp.full(3, 30.0), "b": jnp.full(4, 40.0)}
    optimizer = make_optimizer(section(clip_norm=1.0), {"a": ("norm",), "b": ("norm",)})
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    norm = np.sqrt(3 * 30.0**2 + 4 * 40.0**2)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4,)]
    np.testing.assert_allclose(moments[0], 0.1 * 40 / norm, rtol=1e-5)  # Adam's first moment, (1 - b1) g
