import numpy as np
import pytest

from configs import digits
from jobs import evaluate, train
from jobs.conditions import asked_captions, asked_classes, asked_conditions, fingerprints
from models.errors import UserError
from models.sharding import Reader


def test_imagenets_classes_may_be_named():
    found = asked_classes(("golden retriever", 3, "n01440764"), 1000, 5)
    np.testing.assert_array_equal(found, [207, 3, 0, 207, 3])


@pytest.mark.parametrize(
    ("asked", "classes", "said"),
    [(("cat",), 10, "by its number"), (("golden retreiver",), 1000, "did you mean 'golden retriever'"), ((10,), 10, "0 to 9")],
)  # fmt: skip
def test_classes_that_the_model_does_not_have_are_told(asked, classes, said):
    with pytest.raises(UserError, match=said):
        asked_classes(asked, classes, 4)


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        features = np.random.default_rng(0).normal(size=(2, 4, 3))
        arrays = {"features": features, "mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]])} | changes
        np.savez(tmp_path / "captions.npz", **{name: array for name, array in arrays.items() if array is not None})
        return str(tmp_path / "captions.npz"), arrays["features"]

    return write


def test_captions_are_asked_for_in_turn_and_padded_or_cut_to_what_the_model_takes(written):
    path, features = written()
    found = asked_captions(path, 6, 3, 3)
    np.testing.assert_array_equal(found.present, [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(found.features[1, 2:], features[1].astype(np.float32))
    np.testing.assert_array_equal(found.features[2, 4:], features[0, :2].astype(np.float32))
    assert found.features.dtype == np.float32
    cut = asked_captions(path, 3, 3, 2)
    np.testing.assert_array_equal(cut.features[1], features[1, :3].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": None}, "lacks the array 'mask'"),
        ({"features": np.zeros((2, 4, 5))}, r"the model needs \(N, S, 3\)"),
        ({"mask": np.ones((2, 3))}, r"mask \(2, 3\)"),
        ({"mask": np.array([[0, 1, 1, 0], [1, 1, 1, 1]])}, "must come first"),
        ({"mask": np.zeros((2, 4))}, "one or more"),
    ],
)
def test_captions_that_do_not_fit_are_told(written, changes, said):
    with pytest.raises(UserError, match=said):
        asked_captions(written(**changes)[0], 6, 3, 2)


def test_a_generator_of_captions_asks_for_them(tmp_path):
    config = digits.get_config()
    config.generator.condition = {"name": "text", "entries": 6, "features": 3}
    with pytest.raises(UserError, match="--features=FILE"):
        asked_conditions(config)
    config.sample.features = str(tmp_path / "none.npz")
    with pytest.raises(UserError, match="is not there"):
        asked_conditions(config)


@pytest.mark.parametrize(
    "job", [evaluate.run, lambda config, workdir: train.generator_stage(config, workdir, {}, Reader((0,), 1))]
)
def test_jobs_that_know_classes_only_refuse_captions(job, tmp_path):
    config = digits.get_config()
    config.generator.condition = {"name": "text", "entries": 6, "features": 3}
    with pytest.raises(UserError, match="is for generators of classes"):
        job(config, tmp_path)


def test_what_is_asked_for_is_known_by_the_files_contents(written):
    sample = digits.get_config().sample
    assert fingerprints(sample) == {}
    sample.features = written()[0]
    first = fingerprints(sample)
    written(features=np.zeros((2, 4, 3)))
    assert fingerprints(sample).keys() == {"features"}
    assert fingerprints(sample) != first
