"""What stands at one position, enumerated over all drafts: the law of what comes out, with no sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generator.sampling import walks
from generator.sampling.distribution import Filters, certain, target_distribution
from generator.sampling.noise import Noise
from generator.sampling.rules import k_seq_of, likelihood, residual, stands
from generator.sampling.trees import Tree

CASES, FEW = 200, 20  # pairs of p and q of a kind
SURE, STEPS = 1.0, 26  # a uniform at which nothing stands that may fall; halvings of [0, 1]


def exact(log):
    return np.exp(np.asarray(log, np.float64))


def normalised(x):
    return x / x.sum(axis=-1, keepdims=True)


def logarithm(shares):
    with np.errstate(divide="ignore"):
        return jnp.log(jnp.asarray(shares, jnp.float32))


def total_variation(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).sum(axis=-1) / 2


def pairs(codes, seed=0):
    """log p and log q (cases, V) of every kind that a sampler meets: -inf where a filter removes codes."""
    rng = np.random.default_rng(seed)
    alike, other = rng.dirichlet(np.ones(codes), (2, CASES))
    peaked = rng.dirichlet(np.full(codes, 0.2), CASES)
    one, two = np.eye(codes)[rng.integers(0, codes, (2, CASES))]
    half = np.arange(codes) < codes // 2
    few = [target_distribution(jnp.asarray(rng.normal(size=(CASES, codes)), jnp.float32), None, 1.0, Filters(top_k=2))
           for _ in range(2)]  # fmt: skip
    uniform = np.full((CASES, codes), 1 / codes)
    return {
        "any": (logarithm(alike), logarithm(other)),
        "near": (logarithm(alike), logarithm(normalised(alike * np.exp(0.1 * rng.normal(size=alike.shape))))),
        "peaked": (logarithm(peaked), logarithm(normalised(peaked**0.5))),
        "equal": (logarithm(alike), logarithm(alike)),
        "equal up to rounding": (logarithm(alike), jax.nn.log_softmax(logarithm(alike) + 1.0)),
        "disjoint": (logarithm(normalised(alike * half)), logarithm(normalised(other * ~half))),
        "certain p": (logarithm(one), logarithm(other)),
        "certain q": (logarithm(alike), logarithm(one)),
        "both certain": (logarithm(one), logarithm(two)),
        "top-k": tuple(few),
        "top-k of a uniform draft": (few[0], logarithm(uniform)),
    }


KINDS = tuple(pairs(3))


def all_kinds(codes, few=CASES):
    """A few cases of each kind: log p, log q, and which kind each is."""
    log_p, log_q = (jnp.concatenate([both[i][:few] for both in pairs(codes).values()]) for i in (0, 1))
    return log_p, log_q, np.repeat(KINDS, few)


def passing(log_q, log_ratio):
    """Share (cases, V) that is drafted and stands by a ratio."""
    return exact(log_q) * np.minimum(exact(jnp.where(log_q > -jnp.inf, log_ratio, 0.0)), 1)


# ---- one draft


@pytest.mark.parametrize("codes", [2, 3, 6])
def test_rejection_draws_p_and_lets_as_many_stand_as_any_rule(codes):
    log_p, log_q, _ = all_kinds(codes)
    p, q = exact(log_p), exact(log_q)
    drafts = jnp.broadcast_to(jnp.arange(codes), log_p.shape)
    wide = [jnp.broadcast_to(x[:, None], (*x.shape, codes)) for x in (log_p, log_q)]
    np.testing.assert_array_equal(likelihood(wide[0], drafts), log_p)
    kept = passing(log_q, log_p - log_q)
    chance = np.divide(kept, q, out=np.zeros_like(q), where=q > 0)
    for beside, stood in ((1 - 1e-5, True), (1 + 1e-5, False)):  # on both sides of the bound
        found = np.asarray(stands(*wide, drafts, jnp.asarray(chance * beside, jnp.float32)))
        checked = (q > 0) & (chance > 0) & (chance * beside < 1)
        assert (found[checked] == stood).all()
    assert not np.asarray(stands(*wide, drafts, jnp.zeros(drafts.shape)))[(p == 0) & (q > 0)].any()
    left = normalised(exact(residual(log_p, log_q)))
    assert (left >= 0).all()
    refused = 1 - kept.sum(axis=-1)
    np.testing.assert_allclose(kept + refused[:, None] * left, p, atol=1e-6)
    np.testing.assert_allclose(1 - refused, 1 - total_variation(p, q), atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_k_seq_shares_p_out_and_lets_as_many_stand_as_is_promised(k):
    log_p, log_q, kind = all_kinds(6)
    p, q = exact(log_p), exact(log_q)
    rule = jax.jit(k_seq_of)(log_p, log_q, jnp.full(len(log_p), k))
    both = (p > 0) & (q > 0)
    log_rho = [np.where(both, np.asarray(x, np.float64), 0) for x in (log_p, log_q, rule.ratio)]
    rho = np.exp((log_rho[0] - log_rho[1] - log_rho[2]).sum(axis=-1) / np.maximum(both.sum(axis=-1), 1))
    assert (rho > 1 - 1e-5).all()
    assert (rho < k * (1 + 1e-5)).all()
    one = passing(log_q, rule.ratio)
    beta = one.sum(axis=-1)
    kept = 1 - (1 - beta) ** k
    np.testing.assert_allclose(kept[both.any(axis=-1)], (rho * beta)[both.any(axis=-1)], atol=1e-5)  # what rho solves
    left = exact(rule.rest)
    assert (left >= 0).all()
    # The first of the k that passes is a draw from what passes.
    law = (kept / np.maximum(beta, 1e-30))[:, None] * one + (1 - kept)[:, None] * normalised(left)
    np.testing.assert_allclose(law, p, atol=1e-6)
    single = 1 - total_variation(p, q)
    assert (kept > single - 1e-6).all()
    most = np.minimum(p, 1 - (1 - q) ** k).sum(axis=-1)  # no rule draws a code that is not drafted
    assert (kept < most + 1e-6).all()
    assert (kept > (1 - (1 - 1 / k) ** k) * most - 1e-6).all()
    if k == 1:
        np.testing.assert_allclose(kept, single, atol=1e-6)
        drawn = single < 1 - 1e-5
        np.testing.assert_allclose(normalised(left)[drawn], normalised(exact(residual(log_p, log_q)))[drawn], atol=1e-3)
    else:
        assert (kept - single)[kind == "any"].mean() > 0.03


def test_k_seq_with_no_draft_leaves_p():
    log_p, log_q = pairs(5)["any"]
    rule = k_seq_of(log_p, log_q, jnp.zeros(CASES, jnp.int32))
    np.testing.assert_allclose(exact(rule.rest), exact(log_p), rtol=1e-6)


# ---- siblings


class Dice(Noise):
    """Uniforms that are given, in place of random ones: as `seed`."""

    def uniform(self, stream):
        return jnp.concatenate([jnp.zeros_like(self.seed[:, :1]), self.seed], axis=1)

    def fresh(self, size, stream):
        return jnp.zeros((len(self.seed), 1, size))


def siblings_in_turn(log_q, k, replaced):
    """Every tuple of k drafts: tokens (T, k), their chance (cases, T), what each is drawn from (cases, T, k, V)."""
    codes = log_q.shape[-1]
    tuples = np.array(list(itertools.product(range(codes), repeat=k)))
    chance, distributions = np.ones((len(log_q), len(tuples))), []
    now = jnp.broadcast_to(log_q[:, None], (len(log_q), len(tuples), codes))
    for token in tuples.T:
        distributions.append(now)
        chance = chance * exact(likelihood(now, jnp.broadcast_to(token, chance.shape)))
        if not replaced:
            rest = jnp.where(jnp.arange(codes) == token[:, None], -jnp.inf, now)
            rest = jnp.where(rest.max(axis=-1, keepdims=True) > -jnp.inf, jax.nn.log_softmax(rest), rest)
            # Where none is left the next is of a known code, as `siblings.ranked` has it.
            now = jnp.where(rest.max(axis=-1, keepdims=True) > -jnp.inf, rest, certain(jnp.asarray(token), codes))
    return tuples, chance, jnp.stack(distributions, axis=2)


def law_of(walk, log_p, tuples, chance, log_q, monkeypatch):
    """What a rule draws after the root (cases, V), and how often a sibling stands: bisects where each begins to fall."""
    (cases, codes), (count, k) = log_p.shape, tuples.shape
    rows = cases * count
    tokens = np.tile(tuples, (cases, 1))
    tree = Tree(
        jnp.asarray(np.pad(tokens, ((0, 0), (1, 0))), jnp.int32),
        jnp.asarray(np.tile([-1] + [0] * k, (rows, 1)), jnp.int32),
        jnp.concatenate([jnp.zeros((rows, 1, codes)), log_q.reshape(rows, k, codes)], axis=1),
    )
    wide = jnp.broadcast_to(jnp.repeat(log_p, count, axis=0)[:, None], (rows, k + 1, codes))
    drawn_from = []

    def draw(log_probs, noise):
        drawn_from.append(log_probs)
        return log_probs.argmax(axis=-1).astype(jnp.int32)

    monkeypatch.setattr(walks, "draw", draw)

    @jax.jit
    def run(uniform):
        dice = Dice(uniform, jnp.zeros(rows, jnp.int32), jnp.zeros((rows, k + 1), jnp.int32), 0)
        taken = walk(wide, tree, dice).taken[:, 1:]
        return taken, drawn_from.pop()

    law, going, stood = np.zeros((rows, codes)), np.ones(rows), np.zeros(rows)
    sure = jnp.full((rows, k), SURE)
    for number in range(k):  # given that all before it fall: where one of them always stands, `going` is 0
        low, high = np.zeros(rows), np.ones(rows)
        for _ in range(STEPS):
            middle = (low + high) / 2
            stands_there = np.asarray(run(sure.at[:, number].set(jnp.asarray(middle, jnp.float32)))[0])[:, number]
            low, high = np.where(stands_there, middle, low), np.where(stands_there, high, middle)
        at = np.where(high == 1, 1, low)
        law[np.arange(rows), tokens[:, number]] += going * at
        stood += going * at
        going = going * (1 - at)
    law += going[:, None] * normalised(exact(run(sure)[1]))
    shares = [(chance * x.reshape(cases, count)).sum(axis=1) for x in (*law.T, stood)]
    return np.stack(shares[:-1], axis=-1), shares[-1]


@pytest.mark.parametrize(("codes", "k"), [(3, 1), (6, 2), (4, 3)])
@pytest.mark.parametrize("replaced", [True, False])
def test_siblings_that_are_judged_one_after_the_other_leave_p(codes, k, replaced, monkeypatch):
    log_p, log_q, kind = all_kinds(codes, FEW)
    law, stood = law_of(walks.multi_round, log_p, *siblings_in_turn(log_q, k, replaced), monkeypatch)
    np.testing.assert_allclose(law, exact(log_p), atol=2e-6)
    single = 1 - total_variation(exact(log_p), exact(log_q))
    if k == 1:
        np.testing.assert_allclose(stood, single, atol=1e-6)
    assert (stood > single - 1e-6).all()
    gain = {name: (stood - single)[kind == name].mean() for name in ("any", "disjoint", "certain q")}
    assert gain["disjoint"] == pytest.approx(0, abs=1e-6)
    assert gain["certain q"] == pytest.approx(0, abs=1e-6)
    assert (gain["any"] > 0.03) == (k > 1)


@pytest.mark.parametrize(("codes", "k"), [(3, 1), (6, 2), (4, 3)])
def test_siblings_that_share_p_out_leave_p(codes, k, monkeypatch):
    log_p, log_q, _ = all_kinds(codes, FEW)
    law, stood = law_of(walks.k_seq, log_p, *siblings_in_turn(log_q, k, True), monkeypatch)
    np.testing.assert_allclose(law, exact(log_p), atol=2e-6)
    one = passing(log_q, k_seq_of(log_p, log_q, jnp.full(len(log_p), k)).ratio).sum(axis=-1)
    np.testing.assert_allclose(stood, 1 - (1 - one) ** k, atol=2e-6)


# ---- what is wrong is found: by how much, on average over random p and q


def first_then(kept, instead, p):
    """law of (draft stands with `kept`, else `instead`); shares of drafts in `p`."""
    return p * kept + (p * (1 - kept)).sum(axis=-1, keepdims=True) * instead


def ratio(p, q):
    return np.minimum(np.divide(p, q, out=np.zeros_like(p), where=q > 0), 1)


def left_of(p, q):
    return normalised(np.maximum(p - q, 1e-300))


def random_shares(codes, count, seed=3):
    return np.random.default_rng(seed).dirichlet(np.ones(codes), (count, 2000))


@pytest.mark.parametrize("codes", [3, 6])
def test_an_old_q_that_is_kept_after_its_draft_stood_is_found(codes):
    """A draft judged against p1 is a draw from p1; where q is stored, judging it by p2 / q gives something else."""
    q, p1, p2 = random_shares(codes, 3)
    stood = q * ratio(p1, q)  # of which token, before the second judgement; what is drawn instead is stored with p1
    anew = 1 - stood.sum(axis=-1, keepdims=True)

    def law(stored):
        of_new = first_then(ratio(p2, p1), left_of(p2, p1), anew * left_of(p1, q))
        return of_new + first_then(ratio(p2, stored), left_of(p2, stored), stood)

    right, wrong = (total_variation(law(stored), p2).mean() for stored in (p1, q))
    print(f"V = {codes}: {wrong:.3f} instead of 0")
    assert right < 1e-9
    assert wrong > 0.03


@pytest.mark.parametrize("codes", [3, 6])
def test_a_residual_that_is_not_normalised_is_found(codes):
    p, q = random_shares(codes, 2)
    left = np.maximum(p - q, 0)
    left[:, -1] += 1 - left.sum(axis=-1)  # what a uniform beyond its sum falls on
    wrong = total_variation(first_then(ratio(p, q), left, q), p).mean()
    print(f"V = {codes}: {wrong:.3f} instead of 0")
    assert wrong > 0.05


@pytest.mark.parametrize(("codes", "least"), [(3, 0.015), (5, 0.04)])
def test_siblings_from_the_residual_that_are_judged_as_if_from_p_are_found(codes, least):
    """What the public code of SJD-PAC does; the first draft is the coupled one, of q and then of p1, judged by p2."""
    q, p1, p2 = random_shares(codes, 3)

    def law(of_sibling):
        """of_sibling: (x, q's draft stood or not) -> what the second draft is drawn from."""
        total = np.zeros_like(p2)
        for x in range(codes):
            here = np.eye(codes)[x]
            rest = normalised(p1 * (1 - here))
            chance = p1[:, x, None] * (1 - ratio(p2, p1)[:, x, None])  # that x is drafted and falls
            left = left_of(p2, p1)
            sibling = normalised(np.maximum(of_sibling(p1, q) * (1 - here), 1e-300))
            total += here * (p1 * ratio(p2, p1))[:, x, None]
            total += chance * first_then(ratio(left, rest), left_of(left, rest), sibling)
        return total

    right = total_variation(law(lambda p, q: p), p2).mean()
    wrong = total_variation(law(lambda p, q: np.maximum(p - q, 1e-12)), p2).mean()
    print(f"V = {codes}: {wrong:.3f} instead of 0")
    assert right < 1e-9
    assert wrong > least
