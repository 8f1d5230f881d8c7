from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from variants import VAR

from configs import llamagen
from generator.conditioning import Captions, ClassCondition
from generator.generator import GENERATORS, Generator
from generator.learner import GeneratorLearner
from generator.sampling.calls import caller
from generator.sampling.distribution import Filters, target_distribution
from models import masks
from models.errors import UserError
from models.modules import describe, parameter_count
from models.registry import build
from models.tokens import Grid, TokenSpec

VARIANTS = {
    "llamagen": {},
    "grouped queries": {"kv_heads": 2},
    "qk_norm": {"qk_norm": "rms"},
    "rotated condition": {"rotate_condition": True},
    "all": {"kv_heads": 1, "qk_norm": "rms", "rotate_condition": True},
    "var": VAR,
    "var with shared modulation": VAR | {"norm": "adaptive_shared"},
    "var with plain attention": VAR | {"qk_norm": "none", "attention_scale": 0.25},
    "rotary scales": {"layout": "scales"},
}


def logits(case, ids, labels):
    return np.asarray(jax.jit(lambda p: case.description.merge(p).logits(case.inputs(ids), labels))(case.params))


def reference_logits(case, ids, labels):
    """The generator in float64 numpy: one head and one query at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), case.params)
    options, layout = case.options, case.generator.layout
    heads, width = options["heads"], options["width"]
    key_heads, d = options.get("kv_heads") or heads, width // heads
    adaptive, l2 = "adaptive" in options.get("norm", "rms"), options.get("qk_norm") == "l2"
    frequencies = 10_000.0 ** (-np.arange(d // 4) / (d // 4))
    visible = np.asarray(layout.visibility.as_array())
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    rms = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale  # noqa: E731
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731

    def linear(x, layer):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    def norm(x, layer, scale, shift):
        if not adaptive:
            return rms(x, layer["scale"])
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift

    def turn(x, slot):
        if options.get("position") == "learned":
            return x
        row, column = layout.position[slot]
        if row < 0:
            return x * options.get("rotate_condition", False)
        pairs = (x[::2] + 1j * x[1::2]) * np.exp(1j * np.concatenate([row * frequencies, column * frequencies]))
        return np.stack([pairs.real, pairs.imag], -1).ravel()

    def mlp(x, block):
        if options.get("activation") == "gelu":
            x = linear(x, block["up"])
            return linear(x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), block["out"])
        gate, up = np.split(linear(x, block["gate_up"]), 2, axis=-1)
        return linear(gate * sigmoid(gate) * up, block["out"])

    out, inputs = [], np.asarray(case.inputs(ids), np.float64)
    for sample, label in zip(inputs, np.asarray(labels)):
        vector = params["condition"]["table"]["table"][label]
        fed = (
            linear(sample, params["features"])
            if "features" in params
            else params["tokens"]["table"][sample[:, 0].astype(int)]
        )
        x = np.stack([vector if source < 0 else fed[source] for source in layout.source])
        if "positions" in params:
            x = x + params["positions"]["slots"] + params["positions"]["levels"][layout.time]
            x[: layout.conditions] += params["positions"]["start"]
        active = vector * sigmoid(vector)
        for layer in range(options["depth"]):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["transformer"]["blocks"])
            six = np.zeros((6, width))
            six[:2] = 1
            if adaptive:
                shared = "modulation_offset" in block
                six = linear(active, (params["transformer"] if shared else block)["modulation"]).reshape(6, width)
                six = six + block.get("modulation_offset", 0.0)
            gate1, gate2, scale1, scale2, shift1, shift2 = six
            qkv = norm(x, block.get("attention_norm"), scale1, shift1) @ block["qkv"]["kernel"]
            q, k, v = np.split(qkv.reshape(len(x), -1, d), [heads, heads + key_heads], axis=1)
            if options.get("bias"):
                q, v = q + block["q_bias"].reshape(heads, d), v + block["v_bias"].reshape(key_heads, d)
            if options.get("qk_norm") == "rms":
                q, k = rms(q, block["q_norm"]["scale"]), rms(k, block["k_norm"]["scale"])
            if l2:
                q, k = unit(q) * np.exp(np.minimum(block["log_scale"], np.log(100)))[:, None], unit(k)
            attended = np.zeros((len(x), heads, d))
            for t, h in np.ndindex(len(x), heads):
                g, seen = h * key_heads // heads, np.flatnonzero(visible[t])
                scores = np.array([turn(q[t, h], t) @ turn(k[s, g], s) for s in seen])
                scores *= 1 if l2 else options.get("attention_scale", 1.0) / np.sqrt(d)
                attended[t, h] = np.exp(scores) / np.exp(scores).sum() @ v[seen, g]
            x = x + linear(attended.reshape(len(x), -1), block["out"]) * gate1
            x = x + mlp(norm(x, block.get("mlp_norm"), scale2, shift2), block["mlp"]) * gate2
        last = params["transformer"]
        scale, shift = linear(active, last["last_modulation"]).reshape(2, width) if adaptive else (0, 0)
        out.append(linear(norm(x, last.get("norm"), scale, shift), params["head"]["projection"]))
    return np.stack(out)[:, layout.predicting]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_a_float64_transformer(make, variant):
    case = make(**VARIANTS[variant])
    ids, labels = case.batch(2)
    np.testing.assert_allclose(logits(case, ids, labels), reference_logits(case, ids, labels), atol=2e-4)


def test_a_slot_depends_on_the_condition_and_every_token_before_and_on_none_after(make):
    case = make(height=2, width=4)
    ids, labels = jnp.arange(8, dtype=jnp.int32)[None, :, None], jnp.array([2], jnp.int32)  # each embedding row once
    direction = np.random.default_rng(0).normal(size=case.codes).astype(np.float32)

    @jax.jit
    def influence(params):
        slots = lambda params: case.description.merge(params).logits(ids, labels)[0] @ direction  # noqa: E731
        jacobian = jax.jacrev(slots)(params)
        return jacobian["tokens"]["table"], jacobian["condition"]["table"]["table"]

    tokens, classes = (np.abs(np.asarray(x)).sum(-1) for x in influence(case.params))  # (T, rows)
    np.testing.assert_array_equal(tokens[:, :8] > 0, np.tril(np.ones((8, 8), bool), -1))
    np.testing.assert_array_equal(classes > 0, np.tile(np.arange(case.classes + 1) == 2, (8, 1)))


def known(case, ids, labels):
    """What feeds every slot, from the layout's table alone."""
    generator = case.sampling_generator
    entries = {-1 - entry: generator.condition(labels)[:, entry] for entry in range(generator.condition.entries)}
    fed = generator.embed(case.inputs(ids))
    entries |= {number: fed[:, number] for number in range(fed.shape[1])}
    return jnp.stack([entries[source] for source in generator.layout.source.tolist()], axis=1)


def extend(case):
    def call(cache, x, slots, labels):
        generator = case.sampling_generator
        return generator.extend(cache, x, slots, generator.context(labels))

    return jax.jit(call)


def chunks(layout, lengths):
    """Consecutive slots, cut only where the time changes."""
    cuts, at = [0], 0
    for length in lengths:
        at += length
        while at < layout.slots and layout.time[at] == layout.time[at - 1]:
            at += 1
        cuts.append(min(at, layout.slots))
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop]


@pytest.mark.parametrize("variant", ["llamagen", "all", "var", "var with shared modulation", "rotary scales"])
def test_extending_a_cache_in_chunks_equals_the_full_forward(make, variant):
    case = make(**VARIANTS[variant])
    ids, labels = case.batch()
    expected, x, call = logits(case, ids, labels), known(case, ids, labels), extend(case)
    slots = np.arange(x.shape[1], dtype=np.int32)
    cache, found = case.sampling_generator.init_cache(len(ids)), []
    for start, stop in chunks(case.sampling_generator.layout, [1, 1, 3, 5, 1, 1]):
        at = jnp.broadcast_to(slots[start:stop], (len(ids), stop - start))
        out, cache = call(cache, x[:, start:stop], at, labels)
        found.append(np.asarray(out))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=2e-5)


def test_rows_may_stand_at_different_slots(make):
    case = make(kv_heads=2)
    ids, labels = case.batch()
    expected, x, call = logits(case, ids, labels), known(case, ids, labels), extend(case)
    rows, count = np.arange(3)[:, None], x.shape[1]
    cache, reached, found = case.sampling_generator.init_cache(3), np.zeros(3, int), np.full(expected.shape, np.nan)
    for steps in [(1, 2, 3), (3, 1, 2), (3, 3, 1), (1, 2, 3), (3, 3, 3), (3, 3, 3)]:
        # A row that goes on by fewer than 3 slots is fed wrong inputs beyond, as by a draft that is not accepted.
        at = np.minimum(reached[:, None] + np.arange(3), count - 1)
        right = np.arange(3) < np.array(steps)[:, None]
        wrong = x[rows, at] + 7.0
        inputs = jnp.where(jnp.asarray(right | (at == count - 1))[..., None], x[rows, at], wrong)
        out, cache = call(cache, inputs, jnp.asarray(at, jnp.int32), labels)
        for row, (start, length) in enumerate(zip(reached, steps)):
            stop = min(start + length, count)
            found[row, start:stop] = np.asarray(out)[row, : stop - start]
        reached = np.minimum(reached + steps, count)
    assert (reached == count).all()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_rejected_draft_leaves_no_trace_once_overwritten(make):
    case = make()
    ids, labels = case.batch()
    x, extended = known(case, ids, labels), extend(case)
    call = lambda cache, x, slots: extended(cache, x, slots, labels)  # noqa: E731
    at = lambda start, stop: jnp.broadcast_to(jnp.arange(start, stop), (3, stop - start))  # noqa: E731
    _, cache = call(case.sampling_generator.init_cache(3), x[:, :3], at(0, 3))
    wrong = case.sampling_generator.embed((ids[:, 2:5] + 1) % case.codes)
    drafted, polluted = call(cache, wrong, at(3, 6))
    right, clean = call(cache, x[:, 3:6], at(3, 6))
    assert np.abs(drafted - right).min() > 0
    before, _ = call(polluted, x[:, 3:4], at(3, 4))  # 4 and 5 still hold the draft
    np.testing.assert_array_equal(before, call(cache, x[:, 3:4], at(3, 4))[0])
    again, repaired = call(polluted, x[:, 3:6], at(3, 6))
    np.testing.assert_array_equal(again, right)
    np.testing.assert_array_equal(call(repaired, x[:, 6:9], at(6, 9))[0], call(clean, x[:, 6:9], at(6, 9))[0])


# ---- trees of drafts

NODES, DONE = 9, np.array([0, 4, 3])  # of each row, tokens that are drawn
TREES = {
    "rotary": {},
    "learned": {"position": "learned"},
    "grouped queries": {"kv_heads": 2, "qk_norm": "rms"},
    "captions": {"condition": {"name": "text", "entries": 3, "features": 6}},
}


PLANTED = [("rotary", False), ("rotary", True), ("learned", True), ("grouped queries", False), ("captions", True)]


@cache
def plant(make, variant, guided):
    return Planted(make(**TREES[variant]), guided)


class Planted:
    """A case whose rows stand at different places of random tokens, each with a random tree of drafts from there on."""

    def __init__(self, case, guided):
        rng = np.random.default_rng(7)
        self.case = case
        self.ids, labels = (np.asarray(x) for x in case.batch())
        self.condition = jnp.asarray(labels)
        if case.options.get("condition"):
            present = np.array([[1, 1, 1], [0, 0, 1], [0, 1, 1]], np.int32)  # as captions are padded
            self.condition = Captions(jnp.asarray(rng.normal(size=(3, 3, 6)), jnp.float32), jnp.asarray(present))
        self.scales = np.linspace(1.5, 2.5, case.spec.positions) if guided else np.ones(case.spec.positions)
        self.scales = self.scales.astype(np.float32)
        self.parent = np.stack([[-1, 0, *[rng.integers(0, node) for node in range(2, NODES)]] for _ in DONE])
        self.tokens = rng.integers(0, case.codes, (3, NODES))
        self.tokens[:, 0] = np.where(DONE > 0, self.ids[np.arange(3), DONE - 1, 0], 0)
        self.sequence, self.nodes = jax.jit(partial(self.call, None)), jax.jit(self.call)
        self.paths = [[self.path(row, node) for node in range(NODES)] for row in range(3)]
        self.depth = np.array([[len(path) - 1 for path in row] for row in self.paths])
        assert (DONE[:, None] + self.depth < case.spec.positions).all()

    def path(self, row, node):
        found = []
        while node >= 0:
            found.insert(0, node)
            node = self.parent[row, node]
        return found

    def ask(self, params):
        model = self.case.sampling.merge(params)
        return caller(model, self.condition, scales=self.scales, filters=Filters(temperature=1.2))

    def call(self, nodes, cache, tokens, positions):
        """log p and the cache after nodes of the trees, or where that is None, tokens of the sequence."""
        ask, branches = self.ask(self.case.sampling_params), None
        if nodes is not None:
            branches = masks.Branches(jnp.asarray(DONE, jnp.int32), jnp.asarray(self.parent, jnp.int32), nodes)
        hidden, cache = ask(cache, tokens.astype(jnp.int32), positions.astype(jnp.int32), branches)
        return ask.log_p(hidden, positions), cache

    def fed(self, ids, until):
        """An empty cache, and after all calls that feed positions one by one."""
        cache, found = jax.jit(lambda: self.ask(self.case.sampling_params).cache(NODES))(), []
        for position in range(until):
            before = ids[:, max(position - 1, 0)][:, None]
            log_p, cache = self.sequence(cache, before, np.full((3, 1), position))
            found.append(np.asarray(log_p)[:, 0])
        return np.stack(found, axis=1), cache

    def truth(self, ids):
        """log p of every token (B, N, V) under teacher forcing, each row of the condition's row modulo three."""
        condition = jax.tree.map(lambda x: jnp.tile(x, (len(ids) // 3, *(1,) * (x.ndim - 1))), self.condition)

        def run(params):
            model = self.case.description.merge(params)
            both = [model.logits(jnp.asarray(ids)[..., None], c) for c in (condition, model.condition.null(condition))]
            return target_distribution(*both, jnp.asarray(self.scales), Filters(temperature=1.2))

        return np.asarray(jax.jit(run)(self.case.params))

    def along(self, row, node):
        """The tokens of a row with those of a node's path in their places."""
        ids = self.ids[row, :, 0].copy()
        for depth, above in enumerate(self.paths[row][node][1:]):
            ids[DONE[row] + depth] = self.tokens[row, above]
        return ids

    def expected(self):
        """log p after every node (B, M, V), of teacher forcing along its own path."""
        ids = np.stack([self.along(row, node) for node in range(NODES) for row in range(3)])
        whole = self.truth(ids)
        whole = whole.reshape(NODES, 3, *whole.shape[1:]).swapaxes(0, 1)
        return whole[np.arange(3)[:, None], np.arange(NODES), DONE[:, None] + self.depth]


@pytest.mark.parametrize(("variant", "guided"), PLANTED)
def test_a_node_of_a_tree_is_what_teacher_forcing_of_its_path_says(make, variant, guided):
    planted = plant(make, variant, guided)
    expected = planted.expected()
    # Beyond where a row stands lie other tokens, which no node may see.
    _, cache = planted.fed(planted.ids[..., 0], max(DONE) + 2)
    positions = DONE[:, None] + planted.depth
    at_once, _ = planted.nodes(np.arange(NODES), cache, planted.tokens, positions)
    np.testing.assert_allclose(at_once, expected, atol=1e-5)
    one_by_one, now = [], cache
    for node in range(NODES):
        at = slice(node, node + 1)
        log_p, now = planted.nodes(np.array([node]), now, planted.tokens[:, at], positions[:, at])
        one_by_one.append(np.asarray(log_p)[:, 0])
    np.testing.assert_allclose(np.stack(one_by_one, axis=1), expected, atol=1e-5)
    assert np.abs(expected - expected[:, :1]).max(axis=-1)[:, 1:].min() > 1e-2  # nodes do differ


@pytest.mark.parametrize(("variant", "guided"), PLANTED)
def test_a_path_that_is_settled_is_as_if_it_had_been_decoded(make, variant, guided):
    planted = plant(make, variant, guided)
    _, cache = planted.fed(planted.ids[..., 0], max(DONE) + 2)
    _, cache = planted.nodes(np.arange(NODES), cache, planted.tokens, DONE[:, None] + planted.depth)
    ends = [int(planted.depth[0].argmax()), 0, 2]  # the second row's path is its root alone
    paths = [planted.paths[row][end] for row, end in enumerate(ends)]
    length, levels = np.array([len(path) for path in paths]), max(map(len, paths)) + 1
    nodes = np.array([path + [0] * (levels - len(path)) for path in paths])
    target = np.where(
        np.arange(levels) < length[:, None], DONE[:, None] + np.arange(levels), planted.case.spec.positions
    )
    ask = planted.ask(planted.case.sampling_params)
    cache = jax.jit(ask.settled)(cache, jnp.asarray(nodes), jnp.asarray(target))
    ids = np.stack([planted.along(row, end) for row, end in enumerate(ends)])
    reached = DONE + length
    step_by_step, plain = planted.fed(ids, int(reached.max()) + 1)
    slots = np.repeat(ask.silent + reached, 2 if guided else 1)
    for found, expected in zip(jax.tree.leaves(cache), jax.tree.leaves(plain), strict=True):
        for row, count in enumerate(slots):
            np.testing.assert_allclose(found[row, :, :count], expected[row, :, :count], atol=1e-5)
    after = np.take_along_axis(ids, reached[:, None] - 1, axis=1)  # the token before where the rows now stand
    log_p, _ = planted.sequence(cache, after, reached[:, None])
    np.testing.assert_allclose(log_p[:, 0], step_by_step[np.arange(3), reached], atol=1e-5)
    np.testing.assert_allclose(log_p[:, 0], planted.truth(ids)[np.arange(3), reached], atol=1e-5)


def test_stacked_and_listed_layers_agree(make):
    case = make(depth=3)
    ids, labels = case.batch()
    slots = jnp.broadcast_to(jnp.arange(12), (3, 12))
    out, _ = extend(case)(case.sampling_generator.init_cache(3), known(case, ids, labels), slots, labels)
    np.testing.assert_allclose(out, logits(case, ids, labels), atol=2e-5)
    assert parameter_count(case.sampling_params) == parameter_count(case.params)
    assert jax.tree.structure(case.sampling_params) == jax.tree.structure(case.sampling.shapes)


def test_rematerialisation_changes_no_gradient(make):
    results = {}
    for policy in ("none", "dots", "full"):
        # The masks of dropout must be drawn again alike.
        case = make(height=2, width=2, codes=5, remat=policy, dropout=0.2, label_dropout=0.5)
        ids, labels = case.batch()
        loss = lambda p, case=case: case.description.merge(p).loss(ids, ids, labels, key=jax.random.key(3))[0]  # noqa: E731, B023
        results[policy] = jax.jit(jax.value_and_grad(loss))(case.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(results["none"][1]))
    for policy in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), results[policy], results["none"])


def test_loss_is_the_mean_cross_entropy_of_the_next_tokens(make):
    case = make()
    ids, labels = case.batch()
    rows = logits(case, ids, labels).astype(np.float64)
    log_probs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    loss, metrics = case.generator.loss(ids, ids, labels)
    np.testing.assert_allclose(loss, -np.take_along_axis(log_probs, np.asarray(ids), -1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["token_accuracy"], (rows.argmax(-1) == np.asarray(ids)[..., 0]).mean())
    np.testing.assert_allclose(case.generator.head.log_probs(jnp.asarray(rows, jnp.float32)), log_probs, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_loss_is_that_of_a_uniform_guess(make, dtype):
    case = make(codes=37, dtype=dtype, dropout=0.1)
    params = case.description.init(jax.random.key(0))
    ids, labels = case.batch()
    for key in (None, jax.random.key(0)):
        loss, _ = case.description.merge(params).loss(ids, ids, labels, key=key)
        assert loss == np.float32(np.log(37)) or abs(loss - np.log(37)) < 5e-7 * np.log(37)


def test_label_dropout_replaces_its_share_by_no_class():
    init = nnx.initializers.normal(1.0)
    condition = ClassCondition(classes=10, width=4, dropout=0.1, init=init, dtype=jnp.float32, rngs=nnx.Rngs(0))
    labels = jnp.arange(20_000) % 10
    dropped = np.asarray(condition.drop(labels, jax.random.key(0)))
    gone = dropped == 10
    np.testing.assert_array_equal(dropped[~gone], np.asarray(labels)[~gone])
    assert abs(gone.mean() - 0.1) < 4 * np.sqrt(0.09 / 20_000)
    assert abs(gone[::10].mean() - 0.1) < 4 * np.sqrt(0.09 / 2000)  # of each class
    assert condition.table.table.shape == (11, 4)
    np.testing.assert_array_equal(condition(jnp.array([10]))[0, 0], condition.table.table[...][10])


def test_training_with_all_labels_dropped_is_unconditional(make):
    case = make(label_dropout=1.0)
    ids, labels = case.batch()
    dropped, _ = case.generator.loss(ids, ids, labels, key=jax.random.key(0))
    unconditional, _ = case.generator.loss(ids, ids, jnp.full_like(labels, case.classes))
    conditional, _ = case.generator.loss(ids, ids, labels)
    np.testing.assert_allclose(dropped, unconditional, rtol=1e-6)
    assert abs(dropped - conditional) > 1e-3


def test_dropout_is_on_in_training_and_off_in_evaluation(make):
    case = make(dropout=0.3, label_dropout=0.0)
    ids, labels = case.batch()
    batch = {"ids": ids, "label": labels}
    learner = GeneratorLearner(case.description)
    params = {"generator": case.params}
    plain = learner.heldout(case.params, batch)["loss"]
    train = [learner.loss(params, {}, batch, jax.random.key(seed), jnp.zeros((), int))[0] for seed in (0, 0, 1)]
    assert train[0] == train[1]
    assert abs(train[0] - train[2]) > 1e-4
    assert abs(train[0] - plain) > 1e-4
    np.testing.assert_allclose(plain, make(dropout=0.0).generator.loss(ids, ids, labels)[0], rtol=1e-6)


@pytest.mark.parametrize("variant", ["llamagen", "var"])
def test_drop_path_skips_the_last_blocks_branches_and_none_of_the_first(make, variant):
    case = make(**VARIANTS[variant], drop_path=1 - 1e-6)
    ids, labels = case.batch()
    found = case.generator.head(case.generator.states(case.inputs(ids), labels, key=jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf, case.params)
    blocks = params["transformer"]["blocks"]
    for ends in (blocks["out"], blocks["mlp"]["out"]):
        ends.update({name: leaf.at[1].set(0) for name, leaf in ends.items()})
    without = case.description.merge(params).logits(case.inputs(ids), labels)
    np.testing.assert_allclose(found, without, atol=2e-5)
    assert np.abs(found - case.generator.logits(case.inputs(ids), labels)).max() > 0.1


def test_bfloat16_gives_float32_logits_near_those_of_float32(make):
    exact, rough = make(), make(dtype="bfloat16")
    ids, labels = exact.batch()
    wide, narrow = logits(exact, ids, labels), logits(rough, ids, labels)
    assert narrow.dtype == np.float32
    assert 0 < np.abs(wide - narrow).max() < 0.1 * wide.std()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("B", 110888448), ("L", 342910976), ("XL", 774699520), ("XXL", 1410972672), ("3B", 3096659200)],
)
def test_llamagens_sizes_have_its_numbers_of_parameters(size, parameters):
    config = llamagen.get_config(f"size={size}")
    spec = TokenSpec(Grid(16, 16), (config.tokenizer.quantizer.codes,))
    description = describe(
        lambda rngs: build("generator", GENERATORS, config.generator.to_dict(), spec=spec, classes=1000, rngs=rngs)
    )
    assert parameter_count(description.shapes) == parameters
    assert parameters / 1e6 == pytest.approx(llamagen.SIZES[size][3], rel=0.02)  # as published


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "rastor"}, "unknown layout 'rastor'; did you mean 'raster'"),
        ({"head": "categorial"}, "did you mean 'categorical'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"remat": "dot"}, "unknown rematerialisation policy 'dot'; did you mean 'dots'"),
        ({"heads": 5}, "width 32 with 5 heads"),
        ({"heads": 16}, "multiple of 4"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
    ],
)
def test_a_mistaken_field_is_told(fields, message):
    options = {"width": 32, "depth": 1, "heads": 4} | fields
    with pytest.raises(UserError, match=message):
        describe(lambda rngs: Generator(spec=TokenSpec(Grid(2, 2), (3,)), classes=2, **options, rngs=rngs))
