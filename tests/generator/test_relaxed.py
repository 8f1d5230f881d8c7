"""The lossy rules of GSD and LANTERN: what stands, enumerated over all drafts, and how far the result is from p."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_model import TableModel

from generator.sampling.codebook import near_distance, nearest
from generator.sampling.distribution import Filters
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.gsd import cluster_ratio, gsd
from generator.sampling.interface import Aids
from generator.sampling.jacobi import GUMBEL
from generator.sampling.lantern import lantern, relaxed_ratio
from generator.sampling.rules import residual
from generator.sampling.samplers import asks, build_sampler
from generator.sampling.speculative import speculative
from jobs.feeds import TokenFeed
from models.errors import UserError

CASES = 80  # pairs of p and q
ANYWHERE, NOWHERE = float("inf"), 0.0  # distances


def drawn_at_random(codes, seed=0, cases=CASES):
    """p and q (cases, V) that have nothing to do with one another, some of p excluded, and the codes."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(codes), (2, cases))
    p[: cases // 4, :2] = 0
    p /= p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return *(jnp.log(jnp.asarray(x, jnp.float32)) for x in (p, q)), jnp.asarray(
            rng.normal(size=(codes, 3)), jnp.float32
        )


def every_draft(log_p, log_q):
    """p, q (cases, V, V) for each draft, and the drafts (cases, V)."""
    cases, codes = log_p.shape
    wide = [jnp.broadcast_to(x[:, None], (cases, codes, codes)) for x in (log_p, log_q)]
    return *wide, jnp.broadcast_to(jnp.arange(codes), (cases, codes))


def outcome(log_q, log_ratio, log_left):
    """What a rule draws (cases, V), and how often a draft stands (cases,): ratios (cases, V), replacements (cases, V, V)."""
    q, kept, left = exact(log_q), np.minimum(exact(log_ratio), 1), exact(log_left)
    left /= left.sum(axis=-1, keepdims=True)
    law = q * kept + ((q * (1 - kept))[..., None] * left).sum(axis=1)
    np.testing.assert_allclose(law.sum(axis=-1), 1, atol=1e-5)
    return law, (q * kept).sum(axis=-1)


def exact(log):
    return np.exp(np.asarray(log, np.float64))


def distance(a, b):
    """Total variation."""
    return np.abs(np.asarray(a) - np.asarray(b)).sum(axis=-1) / 2


def plain(log_p, log_q):
    return outcome(log_q, log_p - log_q, residual(*every_draft(log_p, log_q)[:2]))


def by_gsd(log_p, log_q, codes, relax, apart):
    wide_p, wide_q, drafts = every_draft(log_p, log_q)
    ratio = jax.jit(lambda p, q: cluster_ratio(p, q, drafts, codes, relax, apart))(wide_p, wide_q)
    return ratio, *outcome(log_q, ratio, residual(wide_p, wide_q))


def by_lantern(log_p, log_q, codes, relax, near, leave_out=False):
    wide_p, wide_q, drafts = every_draft(log_p, log_q)
    ratio, left = rule(wide_p, wide_q, drafts, codes, relax, near, leave_out)
    return ratio, *outcome(log_q, ratio, left)


def rule(log_p, log_q, drafts, codes, relax, near, leave_out):
    """LANTERN's ratios and replacements."""

    @jax.jit
    def run(log_p, log_q):
        neighbours, left = nearest(codes, near)[drafts], residual(log_p, log_q)
        ratio = relaxed_ratio(log_p, log_q, drafts, neighbours, relax)
        return ratio, far_from(left, neighbours) if leave_out else left

    return run(log_p, log_q)


def far_from(log_left, neighbours):
    """Log of what may replace tokens without their neighbours, as in the public code; with them where nothing else is left."""
    far = jnp.put_along_axis(log_left, neighbours, -jnp.inf, axis=-1, inplace=False)
    return jnp.where(far.max(axis=-1, keepdims=True) > -jnp.inf, far, log_left)


def near_mass(p, q, codes, relax, near):
    """p(A(x)) and p of all neighbours of each code (cases, V), one code after the other."""
    codes, bound = np.asarray(codes), relax * q if relax < 1 else (relax - 1) * p
    count = min(int(np.ceil(near * len(codes))), len(codes) - 1)
    moved, whole = np.zeros_like(p), np.zeros_like(p)
    for code, own in enumerate(codes):
        order = [other for other in np.argsort(((codes - own) ** 2).sum(axis=-1)) if other != code][:count]
        whole[:, code] = p[:, order].sum(axis=-1)
        goes_on = np.ones(len(p), bool)
        for other in order:
            goes_on &= moved[:, code] + p[:, other] <= bound[:, code] + 1e-7
            moved[:, code] += np.where(goes_on, p[:, other], 0)
    return moved, whole


# ---- which codes are near


def test_neighbours_and_the_distance_within_which_a_share_of_the_codes_lies():
    codes = drawn_at_random(40)[2]
    apart = np.array(((codes[:, None] - codes) ** 2).sum(axis=-1))
    np.fill_diagonal(apart, np.inf)
    table = nearest(codes, 0.11)
    assert table.shape == (40, 5)  # a share is rounded up
    np.testing.assert_array_equal(table, np.argsort(apart, axis=1)[:, :5])
    assert nearest(codes, 1.0).shape == (40, 39)
    assert nearest(codes, 0.0).shape == (40, 0)
    for share in (0.0, 0.06, 1.0):
        assert (apart < float(near_distance(codes, share))).sum() / (40 * 39) == pytest.approx(share, abs=3e-3)
    larger = near_distance(jnp.tile(codes, (10, 1)) * 3, 0.5)  # of which some are measured
    assert float(larger) == pytest.approx(9 * float(near_distance(codes, 0.5)), rel=0.1)


# ---- grouped speculative decoding


@pytest.mark.parametrize("codes", [1, 6, 64])
def test_gsd_of_a_cluster_of_one_is_exact(codes):
    log_p, log_q, book = (
        drawn_at_random(codes) if codes > 2 else (*[jnp.zeros((1, codes)) - np.log(codes)] * 2, jnp.eye(codes))
    )
    for relax, apart in ((NOWHERE, ANYWHERE), (ANYWHERE, NOWHERE)):
        ratio, law, kept = by_gsd(log_p, log_q, book, relax, apart)
        np.testing.assert_allclose(np.exp(ratio), np.exp(log_p - log_q), rtol=1e-5)
        np.testing.assert_allclose(law, np.exp(log_p), atol=1e-5)
        np.testing.assert_allclose(kept, plain(log_p, log_q)[1], atol=1e-6)


@pytest.mark.parametrize("codes", [5, 64])
def test_gsd_takes_the_mass_of_the_ranks_around_a_draft(codes):
    log_p, log_q, book = drawn_at_random(codes, cases=20)
    relax, apart = 0.1, float(near_distance(book, 0.8))
    ratio, *_ = by_gsd(log_p, log_q, book, relax, apart)
    p, q, book = (np.asarray(x, np.float64) for x in (np.exp(log_p), np.exp(log_q), book))
    sizes = []
    for case, code in np.ndindex(p.shape):
        order = np.argsort(-p[case], kind="stable").tolist()
        rank = order.index(code)
        around = order[max(rank - 6, 0) : rank] + order[rank + 1 : rank + 8]
        cluster = [code] + [
            other
            for other in around
            if abs(p[case, other] - p[case, code]) < relax
            and ((book[other] - book[code]) ** 2).sum() < apart
            and p[case, other] > 0
        ]
        expected = p[case, cluster].sum() / q[case, cluster].sum() if p[case, code] else 0
        assert np.exp(ratio[case, code]) == pytest.approx(expected, rel=1e-4), (case, code)
        sizes.append(len(cluster))
    assert max(sizes) == {5: 4, 64: 14}[codes]


@pytest.mark.parametrize("codes", [6, 64])
def test_gsd_is_lossy_and_no_farther_from_p_than_drafts_are(codes):
    """Where a draft has more than its share it is by what it took up: with exact replacements that is the whole distance."""
    log_p, log_q, book = drawn_at_random(codes)
    ratio, law, kept = by_gsd(log_p, log_q, book, 0.15, ANYWHERE)
    p, q = exact(log_p), exact(log_q)
    moved, apart, strict = distance(law, p), distance(p, q), plain(log_p, log_q)[1]
    print(f"gsd, {codes} codes: {moved.mean():.3f} from p, drafts {apart.mean():.3f}; "
          f"{kept.mean():.3f} stand, by the exact rule {strict.mean():.3f}")  # fmt: skip
    assert (moved > 1e-3).mean() > 0.9
    # A cluster may weigh less than its draft, which then has less than its share: what all gained bounds the rest.
    gained = q * np.exp(np.minimum(ratio, 0)) - np.minimum(p, q)
    expected = np.abs(gained - gained.sum(axis=-1, keepdims=True) * np.maximum(p - q, 0) / apart[:, None]).sum(-1) / 2
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert kept.mean() > strict.mean()
    assert moved.mean() < apart.mean()


# ---- LANTERN


@pytest.mark.parametrize("relax", [0.2, 0.8, 1.5, 4.0])
def test_lantern_counts_the_nearest_codes_as_the_draft(relax):
    log_p, log_q, book = drawn_at_random(6)
    p, q = exact(log_p), exact(log_q)
    moved, _ = near_mass(p, q, book, relax, 0.6)
    ratio, _, kept = by_lantern(log_p, log_q, book, relax, 0.6)
    np.testing.assert_allclose(np.exp(ratio), (p + moved) / q, rtol=1e-3, atol=1e-6)
    assert (kept >= plain(log_p, log_q)[1] - 1e-6).all()
    assert moved.max() > 0.05


@pytest.mark.parametrize(("relax", "near"), [(0.0, 0.5), (1.0, 0.5), (0.3, 0.0), (2.0, 0.0)])
def test_lantern_that_moves_nothing_is_exact(relax, near):
    log_p, log_q, book = drawn_at_random(6)
    ratio, law, kept = by_lantern(log_p, log_q, book, relax, near)
    np.testing.assert_allclose(np.exp(ratio), np.exp(log_p - log_q), rtol=1e-5)
    np.testing.assert_allclose(law, np.exp(log_p), atol=1e-5)
    np.testing.assert_allclose(kept, plain(log_p, log_q)[1], atol=1e-6)


@pytest.mark.parametrize("relax", [0.1, 0.4])
def test_lantern_moves_at_most_delta_given_a_draft_that_is_certain(relax):
    """The papers' bound. It does not hold where neighbours are left out of replacements."""
    log_p, _, book = drawn_at_random(6)
    near, p = 0.5, exact(log_p)
    wide_p, _, drafts = every_draft(log_p, log_p)
    certain = jnp.where(jnp.arange(6) == drafts[..., None], 0.0, -jnp.inf)
    moved, whole = near_mass(p, np.ones_like(p), book, relax, near)
    found = {}
    for leave_out in (False, True):
        ratio, left = rule(wide_p, certain, drafts, book, relax, near, leave_out)
        kept, left = exact(ratio)[..., None], exact(left)
        law = kept * exact(certain) + (1 - kept) * left / left.sum(axis=-1, keepdims=True)
        found[leave_out] = distance(law, exact(wide_p))
    print(f"lantern, delta {relax}, certain drafts: {found[False].mean():.3f} (most {found[False].max():.3f}) from p, "
          f"with neighbours left out {found[True].mean():.3f} (most {found[True].max():.3f})")  # fmt: skip
    np.testing.assert_allclose(found[False], moved, atol=1e-5)
    assert (found[False] <= relax + 1e-5).all()
    # All that the neighbours have, unless there is nothing else.
    some = p + whole < 1 - 1e-6
    np.testing.assert_allclose(found[True][some], whole[some], atol=1e-5)
    assert (found[True] > relax + 0.1).any()


@pytest.mark.parametrize("codes", [6, 64])
@pytest.mark.parametrize("relax", [0.15, 0.6, 3.0])
def test_lantern_is_lossy_by_what_drafts_gain_and_no_more_than_its_bound(codes, relax):
    log_p, log_q, book = drawn_at_random(codes)
    near, p, q = 0.25, exact(log_p), exact(log_q)
    _, law, kept = by_lantern(log_p, log_q, book, relax, near)
    _, other, same = by_lantern(log_p, log_q, book, relax, near, leave_out=True)
    found, published, apart, strict = distance(law, p), distance(other, p), distance(p, q), plain(log_p, log_q)[1]
    gained = np.minimum(near_mass(p, q, book, relax, near)[0], np.maximum(q - p, 0)).sum(axis=-1)
    print(f"lantern, {codes} codes, relax {relax}: {found.mean():.3f} (most {found.max():.3f}) from p, with neighbours left "
          f"out {published.mean():.3f}, drafts {apart.mean():.3f}; {kept.mean():.3f} stand, by the exact rule "
          f"{strict.mean():.3f}")  # fmt: skip
    np.testing.assert_allclose(found, gained, atol=2e-4)
    np.testing.assert_allclose(kept - strict, gained, atol=2e-4)
    np.testing.assert_array_equal(kept, same)
    assert found.max() > 0.003
    assert (found <= min(relax if relax < 1 else relax - 1, 1) + 1e-4).all()
    assert (found <= apart + 1e-4).all()
    assert (published <= apart + 1e-4).all()
    assert published.mean() > found.mean()


# ---- whole decoders


def decoded(method, model, images=4000):
    """Tokens (images, N), and tokens a call."""
    labels, scales = jnp.zeros(images, jnp.int32), np.full(model.spec.positions, 1.5, np.float32)

    @jax.jit
    def run():
        drafts = partial(FIRST_DRAFTS["uniform"].of, Aids())
        out = speculative(model, labels, jnp.arange(images), method=method, first_drafts=drafts, window=3, seed=0,
                          filters=Filters(), scales=scales)  # fmt: skip
        return out.tokens.ids[..., 0], out.calls

    ids, calls = run()
    truth = model.probabilities(scales, 1.0, 0)
    numbers = np.asarray(ids) @ 4 ** np.arange(model.spec.positions)[::-1]
    shares = np.bincount(numbers, minlength=len(truth)) / images
    return distance(shares, truth), model.spec.positions / float(calls.mean())


def test_decoders_draw_more_tokens_a_call_from_another_distribution():
    model, book = TableModel(codes=4), drawn_at_random(4)[2]
    methods = {
        "coupled_gumbel": GUMBEL,
        "gsd": gsd(book, relax=0.5, near=0.8),
        "lantern": lantern(book, relax=3.0, near=0.5),
    }
    found = {name: decoded(method, model) for name, method in methods.items()}
    for name, (apart, speed) in found.items():
        print(f"{name}: {apart:.3f} from the model's distribution, {speed:.3f} tokens a call")
    for name in ("gsd", "lantern"):
        assert found[name][0] > 1.5 * found["coupled_gumbel"][0]
        assert found[name][1] > found["coupled_gumbel"][1]


@pytest.mark.parametrize("name", ["gsd", "lantern"])
def test_a_config_section_builds_them_and_known_tokens_stay(name):
    model = TableModel(codes=4)
    section = {"name": name, "temperature": 1.0, "top_k": 2, "top_p": 1.0, "guidance_scale": 2.0, "guidance_schedule":
               "constant", "guidance_interval": (0.0, 1.0), "window": 3, "first_drafts": "uniform", "relax": 0.9,
               "near": 1.0}  # fmt: skip
    assert "codebook" in asks(section, model.spec)
    assert "codebook" not in asks({**section, "name": "jacobi"}, model.spec)
    sample, labels, images = build_sampler(section, 0, model), jnp.zeros(64, jnp.int32), jnp.arange(64)
    given = jnp.array([3, 0, 2, 1])

    def keep(state, log_p, positions):
        known = jnp.where(jnp.arange(4) == given[positions][..., None], 0.0, -jnp.inf)
        return jnp.where((positions % 2 == 0)[..., None], known, log_p)

    run = jax.jit(lambda codes: sample(model, labels, images, TokenFeed(), revise=keep, aids=Aids(codebook=codes)))
    out = run(drawn_at_random(4)[2])
    assert (out.tokens.ids[:, ::2, 0] == given[::2]).all()
    assert len(np.unique(out.tokens.ids[:, 1::2])) > 1
    with pytest.raises(UserError, match=f"{name} compares codes"):
        sample(model, labels, images, TokenFeed())
    for wrong in ({"near": 1.1}, {"near": -0.1}, {"relax": -0.1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            build_sampler({**section, **wrong}, 0, model)(
                model, labels, images, TokenFeed(), aids=Aids(codebook=jnp.eye(4))
            )
