import numpy as np
import pytest
from fidelity import load_metric

from evaluation.inception_score import inception_score
from models.errors import UserError


def test_undecided_logits_score_1():
    mean, std = inception_score(np.full((50, 7), -3, np.float32))
    assert mean == pytest.approx(1, abs=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


def test_certain_and_all_classes_alike_score_the_number_of_classes():
    # In one split all classes are alike for sure; p log p of what the softmax makes exactly 0 must not be nan.
    logits = np.where(np.eye(8)[np.arange(800) % 8] == 1, 0, -1e4).astype(np.float32)
    assert inception_score(logits, splits=1)[0] == pytest.approx(8, rel=1e-12)


def test_one_class_alone_scores_1():
    assert inception_score(np.tile(np.float32([9, 0, 0]), (30, 1)), splits=3)[0] == pytest.approx(1, abs=1e-12)


def test_samples_in_the_order_of_their_classes_are_not_judged_class_by_class():
    logits = 100 * np.eye(10, dtype=np.float32)[np.repeat(np.arange(10), 1000)]
    assert inception_score(logits, splits=10)[0] > 9.9


@pytest.mark.parametrize(("count", "splits"), [(1000, 10), (103, 10), (40, 1)])
def test_it_is_that_of_another_program(count, splits):
    fidelity = load_metric("metric_isc")
    import torch

    logits = (3 * np.random.default_rng(0).normal(size=(count, 20))).astype(np.float32)
    order = np.random.default_rng(5).permutation(count)
    theirs = fidelity.isc_features_to_metric(torch.from_numpy(logits[order]), splits, shuffle=False)
    mean, std = inception_score(logits, splits, seed=5)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-8, abs=1e-12)


def test_what_has_no_score():
    with pytest.raises(UserError, match="9 images in 10 splits"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(UserError, match="1 of 12 rows"):
        inception_score(np.vstack([np.zeros((11, 3)), [[0, np.nan, 0]]]))
