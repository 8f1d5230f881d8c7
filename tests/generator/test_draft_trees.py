"""Trees of drafts that a smaller model, or a table of successors, gives: exact, and drawn in the order that they are worth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import FILTERS, SAMPLES, SCALES, distance, likelihood, noise_floor, one_by_one, sampled
from table_model import UNWRITTEN, TableModel

from generator.conditioning import Captions
from generator.sampling.calls import caller
from generator.sampling.draft_model import Chains
from generator.sampling.dyspec import DySpec
from generator.sampling.interface import Aids
from generator.sampling.noise import Noise
from generator.sampling.recycling import Recycling, renewed
from generator.sampling.samplers import asks, build_sampler
from generator.sampling.sequential import sequential
from generator.sampling.siblings import ranked
from generator.sampling.templates import likely
from generator.sampling.trees import Place, by_trees
from generator.sampling.walks import FIRST_DRAFT, RULES
from jobs.feeds import TokenFeed
from models.errors import UserError

FEW = 6000  # samples
SHARE = 0.6  # of the model's logits in the draft model's
CHAINS = [(1, 3), (2, 2), (3, 4)]  # how many, and how long


@pytest.fixture(scope="module")
def table():
    return TableModel()


@pytest.fixture(scope="module")
def draft(table):
    """A model that says something like the table."""
    other = TableModel(seed=1)
    other.logits = SHARE * table.logits + (1 - SHARE) * other.logits
    return other


@pytest.fixture(scope="module")
def truth(table):
    return np.asarray(one_by_one(table, seed=0, samples=FEW))


@pytest.fixture(scope="module")
def floor(table):
    """The distance of the sequential sampler: noise."""
    return noise_floor(table)


def drafter(name, draft, rule, size):
    """A drafter by its name and size: (chains, length), nodes."""
    match name:
        case "draft_model":
            return Chains(draft, *size, rule)
        case "dyspec":
            return DySpec(draft, size, rule)
    return Recycling(likely(size, (0.6, 0.3)), rule.proposals)


def decode(table, draft, name, rule, size, samples=FEW):
    """Tokens, and how many a call drew."""
    rule = RULES[rule]

    def run(labels, images):
        out = by_trees(table, labels, images, drafter=drafter(name, draft, rule, size), rule=rule, seed=0,
                       filters=FILTERS, scales=SCALES)  # fmt: skip
        return out.tokens.ids, out.accepted

    ids, accepted = sampled(run, samples=samples)
    accepted = np.asarray(accepted)
    assert (accepted.sum(-1) == table.spec.positions).all()
    return np.asarray(ids), accepted


def calls(accepted):
    """Of the model, a row."""
    return (accepted > 0).sum(-1).mean()


SIZES = [("draft_model", size) for size in CHAINS] + [("dyspec", 9), ("recycling", 6)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_under_fixed_noise_the_sequential_samplers_tokens_are_drawn(table, draft, truth, name, size):
    ids, accepted = decode(table, draft, name, "fixed_noise", size)
    print(f"{name} {size}: {calls(accepted):.3f} calls")
    np.testing.assert_array_equal(ids, truth)
    assert len(np.unique((accepted > 0).sum(-1))) > 1, "rows advance alike"


@pytest.mark.parametrize(
    ("name", "rule", "size"),
    [("draft_model", "multi_round", (1, 3)), ("draft_model", "multi_round", (2, 2)), ("draft_model", "k_seq", (3, 2)),
     ("dyspec", "multi_round", 9), ("recycling", "multi_round", 4)],
)  # fmt: skip
def test_what_is_drawn_has_the_models_distribution(table, draft, floor, name, rule, size):
    ids, accepted = decode(table, draft, name, rule, size, SAMPLES)
    found, share = distance(table, ids) / floor, likelihood(table, ids)
    print(f"{name} {rule} {size}: {found:.2f} times the floor, p {share:.2g}, {calls(accepted):.3f} calls")
    assert len(np.unique((accepted > 0).sum(-1))) > 1, "rows advance alike"
    assert found < 1.5
    assert share > 1e-3  # noise that positions keep gives 1e-22 with DySpec


@pytest.mark.parametrize("length", [2, 3])
def test_all_that_the_model_itself_drafts_stands(table, truth, length):
    ids, accepted = decode(table, table, "draft_model", "fixed_noise", (1, length))
    np.testing.assert_array_equal(ids, truth)
    assert ((accepted > 0).sum(-1) == -(-table.spec.positions // (length + 1))).all()


def test_two_chains_draw_more_a_call_than_one(table, draft):
    one, two = (calls(decode(table, draft, "draft_model", "k_seq", (chains, 2))[1]) for chains in (1, 2))
    print(f"k_seq: {one:.3f} calls by one chain, {two:.3f} by two")
    assert two < one


def test_a_transformer_drafts_for_another_of_captions(make):
    """The condition's slots stand before the tokens of both models, the trees behind them."""
    options = {"height": 2, "condition": {"name": "text", "entries": 4, "features": 6}}
    case, small = make(**options), make(**options, depth=1, seed=1)
    captions = Captions(
        jax.random.normal(jax.random.key(0), (3, 4, 6)), jnp.array([[1] * 4, [0, 0, 0, 1], [0, 1, 1, 1]])
    )
    asked = {"seed": 5, "filters": FILTERS, "scales": np.full(case.spec.positions, 1.5, np.float32)}
    images, rule = jnp.arange(3), RULES["fixed_noise"]

    @jax.jit
    def run(params, drafting):
        model, draft = case.sampling.merge(params), small.sampling.merge(drafting)
        out = by_trees(model, captions, images, drafter=Chains(draft, 2, 2, rule), rule=rule, **asked)
        return out.tokens.ids, sequential(model, captions, images, TokenFeed(), **asked).tokens.ids

    found, expected = run(case.sampling_params, small.sampling_params)
    np.testing.assert_array_equal(found, expected)


# ---- which nodes DySpec draws


def by_heap(draft, gumbel, nodes):
    """(token, parent, q as it was drawn from) of every node but the root, by the draft model's own tables."""

    def law(prefix):
        number = sum(code * draft.spec.sizes[0] ** place for place, code in enumerate(reversed(prefix)))
        conditional, unconditional = draft.logits[:, len(prefix), number].astype(np.float64)
        logits = (unconditional + SCALES[len(prefix)] * (conditional - unconditional)) / FILTERS.temperature
        return np.exp(logits) / np.exp(logits).sum()

    heap, prefixes, found = [(1.0, 0, law(()))], [()], []
    while len(prefixes) < nodes:
        heap.sort(key=lambda entry: entry[0])
        value, node, q = heap.pop()
        with np.errstate(divide="ignore"):
            token = int(np.argmax(np.log(q) + gumbel[len(prefixes), len(prefixes[node])]))
        found.append((token, node, q))
        if q[token] < 1:
            rest = np.where(np.arange(len(q)) == token, 0, q)
            heap.append((value * (1 - q[token]), node, rest / rest.sum()))
        prefixes.append((*prefixes[node], token))
        if len(prefixes[-1]) < draft.spec.positions:
            heap.append((value * q[token], len(prefixes) - 1, law(prefixes[-1])))
    return found


@pytest.mark.parametrize("rule", ["fixed_noise", "multi_round"])
def test_dyspec_draws_what_is_worth_most(draft, rule):
    nodes, images, codes = 12, jnp.arange(5), draft.spec.sizes[0]
    ask = caller(draft, jnp.zeros(5, jnp.int32), scales=SCALES, filters=FILTERS)
    ids = jnp.zeros((5, draft.spec.positions), jnp.int32)
    place = Place(ids, ids[:, 0], lambda positions: Noise(3, images, positions, 0))
    trees = DySpec(draft, nodes, RULES[rule])(ask)
    noise = place.noise(jnp.broadcast_to(jnp.arange(draft.spec.positions), ids.shape))

    def drawn_with(node):
        return noise.kept(codes) if rule == "fixed_noise" else noise.fresh(codes, jnp.full(4, FIRST_DRAFT + node))

    tree = jax.jit(lambda: trees.propose(trees.start(place), place)[0])()
    gumbels = np.asarray(jax.jit(jax.vmap(drawn_with))(jnp.arange(nodes)))
    for row, gumbel in enumerate(np.moveaxis(gumbels, 1, 0)):
        tokens, parents, laws = zip(*by_heap(draft, gumbel, nodes))
        assert tree.parent[row].tolist() == [-1, *parents]
        assert tree.tokens[row, 1:].tolist() == list(tokens)
        if rule == "multi_round":
            np.testing.assert_allclose(np.exp(tree.log_q[row, 1:]), laws, atol=1e-5)
    assert len(np.unique(tree.parent, axis=0)) > 1, "trees are alike"


def test_nodes_that_cannot_be_are_without_a_parent(draft):
    ids = jnp.zeros((2, draft.spec.positions), jnp.int32)
    ask = caller(draft, jnp.zeros(2, jnp.int32), scales=SCALES, filters=FILTERS)
    place = Place(ids, ids[:, 0], lambda positions: Noise(3, jnp.arange(2), positions, 0))
    trees = DySpec(draft, 5, RULES["multi_round"])(ask)
    slots = jnp.where(jnp.arange(9) < 4, jnp.arange(9), UNWRITTEN)  # of the sequence, and the nodes
    places = jnp.broadcast_to(slots[None, None, :, None], (4, 1, 9, 1)) * 1.0
    late = place._replace(done=jnp.array([3, 4]))
    tree = jax.jit(lambda: trees.propose([(places * 0, places)], late)[0])()
    assert tree.parent.tolist() == [[-1, 0, 0, 0, -1], [-1] * 5]  # every code, and nothing after them; nothing at all
    assert sorted(tree.tokens[0, 1:4].tolist()) == [0, 1, 2]


# ---- drafts without replacement


def test_codes_that_q_excludes_are_drawn_evenly_after_all_others():
    """Given the drafts before, whose noise was compared already."""
    log_q = jnp.log(jnp.array([0.8, 0.2, 0.0, 0.0]))
    images, positions = jnp.arange(20_000), jnp.zeros((20_000, 1), jnp.int32)
    given = jnp.broadcast_to(log_q, (20_000, 1, 4))
    tokens, laws = jax.jit(lambda: ranked(given, Noise(0, images, positions, 0), 4))()
    tokens, laws = np.asarray(tokens)[:, 0], np.exp(laws)[:, 0]
    assert (np.sort(tokens, axis=1) == np.arange(4)).all()
    first = tokens[:, 0] == 0
    for some, share in ((first, 0.8), (~first, 0.2)):
        assert some.mean() == pytest.approx(share, abs=0.015)
        assert (tokens[some, 2] == 2).mean() == pytest.approx(0.5, abs=0.04)
        np.testing.assert_allclose(laws[some, 2], [[0, 0, 0.5, 0.5]] * some.sum(), atol=1e-6)


# ---- which successors are recycled


def test_the_last_of_equal_tokens_decides_their_successors():
    table = jnp.full((2, 4, 2), 9, jnp.int32)
    tokens = jnp.array([[1, 3, 1, 4], [2, 2, 2, 0]], jnp.int32)  # 4 is none
    log_p = jax.random.normal(jax.random.key(0), (2, 4, 4))
    found = np.asarray(renewed(table, tokens, log_p))
    best = np.argsort(-np.asarray(log_p), axis=2)[..., :2]
    np.testing.assert_array_equal(found[0], [[9, 9], best[0, 2], [9, 9], best[0, 1]])
    np.testing.assert_array_equal(found[1], [best[1, 3], [9, 9], best[1, 2], [9, 9]])


# ---- config sections


def section(name, **fields):
    return {"name": name, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.5, "guidance_schedule":
            "constant", "guidance_interval": (0.0, 1.0), "window": 4, "branches": (0.6, 0.3), **fields}  # fmt: skip


@pytest.mark.parametrize("name", ["draft_model", "dyspec", "recycling"])
def test_a_config_section_builds_them_and_known_tokens_stay(table, draft, name):
    assert asks(section(name), TableModel().spec) == ({"draft"} if name != "recycling" else set())
    sample, given = build_sampler(section(name), 0, table), jnp.array([2, 0, 1, 1])

    def keep(state, log_p, positions):
        known = jnp.where(jnp.arange(3) == given[positions][..., None], 0.0, -jnp.inf)
        return jnp.where((positions % 2 == 0)[..., None], known, log_p)

    run = jax.jit(partial(sample, table, feed=TokenFeed(), aids=Aids(draft=draft), revise=keep))
    out = run(jnp.zeros(64, jnp.int32), jnp.arange(64))
    plain = build_sampler(section("sequential"), 0, table)
    expected = plain(table, jnp.zeros(64, jnp.int32), jnp.arange(64), TokenFeed(), revise=keep_at(keep))
    np.testing.assert_array_equal(out.tokens.ids, expected.tokens.ids)
    assert (out.tokens.ids[:, ::2, 0] == given[::2]).all()


def keep_at(keep):
    """Of a time, as the sequential sampler asks."""
    return lambda state, log_p, time: keep(state, log_p, jnp.full((1, 1), time))


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [("dyspec", {"rule": "k_seq"}, "k_seq .*draft_model"), ("recycling", {"rule": "k_seq"}, "k_seq .*draft_model"),
     ("siblings", {"rule": "k_seq"}, "k_seq .*draft_model"), ("draft_model", {"rule": "kseq"}, "k_seq"),
     ("draft_model", {"window": 3, "chains": 3}, "chains 3"), ("draft_model", {"chains": 0}, "chains 0"),
     ("recycling", {"branches": (0.4, 0.3, 0.2, 0.1)}, "4 shares")],
)  # fmt: skip
def test_what_they_are_not_for_is_refused(table, name, fields, said):
    with pytest.raises(UserError, match=said):
        build_sampler(section(name, **fields), 0, table)
