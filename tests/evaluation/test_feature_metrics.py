from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.feature_metrics import FEATURE_SETS, compare, suffix
from evaluation.inception_score import inception_score
from evaluation.kernel_distance import kernel_distance
from evaluation.manifold import manifold_scores
from evaluation.statistics import Distance, Gaussian, Statistics, frechet_distance
from models.errors import UserError

POOLED = ("fid", "kid", "kid_std", "precision", "recall", "density", "coverage")


def features(name, count=40, *, seed=0, shift=0.0):
    size = FEATURE_SETS[name].size or 12
    return (np.random.default_rng(seed).normal(size=(count, size)) + shift).astype(np.float32)


def test_every_metric_is_that_of_its_own_function():
    a, b = features("64", 120), features("64", 100, seed=1, shift=0.2)
    report = compare({"64": a}, {"64": b}, seed=3)
    kernel = kernel_distance(a, b, seed=3)
    expected = {"fid": frechet_distance(Statistics.of(a), Statistics.of(b)).value, "kid": kernel.mean}
    expected |= {"kid_std": kernel.std, **manifold_scores(a, b)}
    assert report.metrics == {f"{name}_64": value for name, value in expected.items()}
    assert manifold_scores(a, b) != manifold_scores(b, a)  # so the order of the two is tested
    assert compare({"64": a}, {"64": b}, seed=4).metrics["kid_64"] != report.metrics["kid_64"]
    assert report.warnings == []


@pytest.fixture
def quick_frechet(monkeypatch):
    """Of the means alone: the decompositions of 2048 features take half a minute."""

    def distance(a, b):
        return Distance(
            float(((a.mean - b.mean) ** 2).sum()), 0.0, 0.0, 0.0, 0.0, (f"quick with {len(a.mean)} features",)
        )

    monkeypatch.setattr("evaluation.feature_metrics.frechet_distance", distance)


@pytest.mark.parametrize("name", ["64", "192", "768", "2048"])
def test_only_distances_of_2048_features_are_called_fid(name, quick_frechet):
    count = 12
    report = compare({name: features(name, count)}, {name: features(name, count + 1, seed=1)})
    ends = "" if name == "2048" else f"_{name}"
    assert suffix(name) == ends
    assert list(report.metrics) == [metric + ends for metric in POOLED]
    assert report.warnings == [f"fid{ends}: quick with {name} features"]
    assert ("fid" in report.missing) == (name != "2048")


def test_spatial_features_and_a_classifier_of_our_own_give_one_distance_each(quick_frechet):
    a = {name: features(name, 9) for name in ("spatial", "classifier")}
    b = {name: features(name, 9, seed=1, shift=0.5) for name in a}
    report = compare(a, b)
    assert report.metrics.keys() == {"sfid", "cfd"}
    for metric, name in {"sfid": "spatial", "cfd": "classifier"}.items():
        assert report.metrics[metric] == pytest.approx(((a[name].mean(0) - b[name].mean(0)) ** 2).sum(), rel=1e-4)
    assert report.missing.keys() == {*POOLED, "inception_score", "inception_score_std"}
    assert report.missing["kid"] == "the weights end before the 2048 features; FID needs whole ones."
    assert "end before the classifier" in report.missing["inception_score"]


def test_the_inception_score_needs_no_reference():
    logits = features("logits", 50)
    report = compare({"logits": logits}, {}, seed=2)
    mean, std = inception_score(logits, seed=2)
    assert report.metrics == {"inception_score": mean, "inception_score_std": std}
    assert report.missing.keys() == {*POOLED, "sfid"}
    assert report.warnings == [
        "inception_score: 50 images in 10 splits; published scores have 5000 in each, fewer give a lower one."
    ]


def test_statistics_alone_give_the_distance_and_say_why_no_more():
    a, b = features("64", 90), features("64", 90, seed=1)
    statistics = Statistics.of(b)
    for reference in (statistics, Gaussian(statistics.mean, statistics.covariance, None)):
        report = compare({"64": a}, {"64": reference})
        assert report.metrics == {"fid_64": compare({"64": a}, {"64": b}).metrics["fid_64"]}
        assert {f"{name}_64" for name in POOLED[1:]} <= report.missing.keys()
        assert "the reference has only the statistics" in report.missing["recall_64"]
    assert "64 features" not in str(report.warnings)
    few = compare({"64": a[:64]}, {"64": statistics}).warnings
    assert len(few) == 1
    assert few[0].startswith("fid_64: 64 samples are too few for the covariance of 64 features")
    report = compare({"64": Statistics.of(a)}, {"64": b})
    assert "the set of samples has only the statistics" in report.missing["kid_64"]


def test_given_statistics_go_before_those_of_the_rows():
    # A reference batch: statistics of a whole training set, and some of its images.
    a, b, whole = features("64", 90), features("64", 90, seed=1), features("64", 300, seed=2, shift=1)
    reference = SimpleNamespace(gaussians={"64": Statistics.of(whole)}, rows={"64": b})
    found = compare({"64": a}, reference).metrics
    assert found["fid_64"] == compare({"64": a}, {"64": whole}).metrics["fid_64"]
    assert found["precision_64"] == compare({"64": a}, {"64": b}).metrics["precision_64"]


def test_a_set_that_only_one_side_has():
    report = compare({"64": features("64")}, {"192": features("192")})
    assert report.metrics == {}
    assert "the reference has no such features" in report.missing["fid_64"]
    assert "the reference has no such features" in report.missing["coverage_64"]
    assert not any(name.endswith("_192") for name in report.missing)


def test_too_few_images_leave_out_what_needs_more():
    report = compare({"64": features("64", 4)}, {"64": features("64", 4, seed=1)})
    assert report.metrics.keys() == {"fid_64", "kid_64"}
    assert "too few" in report.missing["kid_std_64"]
    assert "no 5 nearest" in report.missing["precision_64"]
    report = compare({"64": features("64", 1)}, {"64": features("64", 1)})
    assert report.metrics == {}
    assert "two or more" in report.missing["fid_64"]


def test_features_that_cannot_be_right():
    good, broken = features("64"), features("64")
    broken[3, 3] = np.nan
    for a, b, side in [(broken, good, "the set of samples"), (good, broken, "the reference")]:
        with pytest.raises(UserError, match=f"1 of 40 rows of the 64 features of {side}"):
            compare({"64": a}, {"64": b})
    with pytest.raises(UserError, match="the reference has 64 features of size 192; the network gives 64"):
        compare({"64": good}, {"64": features("192")})
    with pytest.raises(UserError, match="of size 192"):
        compare({"64": good}, {"64": Statistics.of(features("192"))})
    with pytest.raises(UserError, match="size 12 against size 13"):
        compare({"classifier": features("classifier")}, {"classifier": np.zeros((40, 13))})
    with pytest.raises(UserError, match="did you mean 'spatial'"):
        compare({"spacial": good}, {})
