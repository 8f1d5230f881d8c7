import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generator import cross_entropy as module
from generator.cross_entropy import cross_entropy, parts

B, T, D, V = 2, 12, 8, 50


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        3 * jax.random.normal(keys[0], (B, T, D)),
        jax.random.normal(keys[1], (D, V)),
        jax.random.randint(keys[2], (B, T), 0, V),
    )


def reference(hidden, kernel, targets):
    """In float64, by the definition."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    p = exponentials / exponentials.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
    mass = (p - np.eye(V)[np.asarray(targets)]) / (B * T)  # of the mean's gradient
    return -np.log(chosen), p.argmax(-1) == targets, np.einsum("btd,btv->dv", np.asarray(hidden, np.float64), mass)


@pytest.mark.parametrize("most", [2**27, 4 * B * V, 1])
def test_losses_hits_and_gradients_are_those_of_the_definition(case, most, monkeypatch):
    hidden, kernel, targets = case
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    losses, hits, gradient = reference(*case)

    def mean(kernel):
        found = cross_entropy(lambda x: x @ kernel, hidden, targets, V)
        return found[0].mean(), found

    (_, found), by_kernel = jax.jit(jax.value_and_grad(mean, has_aux=True))(kernel)
    np.testing.assert_allclose(found[0], losses, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(found[1], hits)
    np.testing.assert_allclose(by_kernel, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("most", "count"), [(2**27, 1), (B * T * V, 1), (B * T * V - 1, 2), (5 * B * V, 3), (1, T)])
def test_as_many_parts_as_are_needed_and_no_more(most, count, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    assert parts(B, T, V) == count


def test_the_backward_pass_of_parts_holds_no_more_logits_than_one(case, monkeypatch):
    hidden, kernel, targets = (jnp.tile(case[0], (1, 8, 1)), jnp.tile(case[1], (1, 64)), jnp.tile(case[2], (1, 8)))
    memory = []
    for most in (2**27, B * V * 64):
        monkeypatch.setattr(module, "MOST_LOGITS", most)
        loss = lambda k: cross_entropy(lambda x: x @ k, hidden, targets, 64 * V)[0].mean()  # noqa: E731
        memory.append(jax.jit(jax.grad(loss)).lower(kernel).compile().memory_analysis().temp_size_in_bytes)
    assert memory[1] < 0.2 * memory[0]


def test_equal_logits_are_won_by_the_first(case):
    zeros = jnp.zeros_like(case[1])
    hits = cross_entropy(lambda x: x @ zeros, case[0], jnp.zeros((B, T), jnp.int32).at[0, 3].set(1), V)[1]
    assert hits.sum() == B * T - 1
    assert not hits[0, 3]
