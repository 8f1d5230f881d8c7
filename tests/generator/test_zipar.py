"""ZipAR: the calls that it makes, what each of them sees, and what it draws."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_model import TableModel

from generator.layouts import raster
from generator.sampling.distribution import Filters
from generator.sampling.noise import gumbel_noise
from generator.sampling.samplers import build_sampler
from generator.sampling.sequential import sequential
from generator.sampling.zipar import plan, zipar
from jobs.feeds import TokenFeed
from models.errors import UserError
from models.tokens import Grid, Scales, TokenSpec

IMAGES = 50
FILTERS = Filters(temperature=1.2)


def scales_of(model):
    """Guidance that differs from place to place."""
    return np.linspace(0.5, 2.0, model.spec.positions).astype(np.float32)


def drawn(model, window, *, images=IMAGES, seed=3, **options):
    labels, options = jnp.zeros(images, jnp.int32), {"filters": FILTERS, "scales": scales_of(model), **options}
    return jax.jit(lambda: zipar(model, labels, jnp.arange(images), window=window, seed=seed, **options))()


def known(grid, window, position):
    """What the call that draws a token knows: how many tokens of each row, by the paper's rule."""
    lag = min(window, grid.width)
    row, column = divmod(position, grid.width)
    return [int(np.clip(column + lag * (row - other), 0, grid.width)) for other in range(row + 1)]


def seen(grid, window, ids, position):
    """What feeds every slot before a token's (B, N), and which slots it does not see, from the paper's rule."""
    counts = known(grid, window, position)
    fed, hidden = np.zeros_like(ids), np.zeros(grid.positions, bool)
    for slot in range(1, position + 1):  # it is fed with the token before
        row, column = divmod(slot - 1, grid.width)
        if column < counts[row]:
            fed[:, slot] = ids[:, slot - 1]
        elif column == grid.width - 1:  # what stands in, as the row below has begun
            fed[:, slot] = ids[:, row * grid.width + min(window, grid.width) - 1]
        else:
            hidden[slot] = True
    return fed, hidden


def conditionals(model, window, ids, scales):
    """log p of every token of sequences (B, N), each given what ZipAR knows of the sequence when it draws it, in float64."""
    grid, found = model.spec.shape, []
    for position in range(grid.positions):
        fed, hidden = seen(grid, window, ids, position)
        prefix = model.prefixes(fed.T, hidden)[position]
        conditional, unconditional = model.logits[:, position, prefix].astype(np.float64)
        logits = (unconditional + scales[position] * (conditional - unconditional)) / FILTERS.temperature
        found.append(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    return np.stack(found, axis=1)


@pytest.mark.parametrize(("side", "window"), [(24, 8), (24, 1), (16, 5), (8, 7), (8, 8), (6, 16), (1, 3)])
def test_the_number_of_calls_is_the_papers(side, window):
    calls = plan(Grid(side, side), window)
    assert len(calls.fed) == side + (side - 1) * min(window, side)
    np.testing.assert_array_equal(np.sort(calls.position[calls.draws]), np.arange(side**2))


@pytest.mark.parametrize(("shape", "window"), [((3, 4), 1), ((3, 4), 2), ((2, 5), 3)])
def test_what_is_drawn_follows_from_what_the_paper_lets_each_call_see(shape, window):
    """Given the sequence that came out, each of its tokens is what its noise draws: all that is seen is what should be."""
    model = TableModel(codes=2, shape=shape)
    out = drawn(model, window)
    ids = np.asarray(out.tokens.ids[..., 0])
    log_p = conditionals(model, window, ids, scales_of(model))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    noise = jax.jit(lambda: gumbel_noise(3, jnp.arange(IMAGES), positions, 2))()
    np.testing.assert_array_equal((log_p + noise).argmax(axis=-1), ids)
    calls = shape[1] + (shape[0] - 1) * window
    assert (np.asarray(out.calls) == calls).all()
    assert out.accepted.shape == (IMAGES, calls)
    assert (np.asarray(out.accepted).sum(axis=1) == ids.shape[1]).all()


class Shameless(TableModel):
    """Hides nothing."""

    def hidden(self, cache, x, slots, context, branches=None, unwritten=None):
        return super().hidden(cache, x, slots, context)


class Forgetful(TableModel):
    """Never mends what stood in."""

    def hidden(self, cache, x, slots, context, branches=None, unwritten=None):
        if slots.shape[1] > 1:
            old = cache[0][0][jnp.arange(len(x))[:, None], 0, slots, 0]
            x = jnp.where((old >= 0) & (slots > 0), old, x[..., 0])[..., None]
        return super().hidden(cache, x, slots, context, branches, unwritten)


@pytest.mark.parametrize("kind", [Shameless, Forgetful])
def test_a_slot_that_is_seen_unwritten_and_a_stand_in_that_stays_are_found(kind):
    right, wrong = (drawn(model(codes=2, shape=(3, 4)), 2).tokens.ids for model in (TableModel, kind))
    assert (right != wrong).any()


@pytest.mark.parametrize("window", [4, 9])
def test_a_window_as_wide_as_the_grid_draws_the_sequential_samplers_tokens(window):
    model = TableModel(codes=2, shape=(3, 4))
    given = jnp.log(jnp.array([0.0, 1.0]))

    def keep(state, log_p, positions):
        """The sixth token is given."""
        return jnp.where(jnp.asarray(positions == 5)[..., None], given, log_p)

    @jax.jit
    def one_by_one():
        labels, options = jnp.zeros(IMAGES, jnp.int32), {"filters": FILTERS, "scales": scales_of(model)}
        return sequential(model, labels, jnp.arange(IMAGES), TokenFeed(), seed=3, revise=keep, **options)

    out = drawn(model, window, revise=keep)
    np.testing.assert_array_equal(out.tokens.ids, one_by_one().tokens.ids)
    assert (out.tokens.ids[:, 5] == 1).all()
    assert (out.calls == 12).all()


def test_a_transformer_knows_nothing_of_slots_that_are_not_drawn(make):
    """What lies in its cache before it is written does not matter; with the widest window it draws as one by one."""
    case, labels, images = make(scale=5.0, depth=1), jnp.arange(4), jnp.arange(4)
    options = {"seed": 0, "filters": Filters(), "scales": np.full(12, 1.5, np.float32)}
    of_model = ("layout", "spec", "condition", "start", "embed", "context", "hidden", "head", "extend")

    def run(params, litter):
        model = case.sampling.merge(params)
        littered = types.SimpleNamespace(
            **{name: getattr(model, name) for name in of_model},
            init_cache=lambda *room: jax.tree.map(lambda x: jnp.full_like(x, litter), model.init_cache(*room)),
        )
        outs = [zipar(littered, labels, images, window=window, **options) for window in (2, 4)]
        return [out.tokens.ids for out in (*outs, sequential(model, labels, images, TokenFeed(), **options))]

    run = jax.jit(run)
    (narrow, wide, whole), (dirty, *_) = (run(case.sampling_params, litter) for litter in (0.0, 50.0))
    np.testing.assert_array_equal(narrow, dirty)
    np.testing.assert_array_equal(wide, whole)
    assert (narrow != whole).any()


@pytest.mark.parametrize(("shape", "window"), [((2, 3), 1), ((2, 3), 2), ((3, 3), 1), ((3, 3), 2), ((3, 3), 3)])
def test_it_is_lossy(shape, window):
    """Its law, enumerated, against the model's."""
    model = TableModel(codes=2, shape=shape)
    scales = scales_of(model)
    sequences = np.array(list(itertools.product(range(2), repeat=model.spec.positions)))
    log_p = conditionals(model, window, sequences, scales)
    law = np.exp(np.take_along_axis(log_p, sequences[..., None], axis=-1)[..., 0].sum(axis=1))
    truth = model.probabilities(scales, FILTERS.temperature, 0)
    assert law.sum() == pytest.approx(1, abs=1e-5)
    distance = np.abs(law - truth).sum() / 2
    print(f"zipar, {shape}, window {window}: total variation {distance:.3f}")
    assert distance > 0.1 if window < shape[1] else distance < 1e-5


def test_what_has_no_rows_in_order_is_refused(make):
    section = {"name": "zipar", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0,
               "guidance_schedule": "constant", "guidance_interval": (0.0, 1.0), "window": 2}  # fmt: skip
    build_sampler(section, 0, make().sampling_generator)
    spec = TokenSpec(Grid(2, 2), (3,))
    plain = raster(spec, 1)
    for layout, tokens in (
        (dataclasses.replace(plain, target=plain.target[::-1]), spec),
        (plain, TokenSpec(Grid(2, 2), (3, 3))),
        (plain, TokenSpec(Scales((Grid(1, 1),)), (3,))),
    ):
        model = TableModel(codes=2)
        model.layout, model.spec = layout, tokens
        with pytest.raises(UserError, match="raster"):
            build_sampler(section, 0, model)
    with pytest.raises(UserError, match="raster"):
        build_sampler(section, 0, make(layout="scales").sampling_generator)
    with pytest.raises(UserError, match="window -1"):
        build_sampler({**section, "window": -1}, 0, make().sampling_generator)
