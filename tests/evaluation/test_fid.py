"""`python -m evaluation.fid`: its last line, its sides, and what it says of bad input."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from evaluation import fid
from evaluation.inception import SHAPES

RANDOM = np.random.default_rng(0)
DEEPEST = ("Mixed_7", "fc")  # what random weights leave out here, as the real ones at hand do


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random numbers that keep the scale of activations, for what does not depend on the numbers."""
    path = tmp_path_factory.mktemp("weights") / "random.npz"
    arrays = {
        name: RANDOM.standard_normal(shape, np.float32) * (2 / np.prod(shape[:-1])) ** 0.5
        for name, shape in SHAPES.items()
        if not name.startswith(DEEPEST)
    }
    np.savez(path, **{name: x * 0.1 if x.ndim == 1 else x for name, x in arrays.items()})
    return path


@pytest.fixture
def sides(tmp_path):
    """An npz of 12 images, and a folder of 9 others that are brighter."""
    images = RANDOM.integers(0, 256, (21, 12, 12, 3), np.uint8)
    images[12:] = images[12:] // 2 + 100
    np.savez(tmp_path / "a.npz", arr_0=images[:12])
    (tmp_path / "b").mkdir()
    for n, image in enumerate(images[12:]):
        Image.fromarray(image).save(tmp_path / "b" / f"{n}.png")
    return str(tmp_path / "a.npz"), str(tmp_path / "b")


def last_line(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


@pytest.mark.parametrize("features", ["64", "768"])
def test_the_last_line_says_what_was_measured(weights, sides, capsys, features):
    assert fid.main([*sides, f"--features={features}", f"--weights={weights}"]) == 0
    found, err = last_line(capsys)
    assert found["fid"] is None
    assert found[f"fid_{features}"] > 0
    assert (found["n_a"], found["n_b"]) == (12, 9)
    assert found["features"] == features
    assert found["images_per_second"] > 0
    assert len(found["weights_sha256"]) == 64
    assert all(np.isfinite(found[name]) for name in ("kid", "precision", "recall", "density", "coverage"))
    assert found["parameters"]["kid"] == {"subsets": 100, "size": 1000}
    assert found["resolution"] is None
    assert found["versions"]["jax"]
    # 12 and 9 images are too few for either covariance: said in the line and on the screen.
    assert any(w.startswith(f"fid_{features}: 12 samples are too few") for w in found["warnings"])
    assert f"warning: fid_{features}: 12 samples are too few" in err
    assert fid.main([sides[0], sides[0], f"--features={features}", f"--weights={weights}"]) == 0
    same, _ = last_line(capsys)
    assert same[f"fid_{features}"] == pytest.approx(0, abs=1e-6 * found[f"fid_{features}"])
    assert same["precision"] == same["recall"] == 1


def test_statistics_stand_for_images_in_a_distance_and_nowhere_else(weights, sides, tmp_path, capsys):
    mean, covariance = np.zeros(64), np.eye(64)
    np.savez(tmp_path / "s.npz", mu=mean, sigma=covariance)
    assert fid.main([sides[0], str(tmp_path / "s.npz"), "--features=64", f"--weights={weights}"]) == 0
    found, _ = last_line(capsys)
    assert found["fid_64"] > 0
    assert found["kid"] is None
    assert "only the statistics" in found["missing"]["kid"]
    assert found["n_b"] is None
    np.savez(tmp_path / "counted.npz", mu=mean, sigma=covariance, n=500)
    assert fid.main([sides[0], str(tmp_path / "counted.npz"), "--features=64", f"--weights={weights}"]) == 0
    assert last_line(capsys)[0]["n_b"] == 500


def test_a_dataset_is_named_by_its_split(weights, sides, capsys):
    assert fid.main([sides[0], "digits:none", "--features=64", f"--weights={weights}"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown split 'none'")


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("mixed", r"mixed sizes \(12x12 and 6x12\)"), ("empty", "holds no images"), ("absent", "is not there"),
        ("size", r"statistics of the features 100 \(100\); 64 were asked for"), ("deep", "choose one with --features"),
        ("code", r"wants to use builtins\.print"), ("weights", "there is no file"), ("nan", "not finite"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(weights, sides, tmp_path, capsys, case, message):
    a, b, features = *sides, "64"
    if case == "mixed":
        Image.new("RGB", (12, 6)).save(f"{b}/9.png")
    elif case == "empty":
        (tmp_path / "e").mkdir()
        b = str(tmp_path / "e")
    elif case == "absent":
        b = str(tmp_path / "none")
    elif case == "size":
        b = str(tmp_path / "s.npz")
        np.savez(b, mu=np.zeros(100), sigma=np.eye(100))
    elif case == "deep":
        features = "2048"
    elif case == "code":
        weights = tmp_path / "evil.pickle"
        weights.write_bytes(pickle.dumps({"params": Evil()}))
    elif case == "weights":
        weights = tmp_path / "none.npz"
    elif case == "nan":
        with np.load(weights) as file:
            arrays = dict(file)
        arrays["Conv2d_1a_3x3/kernel"][0, 0, 0, 0] = np.nan
        weights = tmp_path / "nan.npz"
        np.savez(weights, **arrays)
    assert fid.main([a, b, f"--features={features}", f"--weights={weights}"]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert "code was run" not in captured.out
