import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import masks
from models.errors import UserError
from models.masks import INFINITY, Visibility


def columns(q_time, k_start, k_end):
    return Visibility(*(np.asarray(column, np.int32) for column in (q_time, k_start, k_end)))


def brute_force(length, sees):
    return np.array([[sees(t, s) for s in range(length)] for t in range(length)])


STEPS = np.arange(9, dtype=np.int32)
GROUP = np.array([0, 1, 1, 1, 2, 2, 2, 2, 3], np.int32)
DOCUMENT = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
PARENT = np.array([-1, 0, 1, 1, 0, 4, 5, 4, 0])  # depth-first
SUBTREE = np.array([9, 3, 1, 1, 4, 2, 1, 1, 1])
RANK = np.array([4, 0, 7, 2, 8, 1, 3, 6, 5], np.int32)


def is_ancestor_or_self(node, of):
    while of != -1:
        if node == of:
            return True
        of = PARENT[of]
    return False


BLOCK = np.array([0, 0, 1, 1, 2, 2])  # of one copy of a sequence
COPIES = np.arange(12)
WRITTEN = np.array([1, 1, 0, 1, 1, 1, 0, 0, 0], bool)


def block_diffusion(t, s):
    (t_noisy, t), (s_noisy, s) = divmod(t, 6), divmod(s, 6)
    if s_noisy:
        return bool(t_noisy) and BLOCK[s] == BLOCK[t]
    return BLOCK[s] < BLOCK[t] or (not t_noisy and BLOCK[s] == BLOCK[t])


TABLE = {
    "causal": (masks.causal(9), lambda t, s: s <= t),
    "groups": (masks.groups(GROUP), lambda t, s: GROUP[s] <= GROUP[t]),
    "bidirectional": (masks.bidirectional(9), lambda t, s: True),
    "prefix": (masks.prefix(9, 4), lambda t, s: s < 4 or s <= t),
    "packed causal": (masks.packed(DOCUMENT), lambda t, s: DOCUMENT[t] == DOCUMENT[s] and s <= t),
    "packed": (masks.packed(DOCUMENT, both_ways=True), lambda t, s: DOCUMENT[t] == DOCUMENT[s]),
    "window": (masks.window(9, 3), lambda t, s: 0 <= t - s < 3),
    "tree": (columns(STEPS, STEPS, STEPS + SUBTREE), lambda t, s: is_ancestor_or_self(s, t)),
    "random order": (masks.random_order(RANK), lambda t, s: RANK[s] <= RANK[t]),
    "before in a random order": (masks.random_order(RANK, strict=True), lambda t, s: RANK[s] < RANK[t]),
    "block diffusion": (masks.clean_and_noisy(BLOCK), block_diffusion),
    "cache": (masks.cache(STEPS, STEPS, WRITTEN), lambda t, s: WRITTEN[s] and s <= t),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_mask_of_the_table_is_its_brute_force_definition(name):
    visibility, sees = TABLE[name]
    assert all(isinstance(column, np.ndarray) and column.dtype == np.int32 for column in visibility)
    np.testing.assert_array_equal(visibility.as_array(), brute_force(len(visibility.q_time), sees))


TRACED = {  # of arrays that are each sample's own
    "groups": (masks.groups, [GROUP, np.sort(RANK)]),
    "prefix": (lambda seen: masks.prefix(9, seen), [0, 4]),
    "packed": (masks.packed, [DOCUMENT, np.array([7, 7, 3, 3, 3, 3, 4, -1, -1])]),
    "packed both ways": (lambda document: masks.packed(document, both_ways=True), [DOCUMENT, DOCUMENT[::-1]]),
    "random order": (masks.random_order, [RANK, RANK[::-1]]),
    "cache": (lambda written: masks.cache(STEPS[2:6:3], STEPS, written), [WRITTEN, ~WRITTEN]),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_is_traced_gives_what_is_known_gives(name):
    build, rows = TRACED[name]
    rows = np.stack([np.asarray(row) for row in rows])
    rows = rows if rows.dtype == bool else rows.astype(np.int32)
    known = build(rows)
    assert all(isinstance(column, np.ndarray) for column in known)
    found = jax.jit(lambda rows: build(rows).as_array())(rows)
    np.testing.assert_array_equal(found, known.as_array())
    for row, mask in zip(rows, known.as_array()):
        np.testing.assert_array_equal(mask, build(row if row.ndim else int(row)).as_array())


def test_padding_of_packed_documents_is_seen_by_nobody():
    seen = masks.packed(np.array([0, 0, 1, -1, -1])).as_array()
    assert not seen[:, 3:].any()
    np.testing.assert_array_equal(seen[:3, :3], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_masks_are_data_that_may_differ_by_sample_and_be_traced():
    rows = [TABLE[name] for name in ("causal", "window", "tree", "bidirectional")]
    batch = Visibility(*(jnp.stack([jnp.asarray(row[0][column]) for row in rows]) for column in range(3)))
    expected = np.stack([brute_force(9, sees) for _, sees in rows])
    np.testing.assert_array_equal(jax.jit(Visibility.as_array)(batch), expected)


# ---- masks composed


PAIRS = [(a, b) for a in TABLE for b in TABLE if len(TABLE[a][0].q_time) == len(TABLE[b][0].q_time)]


def is_intervals(mask, times):
    """Whether every key is seen by a run of queries, in the order of these times."""
    seen = mask[np.lexsort(times[::-1])]
    return all(np.ptp(np.flatnonzero(column)) + 1 == column.sum() for column in seen.T if column.any())


@pytest.mark.parametrize(("compose", "operation"), [(masks.both, np.logical_and), (masks.either, np.logical_or)])
def test_masks_compose_where_their_times_give_an_order_and_are_refused_elsewhere(compose, operation):
    composed = 0
    for (a, _), (b, _) in ((TABLE[a], TABLE[b]) for a, b in PAIRS):
        mask = operation(a.as_array(), b.as_array())
        if is_intervals(mask, (a.q_time, b.q_time)) or is_intervals(mask, (b.q_time, a.q_time)):
            np.testing.assert_array_equal(compose(a, b).as_array(), mask)
            composed += 1
        else:
            with pytest.raises(UserError, match="not one of intervals"):
                compose(a, b)
    assert len(PAIRS) / 2 < composed < len(PAIRS)  # both happen


def test_masks_of_samples_compose_sample_by_sample():
    rows = [masks.packed(DOCUMENT), masks.window(9, 3)]
    batch = Visibility(*(np.stack(columns) for columns in zip(*rows)))
    expected = [masks.both(masks.groups(GROUP), row).as_array() for row in rows]
    np.testing.assert_array_equal(masks.both(masks.groups(GROUP), batch).as_array(), expected)


def test_traced_masks_compose_where_they_share_their_times():
    time = jnp.arange(9, dtype=jnp.int32)
    packed, window = (
        jax.tree.map(jnp.asarray, TABLE[name][0])._replace(q_time=time) for name in ("packed causal", "window")
    )
    expected = packed.as_array() & window.as_array()
    np.testing.assert_array_equal(jax.jit(lambda a, b, t: masks.both(a._replace(q_time=t), b._replace(q_time=t)).as_array())(
        packed, window, time), expected)  # fmt: skip
    with pytest.raises(UserError, match="share their times"):
        masks.both(packed, jax.tree.map(jnp.copy, window))
    with pytest.raises(UserError, match="share their times"):
        masks.either(packed, window)


def test_rows_and_columns_of_a_grid_are_refused():
    """Axial attention is not of intervals in any order of the queries."""
    row, column = np.divmod(np.arange(9, dtype=np.int32), 3)
    with pytest.raises(UserError, match="not one of intervals"):
        masks.either(masks.packed(row, both_ways=True), Visibility(column, column, column + 1))


# ---- blocks


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (4, 2), (9, 9), (5, 16)])
@pytest.mark.parametrize("name", TABLE)
def test_what_blocks_say_of_their_entries_is_true(name, sizes):
    visibility, _ = TABLE[name]
    mask, (queries, keys) = visibility.as_array(), sizes
    kinds = masks.block_kinds(visibility, *sizes)
    np.testing.assert_array_equal(jax.jit(lambda v: masks.block_kinds(v, *sizes))(visibility), kinds)
    for i, j in np.ndindex(*kinds.shape):
        block = mask[i * queries : (i + 1) * queries, j * keys : (j + 1) * keys]
        whole = block.all() and block.shape[1] == keys
        assert kinds[i, j] in ((masks.FULL, masks.PARTIAL) if whole else (masks.PARTIAL, masks.SKIPPED))
        assert not (kinds[i, j] == masks.SKIPPED and block.any())
    if sizes == (1, 1):
        np.testing.assert_array_equal(kinds, np.where(mask, masks.FULL, masks.SKIPPED))


def test_ordered_masks_leave_out_every_block_that_nobody_sees():
    """Where times rise along the sequence, four numbers a block know as much as the entries do."""
    group = np.repeat(np.arange(10), np.arange(1, 11) ** 2).astype(np.int32)
    document = np.repeat(np.arange(8), 64).astype(np.int32)
    for visibility in (masks.causal(300), masks.groups(group), masks.packed(document), masks.window(300, 40)):
        mask, kinds = visibility.as_array(), masks.block_kinds(visibility, 32, 64)
        for i, j in np.ndindex(*kinds.shape):
            assert (kinds[i, j] > 0) == mask[i * 32 : (i + 1) * 32, j * 64 : (j + 1) * 64].any()


def test_samples_have_blocks_of_their_own():
    rows = [masks.causal(9), masks.window(9, 3)]
    batch = Visibility(*(np.stack(columns) for columns in zip(*rows)))
    expected = [masks.block_kinds(row, 2, 4) for row in rows]
    np.testing.assert_array_equal(masks.block_kinds(batch, 2, 4), expected)


# ---- trees of drafts


def random_parents(rng, count, *, roots):
    """Parents of a random tree, or several: each node below any before it."""
    return np.array([-1 if node < roots else rng.integers(0, node) for node in range(count)])


def above(parent, node):
    """A node and all above it."""
    while node >= 0:
        yield node
        node = parent[node]


def seen_in(parent):
    """[t, s]: s is t, or above it."""
    return np.array([[s in above(parent, t) for s in range(len(parent))] for t in range(len(parent))])


TREES = np.random.default_rng(0)
PARENTS = {
    "a root alone": np.array([[-1]]),
    "a chain": np.arange(-1, 8)[None],
    "a star": np.array([[-1, *[0] * 8]]),
    "of the table": PARENT[None],
    "several roots": np.stack([random_parents(TREES, 12, roots=1 + row % 5) for row in range(30)]),
    "roots alone": np.full((1, 6), -1),
    "random": np.stack([random_parents(TREES, 17, roots=1) for _ in range(60)]),
    "deep": np.stack([np.array([-1, 0, *TREES.integers([0, 1, 2, 3, 4], [2, 3, 4, 5, 6])]) for _ in range(20)]),
}


@pytest.mark.parametrize("name", PARENTS)
def test_a_node_sees_itself_and_what_is_above_it(name):
    parent = PARENTS[name].astype(np.int32)
    expected = np.stack([seen_in(row) for row in parent])
    np.testing.assert_array_equal(masks.ancestors(jnp.asarray(parent)), expected.swapaxes(1, 2))
    visibility = masks.tree(jnp.asarray(parent))
    np.testing.assert_array_equal(visibility.as_array(), expected)
    np.testing.assert_array_equal(np.sort(visibility.q_time), np.broadcast_to(np.arange(parent.shape[1]), parent.shape))


SLOTS = 10
PADDED = masks.causal(SLOTS)._replace(
    k_start=np.where(np.isin(np.arange(SLOTS), [0, 1, 4]), INFINITY, np.arange(SLOTS))
)
BY_ROW = np.stack([np.where(np.arange(SLOTS) < hidden, INFINITY, np.arange(SLOTS)) for hidden in (0, 2, 3)])
SEQUENCES = {  # and which of its slots are hidden (B, S)
    "causal": (masks.causal(SLOTS), np.zeros((3, SLOTS), bool)),
    "with hidden slots": (PADDED, np.tile(PADDED.k_start == INFINITY, (3, 1))),
    "with a prefix of each row's own length": (masks.causal(SLOTS)._replace(k_start=BY_ROW), BY_ROW == INFINITY),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("fed", [None, [0], [3], [4, 1, 6]])
def test_nodes_see_what_is_before_their_root_and_no_slot_from_it_on(name, fed):
    visibility, hidden = SEQUENCES[name]
    visibility = masks.Visibility(*(np.asarray(column, np.int32) for column in visibility))
    slot, count = np.array([9, 5, 3], np.int32), 7
    parent = np.stack([random_parents(TREES, count, roots=1) for _ in slot]).astype(np.int32)
    nodes = np.arange(count, dtype=np.int32) if fed is None else np.array(fed, np.int32)
    found = masks.behind(visibility, masks.Branches(jnp.asarray(slot), jnp.asarray(parent), nodes))
    before = (np.arange(SLOTS) < slot[:, None]) & ~hidden
    trees = np.stack([seen_in(row)[nodes] for row in parent])
    expected = np.concatenate([np.broadcast_to(before[:, None], (3, len(nodes), SLOTS)), trees], axis=2)
    np.testing.assert_array_equal(found.as_array(), expected)


def test_a_window_ends_for_nodes_by_their_time_as_it_does_for_the_root():
    """What ends being seen before the root's time is seen by no node; the rest may end within the tree."""
    time = np.arange(SLOTS, dtype=np.int32)
    window = masks.Visibility(time, time, time + 3)
    branches = masks.Branches(jnp.array([6]), jnp.array([[-1, 0, 1]]), np.arange(3))
    seen = np.asarray(masks.behind(window, branches).as_array())[0]
    assert not seen[:, :4].any()
    assert not seen[:, 6:SLOTS].any()
    np.testing.assert_array_equal(seen[0, 4:6], [True, True])
