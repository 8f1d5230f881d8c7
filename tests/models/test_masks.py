import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import masks
from models.masks import INFINITY, Visibility


def columns(q_time, k_start, k_end):
    return Visibility(*(np.asarray(column, np.int32) for column in (q_time, k_start, k_end)))


def brute_force(length, sees):
    return np.array([[sees(t, s) for s in range(length)] for t in range(length)])


STEPS = np.arange(9)
GROUP = np.array([0, 1, 1, 1, 2, 2, 2, 2, 3])
DOCUMENT = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
DOCUMENT_START = np.array([0, 0, 0, 3, 3, 5, 5, 5, 5])
DOCUMENT_END = np.array([3, 3, 3, 5, 5, 9, 9, 9, 9])
PARENT = np.array([-1, 0, 1, 1, 0, 4, 5, 4, 0])  # depth-first
SUBTREE = np.array([9, 3, 1, 1, 4, 2, 1, 1, 1])
RANK = np.array([4, 0, 7, 2, 8, 1, 3, 6, 5])
FOREVER = np.full(9, INFINITY)


def is_ancestor_or_self(node, of):
    while of != -1:
        if node == of:
            return True
        of = PARENT[of]
    return False


TABLE = {
    "causal": (masks.causal(9), lambda t, s: s <= t),
    "groups": (columns(GROUP, GROUP, FOREVER), lambda t, s: GROUP[s] <= GROUP[t]),
    "bidirectional": (masks.bidirectional(9), lambda t, s: True),
    "prefix": (columns(STEPS, np.where(STEPS < 4, 0, STEPS), FOREVER), lambda t, s: s < 4 or s <= t),
    "packed causal": (columns(STEPS, STEPS, DOCUMENT_END), lambda t, s: DOCUMENT[t] == DOCUMENT[s] and s <= t),
    "packed": (columns(STEPS, DOCUMENT_START, DOCUMENT_END), lambda t, s: DOCUMENT[t] == DOCUMENT[s]),
    "window": (columns(STEPS, STEPS, STEPS + 3), lambda t, s: 0 <= t - s < 3),
    "tree": (columns(STEPS, STEPS, STEPS + SUBTREE), lambda t, s: is_ancestor_or_self(s, t)),
    "random order": (columns(RANK, RANK, FOREVER), lambda t, s: RANK[s] <= RANK[t]),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_mask_of_the_table_is_its_brute_force_definition(name):
    visibility, sees = TABLE[name]
    np.testing.assert_array_equal(masks.visible(visibility), brute_force(9, sees))


def test_masks_are_data_that_may_differ_by_sample_and_be_traced():
    rows = [TABLE[name] for name in ("causal", "window", "tree", "bidirectional")]
    batch = Visibility(*(jnp.stack([jnp.asarray(row[0][column]) for row in rows]) for column in range(3)))
    expected = np.stack([brute_force(9, sees) for _, sees in rows])
    np.testing.assert_array_equal(jax.jit(masks.visible)(batch), expected)


def test_a_cache_shows_what_is_written_before_the_query_only():
    k_start = np.array([0, 1, 2, INFINITY, INFINITY])
    queries = columns([2, 3], k_start, np.full(5, INFINITY))
    np.testing.assert_array_equal(masks.visible(queries), [[True, True, True, False, False]] * 2)


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
    np.testing.assert_array_equal(masks.visible(visibility), expected)
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
    np.testing.assert_array_equal(masks.visible(found), expected)


def test_a_window_ends_for_nodes_by_their_time_as_it_does_for_the_root():
    """What ends being seen before the root's time is seen by no node; the rest may end within the tree."""
    time = np.arange(SLOTS, dtype=np.int32)
    window = masks.Visibility(time, time, time + 3)
    branches = masks.Branches(jnp.array([6]), jnp.array([[-1, 0, 1]]), np.arange(3))
    seen = np.asarray(masks.visible(masks.behind(window, branches)))[0]
    assert not seen[:, :4].any()
    assert not seen[:, 6:SLOTS].any()
    np.testing.assert_array_equal(seen[0, 4:6], [True, True])
