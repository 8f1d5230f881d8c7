import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.errors import UserError
from models.modules import describe
from models.tokens import Grid, Scales
from tokenizer.quantizers import build_quantizer
from tokenizer.quantizers.multi_scale import phi_table
from tokenizer.resize import area, bicubic

SCALES, WIDTH, CODES = (1, 2, 3, 5), 4, 23


def make(*, seed=0, spread=0.7, scales=SCALES, phi=2, **options):
    """A quantizer of random codes, and its parameters."""
    inner = {"name": "vector", "codes": CODES, "width": WIDTH, "l2_norm": False}
    section = {"name": "multi_scale", "inner": inner, "scales": scales, "phi": phi, **options}
    description = describe(lambda rngs: build_quantizer(section, rngs))
    params = description.init(jax.random.key(seed))
    codes = spread * jax.random.normal(jax.random.key(seed), (CODES, WIDTH))
    return description, {**params, "inner": {"codebook": codes}}


def latents(count=3, side=5, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, side, side, WIDTH))


def convolved(x, kernel, bias):
    """A 3x3 convolution in numpy."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    h, w, _ = x.shape
    return sum(padded[i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)) + bias


def by_hand(params, z, table, share=0.5):
    """Ids and reconstructions after each scale of one image, in numpy and float64 (VAR's algorithm 1)."""
    codes = np.asarray(params["inner"]["codebook"], np.float64)
    total, ids, totals = np.zeros(z.shape), [], []
    for scale, side in enumerate(SCALES):
        rest = np.asarray(area(jnp.asarray(z - total)[None], Grid(side, side))[0], np.float64)
        chosen = ((rest[..., None, :] - codes) ** 2).sum(-1).argmin(-1)
        up = np.asarray(bicubic(jnp.asarray(codes[chosen])[None], Grid(5, 5))[0], np.float64)
        phi = params["convolutions"][table[scale]]
        total = total + (1 - share) * up + share * convolved(up, np.asarray(phi["kernel"]), np.asarray(phi["bias"]))
        ids.append(chosen.reshape(-1))
        totals.append(total)
    return np.concatenate(ids), totals


def test_ids_sums_and_loss_are_those_of_the_algorithm_by_hand():
    description, params = make()
    z = latents()
    quantizer = description.merge(params)
    z_q, ids, losses = quantizer.quantize(z)
    assert (ids.shape, ids.dtype) == ((3, 39, 1), jnp.int32)
    expected = [by_hand(params, np.asarray(image, np.float64), phi_table(4, 2)) for image in z]
    np.testing.assert_array_equal(ids[..., 0], [chosen for chosen, _ in expected])
    totals = np.stack([totals for _, totals in expected], axis=1)  # (S, B, h, w, D)
    np.testing.assert_allclose(z_q, totals[-1], atol=2e-5)
    np.testing.assert_allclose(np.stack(list(quantizer.sums(ids))), totals, atol=2e-5)
    np.testing.assert_allclose(quantizer.lookup(ids), z_q, atol=2e-5)
    error = np.mean((totals - np.asarray(z)) ** 2)
    np.testing.assert_allclose(losses["codebook_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(losses["commitment_loss"], 0.25 * error, rtol=1e-5)


def test_the_next_scale_is_fed_with_what_teacher_forcing_feeds():
    description, params = make()
    quantizer = description.merge(params)
    ids = quantizer.quantize(latents())[1]
    whole, total, fed = quantizer.scale_inputs(ids), quantizer.start(3), []
    for scale, (start, stop) in enumerate(Scales(quantizer.grids).bounds):
        total, inputs = quantizer.next_scale(total, quantizer.inner.lookup(ids[:, start:stop]), scale)
        fed.append(inputs)
    assert fed.pop() is None
    np.testing.assert_allclose(np.concatenate(fed, axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(total, quantizer.lookup(ids), atol=1e-6)
    assert whole.shape == (3, 38, WIDTH)


def test_what_feeds_a_scale_depends_on_the_scales_before_alone():
    description, params = make()
    quantizer = description.merge(params)
    ids = np.asarray(quantizer.quantize(latents())[1])
    before = np.asarray(quantizer.scale_inputs(jnp.asarray(ids)))
    bounds = Scales(quantizer.grids).bounds
    for start, stop in bounds[:-1]:
        changed = ids.copy()
        changed[:, start:stop] = (changed[:, start:stop] + 1) % CODES
        after = np.asarray(quantizer.scale_inputs(jnp.asarray(changed)))
        moved = np.abs(after - before).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, np.arange(38) + 1 >= stop)


def test_gradients_reach_codebook_and_phi_through_the_loss_and_latents_straight_through():
    description, params = make()
    z, weight = latents(), np.random.default_rng(0).normal(size=(3, 5, 5, WIDTH))
    straight = jax.grad(lambda z: (description.merge(params).quantize(z)[0] * weight).sum())(z)
    np.testing.assert_allclose(straight, weight, atol=1e-6)
    grads = jax.grad(lambda p: description.merge(p).quantize(z)[2]["codebook_loss"])(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    grads = jax.grad(lambda p: description.merge(p).quantize(z)[2]["commitment_loss"])(params)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads))
    of_z = jax.grad(lambda z: description.merge(params).quantize(z)[2]["codebook_loss"])(z)
    np.testing.assert_array_equal(of_z, 0)


def test_training_on_its_loss_makes_the_reconstruction_better():
    description, params = make(spread=0.1)
    z = latents(count=16)
    loss = jax.jit(jax.value_and_grad(lambda p: description.merge(p).quantize(z)[2]["codebook_loss"]))
    losses = []
    for _ in range(60):
        value, grads = loss(params)
        params = jax.tree.map(lambda p, g: p - 4 * g, params, grads)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]


def test_dropped_scales_are_not_summed_and_the_loss_is_of_the_others():
    description, params = make(scale_dropout=1.0, least_scales=2)
    quantizer, z, key = description.merge(params), latents(count=64), jax.random.key(5)
    z_q, _, losses = quantizer.quantize(z, key=key)
    used = np.asarray(quantizer.used_scales(64, key))
    counts = used.sum(axis=1)
    assert set(counts) == {2, 3, 4}
    np.testing.assert_array_equal(used, np.arange(4) < counts[:, None])
    full, all_ids, _ = quantizer.quantize(z)
    sums = np.stack(list(quantizer.sums(all_ids)))
    np.testing.assert_allclose(z_q, sums[counts - 1, np.arange(64)], atol=2e-5)
    errors = np.mean((sums - np.asarray(z)) ** 2, axis=(2, 3, 4))  # (S, B)
    expected = np.mean([errors[:count, image].mean() for image, count in enumerate(counts)])
    np.testing.assert_allclose(losses["codebook_loss"], expected, rtol=1e-5)
    assert np.abs(z_q - full).max() > 0.1


def test_scale_dropout_drops_its_share():
    description, params = make(scale_dropout=0.25, least_scales=1)
    counts = description.merge(params).used_scales(8000, jax.random.key(0)).sum(axis=1)
    share = np.bincount(counts, minlength=5)[1:] / 8000
    np.testing.assert_allclose(share, [1 / 16, 1 / 16, 1 / 16, 13 / 16], atol=0.015)


def test_statistics_follow_all_scales_and_dead_codes_restart_at_what_was_left_over():
    description, params = make()
    quantizer, z = description.merge(params), latents(count=8)
    ids = quantizer.quantize(z)[1]
    statistics = quantizer.update_statistics(quantizer.init_statistics(), z, ids, jax.random.key(0))
    share = np.bincount(np.asarray(ids).reshape(-1), minlength=CODES) / ids.size
    np.testing.assert_allclose(statistics["usage"], 0.99 / CODES + 0.01 * share, rtol=1e-5)
    totals = [np.zeros(z.shape), *quantizer.sums(ids)]
    left = [area(jnp.asarray(z - total), grid).reshape(-1, WIDTH) for total, grid in zip(totals, quantizer.grids)]
    distance = np.abs(statistics["candidates"][:, None] - np.concatenate(left)[None]).max(-1).min(-1)
    assert distance.max() < 1e-5
    statistics["usage"] = statistics["usage"].at[3].set(0.0)
    revived, _ = quantizer.revive(params, statistics)
    changed = np.abs(revived["inner"]["codebook"] - params["inner"]["codebook"]).max(axis=1) > 0
    assert np.flatnonzero(changed).tolist() == [3]
    np.testing.assert_array_equal(revived["inner"]["codebook"][3], statistics["candidates"][3])


def test_without_phi_the_codes_are_summed_as_they_are():
    description, params = make(phi=0, scales=(5,))
    quantizer, z = description.merge({**params, "convolutions": {}}), latents()
    z_q, ids, _ = quantizer.quantize(z)
    np.testing.assert_allclose(z_q, params["inner"]["codebook"][ids.reshape(3, 5, 5)], atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_as_many_convolutions_as_scales_are_used_one_each(count):
    np.testing.assert_array_equal(phi_table(count, count), np.arange(count))
    np.testing.assert_array_equal(phi_table(7, 1), 0)


def test_phi_and_resizing_are_pytorchs(shared):
    with np.load(shared / "parity" / "var" / "ref.npz") as reference:
        for name in (name for name in reference if name.startswith("phi/shared4_scales")):
            np.testing.assert_array_equal(phi_table(len(reference[name]), 4), reference[name])
        last = lambda name: jnp.asarray(reference[name]).transpose(0, 2, 3, 1)  # noqa: E731
        for side in (1, 2, 3, 4, 5, 6, 8, 10, 13):
            down = area(last("interp/area_in"), Grid(side, side))
            np.testing.assert_allclose(down, last(f"interp/area_to_{side}"), atol=1e-6)
            up = bicubic(last(f"interp/bicubic_in_{side}"), Grid(16, 16))
            np.testing.assert_allclose(up, last(f"interp/bicubic_from_{side}"), atol=2e-6)


WRONG = {"sides of 1 or more": (), "none smaller": (3, 2, 5), "last of the quantizer's scales is 4": (1, 4)}


@pytest.mark.parametrize("said", WRONG)
def test_scales_that_do_not_fit_are_refused(said):
    with pytest.raises(UserError, match=said):
        make(scales=WRONG[said])[0].build(nnx.Rngs(0)).shape(Grid(5, 5))
