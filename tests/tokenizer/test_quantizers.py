import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from models.modules import describe
from tokenizer.quantizers import QUANTIZERS
from tokenizer.quantizers.vector import entropy_loss

CODES, WIDTH = 11, 4


def make(*, seed=0, spread=1.0, **options):
    """A quantizer whose rows are of any length, and its parameters."""
    description = describe(lambda rngs: QUANTIZERS["vector"](codes=CODES, width=WIDTH, **options, rngs=rngs))
    rng = np.random.default_rng(seed)
    return description, {"codebook": jnp.asarray(rng.normal(size=(CODES, WIDTH)) * spread, jnp.float32)}


def latents(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def compared(x, l2_norm):
    return unit(x) if l2_norm else np.asarray(x, np.float64)


def brute_force(codebook, z, l2_norm):
    rows, points = compared(codebook, l2_norm), compared(z, l2_norm)
    return np.linalg.norm(points[..., None, :] - rows, axis=-1).argmin(-1)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_ids_are_of_the_nearest_rows(l2_norm):
    description, params = make(l2_norm=l2_norm)
    z = latents(3, 40)
    z_q, ids, _ = description.merge(params).quantize(z)
    assert (ids.shape, ids.dtype) == ((3, 40, 1), jnp.int32)
    expected = brute_force(params["codebook"], z, l2_norm)
    np.testing.assert_array_equal(ids[..., 0], expected)
    np.testing.assert_allclose(z_q, compared(params["codebook"], l2_norm)[expected], atol=1e-6)
    assert (brute_force(params["codebook"], z, not l2_norm) != expected).any()


@pytest.mark.parametrize("l2_norm", [True, False])
def test_codes_are_quantized_to_themselves(l2_norm):
    description, params = make(l2_norm=l2_norm)
    quantizer, ids = description.merge(params), jnp.arange(CODES)[:, None]
    codes = quantizer.lookup(ids)
    found, again, losses = quantizer.quantize(codes)
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_allclose(found, codes, atol=1e-6)
    assert sum(losses.values()) < 1e-10


def test_unit_vectors_ignore_lengths():
    description, params = make(l2_norm=True)
    z = latents(50)
    scaled = {"codebook": params["codebook"] * jnp.linspace(0.1, 10, CODES)[:, None]}
    for quantizer, points in [(description.merge(scaled), z), (description.merge(params), z * 17)]:
        np.testing.assert_array_equal(quantizer.quantize(points)[1], description.merge(params).quantize(z)[1])
    np.testing.assert_allclose(np.linalg.norm(description.merge(params).quantize(z)[0], axis=-1), 1, atol=1e-5)


def test_gradients_pass_straight_through():
    z, weight = latents(20), np.random.default_rng(3).normal(size=(20, WIDTH))
    for l2_norm in (True, False):
        description, params = make(l2_norm=l2_norm)
        through = lambda params, z, d=description: (d.merge(params).quantize(z)[0] * weight).sum()  # noqa: E731
        of_params, of_z = jax.grad(through, (0, 1))(params, z)
        np.testing.assert_array_equal(of_params["codebook"], np.zeros((CODES, WIDTH)))
        expected = weight
        if l2_norm:  # the gradient of z / ||z||
            n = unit(z)
            expected = (weight - n * (n * weight).sum(-1, keepdims=True)) / np.linalg.norm(z, axis=-1, keepdims=True)
        np.testing.assert_allclose(of_z, expected, atol=1e-5)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_each_loss_has_its_value_and_moves_its_own_side(l2_norm):
    description, params = make(l2_norm=l2_norm, commitment=0.4)
    z = latents(7)
    ids = brute_force(params["codebook"], z, l2_norm)
    error = ((compared(params["codebook"], l2_norm)[ids] - compared(z, l2_norm)) ** 2).mean()
    losses = description.merge(params).quantize(z)[2]
    np.testing.assert_allclose(losses["codebook_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(losses["commitment_loss"], 0.4 * error, rtol=1e-5)
    gradient = lambda name: jax.grad(lambda p, z: description.merge(p).quantize(z)[2][name], (0, 1))(params, z)  # noqa: E731
    of_codebook, of_z = gradient("codebook_loss")
    moved = np.abs(of_codebook["codebook"]).sum(-1) > 0
    np.testing.assert_array_equal(moved, np.isin(np.arange(CODES), ids))
    assert (of_z == 0).all()
    of_codebook, of_z = gradient("commitment_loss")
    assert (of_codebook["codebook"] == 0).all()
    assert (np.abs(of_z).sum(-1) > 0).all()


def test_the_entropy_loss_rewards_clear_choices_of_all_codes():
    description, params = make(entropy=0.3)
    z = latents(5, 4)
    distances = ((unit(z)[..., None, :] - unit(params["codebook"])) ** 2).sum(-1).reshape(20, CODES)
    shares = softmax(-distances / 0.01, axis=-1)
    own, mean = -(shares * np.log(shares)).sum(-1).mean(), shares.mean(0)
    losses = description.merge(params).quantize(z)[2]
    np.testing.assert_allclose(losses["entropy_loss"], 0.3 * (own + (mean * np.log(mean + 1e-5)).sum()), rtol=1e-4)
    assert "entropy_loss" not in make()[0].merge(params).quantize(z)[2]
    spread, one = 1 - jnp.eye(8), 1 - jnp.eye(8)[jnp.zeros(8, int)]  # all codes are chosen, or always the same one
    assert entropy_loss(spread) < entropy_loss(one) - 2


def test_the_codebook_loss_pulls_codes_to_the_latents():
    description, params = make(l2_norm=False)
    z = latents(30)
    gradient = jax.grad(lambda p: description.merge(p).quantize(z)[2]["codebook_loss"])(params)["codebook"]
    ids, expected = brute_force(params["codebook"], z, False), np.zeros((CODES, WIDTH))
    np.add.at(expected, ids, 2 * (np.asarray(params["codebook"])[ids] - np.asarray(z)) / z.size)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_quantization_is_float32_whatever_the_networks_are():
    description, params = make()
    z = latents(200).astype(jnp.bfloat16)
    z_q, ids, _ = description.merge(params).quantize(z)
    assert z_q.dtype == jnp.float32
    np.testing.assert_array_equal(ids[..., 0], brute_force(params["codebook"], z.astype(jnp.float32), True))


def test_usage_is_a_running_share():
    description, params = make(usage_decay=0.9, revive_below=0.0)
    quantizer = description.merge(params)
    statistics = quantizer.init_statistics()
    np.testing.assert_allclose(statistics["usage"], np.full(CODES, 1 / CODES))
    expected = np.full(CODES, 1 / CODES)
    for step in range(3):
        z = latents(2, 15, seed=step)
        ids = quantizer.quantize(z)[1]
        statistics = quantizer.update_statistics(statistics, z, ids, jax.random.key(step))
        expected = 0.9 * expected + 0.1 * np.bincount(np.asarray(ids).ravel(), minlength=CODES) / 30
    np.testing.assert_allclose(statistics["usage"], expected, rtol=1e-5)
    np.testing.assert_allclose(statistics["usage"].sum(), 1, rtol=1e-5)
    assert not quantizer.dead(statistics).any()  # a limit of 0 revives none


@pytest.mark.parametrize("l2_norm", [True, False])
def test_exactly_the_dead_codes_restart_at_latents_of_the_batch(l2_norm):
    description, params = make(l2_norm=l2_norm, usage_decay=0.5, revive_below=0.2)
    quantizer, z = description.merge(params), latents(2, 30)
    ids = quantizer.quantize(z)[1] % 8  # codes 8, 9, 10 are not used
    statistics = {**quantizer.init_statistics(), "usage": jnp.full(CODES, 1 / CODES).at[8].set(0.3 / CODES)}
    statistics = quantizer.update_statistics(statistics, z, ids, jax.random.key(0))
    dead = np.asarray(statistics["usage"]) < 0.2 / CODES
    assert dead[8]
    assert not dead[9:].any()
    revived, renewed = quantizer.revive(params, statistics)
    revived = np.asarray(revived["codebook"])
    np.testing.assert_array_equal(revived[~dead], params["codebook"][~dead])
    pool = compared(z, l2_norm).reshape(-1, WIDTH)
    distance = np.linalg.norm(revived[dead][:, None] - pool, axis=-1).min(-1)
    assert (distance < 1e-5).all()
    usage = np.where(dead, 1 / CODES, statistics["usage"])  # revived codes start with an average share
    after = quantizer.update_statistics(renewed, z, ids, jax.random.key(1))["usage"]
    share = np.bincount(np.asarray(ids).ravel(), minlength=CODES) / 60
    np.testing.assert_allclose(after, 0.5 * usage + 0.5 * share, rtol=1e-5)


def test_candidates_are_drawn_from_the_whole_batch():
    description, params = make(l2_norm=False)
    quantizer, z = description.merge(params), latents(5)
    ids = quantizer.quantize(z)[1]
    seen = set()
    for seed in range(6):
        found = quantizer.update_statistics(quantizer.init_statistics(), z, ids, jax.random.key(seed))["candidates"]
        index = np.linalg.norm(np.asarray(found)[:, None] - np.asarray(z), axis=-1).argmin(-1)
        np.testing.assert_array_equal(found, z[index])
        seen |= set(index.tolist())
    assert seen == set(range(5))


def test_quantizing_a_zero_vector_has_a_finite_gradient():
    description, params = make()
    loss = lambda z: sum(description.merge(params).quantize(z)[2].values())  # noqa: E731
    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, WIDTH)))).all()
