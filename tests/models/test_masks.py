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
