"""The one step: accumulation, averages, compilation, checksums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.loop import check_batch, compile_step
from training.step import fingerprint, make_init, make_step, place_batch, state_shardings


@pytest.fixture
def section(config):
    return config.training.generator.to_dict()


@pytest.fixture
def batch(config):
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 16, (8, 64, 1)).astype(np.int32),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }


def first_moment(state):
    """Adam's first moment after one step from 0: (1 - b1) times the gradient."""
    return jax.tree.leaves(state["optimizer"]["generator"][1][0].mu)


def test_accumulated_gradient_is_the_gradient_of_the_whole_batch(generator_learner, section, batch):
    section |= {"clip_norm": 0.0, "ema_decay": 0.5}
    found = {}
    for parts in (1, 2):
        fields = {**section, "accumulate": parts}
        state = make_init(generator_learner, fields)(jax.random.key(0))
        # The head starts at 0, where most gradients are 0 as well: move away from there.
        state["params"] = jax.tree.map(
            lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), state["params"]
        )
        found[parts] = jax.jit(make_step(generator_learner, fields, 0))(state, batch)
    whole, split = first_moment(found[1][0]), first_moment(found[2][0])
    assert max(float(jnp.abs(leaf).max()) for leaf in whole) > 1e-3
    for a, b in zip(whole, split):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(a).max()) + 1e-9)
    for name in ("loss", "gradient_norm/generator"):
        np.testing.assert_allclose(found[1][1][name], found[2][1][name], rtol=1e-5)


def test_every_step_and_every_splitting_draws_its_own_random_numbers(config, section, batch):
    from generator.generator import describe_generator
    from generator.learner import GeneratorLearner
    from tokenizer.tokenizer import describe_tokenizer, token_spec

    class Keys(GeneratorLearner):
        def loss(self, params, statistics, batch, key, step):
            loss, (statistics, metrics) = super().loss(params, statistics, batch, key, step)
            return loss, (statistics, {**metrics, "draw": jax.random.uniform(key)})

    learner = Keys(describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=True))
    draws = []
    for parts in (1, 2):
        step = jax.jit(make_step(learner, {**section, "accumulate": parts}, 0))
        for number in (0, 1):
            state = make_init(learner, section)(jax.random.key(0)) | {"step": jnp.int32(number)}
            draws.append(float(step(state, batch)[1]["draw"]))
    assert len(set(draws)) == 4


def test_average_is_short_at_first_and_then_as_configured(generator_learner, section, batch):
    section |= {"ema_decay": 0.3}
    step = jax.jit(make_step(generator_learner, section, 0))
    state = make_init(generator_learner, section)(jax.random.key(0))
    expected = jax.tree.map(np.asarray, state["ema"])
    for number in range(5):
        state, _ = step(state, batch)
        decay = min(0.3, (1 + number) / (10 + number))  # 0.1, 0.18, 0.25, 0.3, 0.3
        expected = jax.tree.map(
            lambda a, b: decay * a + (1 - decay) * np.asarray(b),  # noqa: B023
            expected,
            state["params"]["generator"],
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, state["ema"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state["ema"], state["params"]["generator"])
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_step_compiles_once_and_nothing_is_transferred_in_it(request, config, mesh, batch, stage, tmp_path):
    learner = request.getfixturevalue(f"{stage}_learner")
    section = config.training[stage].to_dict()
    images = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
    batch = batch if stage == "generator" else {"image": images, "label": batch["label"]}
    init = make_init(learner, section)
    places = state_shardings(learner, section, jax.eval_shape(init, jax.random.key(0)), mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=places)(jax.random.key(0))
    step = compile_step(learner, {}, section, places, mesh, 0)
    losses = []
    for _ in range(50):
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, place_batch(batch, mesh))
        losses.append(metrics["loss"])
    assert step.jitted._cache_size() == 1
    assert int(state["step"]) == 50
    assert float(losses[-1]) < float(losses[0])
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
        step(state, batch)  # numpy arrays would be transferred silently: the guard is on


def test_step_donates_its_state(generator_learner, config, mesh, batch):
    section = config.training.generator.to_dict()
    init = make_init(generator_learner, section)
    places = state_shardings(generator_learner, section, jax.eval_shape(init, jax.random.key(0)), mesh)
    state = jax.jit(init, out_shardings=places)(jax.random.key(0))
    compile_step(generator_learner, {}, section, places, mesh, 0)(state, place_batch(batch, mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))


TREE = {
    "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "scalar": jnp.int32(7),
    "single": jnp.array([[0.0, -0.0, 1e-40], [1.0, jnp.inf, jnp.nan]], jnp.float32),
    "small": jnp.array([3, 5], jnp.uint8),
}


def flip(tree, name, element, bit):
    array = np.asarray(tree[name]).copy()
    bits = array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    bits[element] ^= bits.dtype.type(1 << bit)
    return {**tree, name: jnp.asarray(array)}


def test_fingerprint_changes_with_any_single_bit():
    checksum = jax.jit(fingerprint)
    before = np.asarray(checksum(TREE)).tolist()
    for name, leaf in TREE.items():
        for element in range(leaf.size):
            for bit in range(8 * leaf.dtype.itemsize):
                after = np.asarray(checksum(flip(TREE, name, element, bit))).tolist()
                assert after != before, f"bit {bit} of element {element} of {name}"


def test_fingerprint_changes_when_values_trade_places():
    checksum = jax.jit(fingerprint)
    x = jnp.arange(12.0).reshape(3, 4)
    trees = [{"a": x, "b": -x}, {"a": -x, "b": x}, {"a": x[::-1], "b": -x}, {"a": x[:, ::-1], "b": -x},
             {"a": x.at[0, 0].set(x[0, 1]).at[0, 1].set(x[0, 0]), "b": -x}]  # fmt: skip
    assert len({tuple(np.asarray(checksum(tree)).tolist()) for tree in trees}) == len(trees)


def test_batch_that_does_not_divide_is_refused(mesh):
    from models.errors import UserError

    with pytest.raises(UserError, match=r"batch_size 8 .* 3 part"):
        check_batch(8, 3, mesh)
    check_batch(8, 4, mesh)
