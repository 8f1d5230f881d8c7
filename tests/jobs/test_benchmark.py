"""The benchmark of samplers: what its command line means, and what a row says."""

import json
import shutil
import sys

import numpy as np
import pytest

from benchmarks import sampling
from benchmarks.sampling import drawn_by, main, possible, read_methods
from jobs.workdir import read_config
from models.errors import UserError


def test_methods_bring_fields_of_their_own():
    one, two = read_methods("siblings:window=8:rule=multi_round:branches=(0.5,0.25),gsd:near=0.1")
    assert one == ("siblings", {"window": 8, "rule": "multi_round", "branches": (0.5, 0.25)})
    assert two == ("gsd", {"near": 0.1})
    assert read_methods(one.label) == [one]
    assert one.at(window=16, top_k=3).fields == {**one.fields, "top_k": 3}
    assert one.at(window=16, top_k=3).label == one.label
    assert two.at(window=16).label == "gsd:near=0.1:window=16"


def test_all_samplers_are_compared_with_the_sequential_one():
    assert {method.name for method in read_methods("")} == set(sampling.SAMPLERS) - {"sequential"}
    assert read_methods("sequential,jacobi") == [("jacobi", {})]


@pytest.mark.parametrize(
    ("text", "said"),
    [("jacobian", "jacobi"), ("jacobi:windows=3", "window"), ("jacobi:window=a_few", "no int"), ("jacobi:smooth=1", "no bool"),
     ("jacobi:name=gsd", "unknown"), ("jacobi:top_k=3", "--top_k"), ("jacobi:guidance_scale=3", "--guidance")],
)  # fmt: skip
def test_what_is_no_method_is_told(text, said):
    with pytest.raises(UserError, match=said):
        read_methods(text)


def test_positions_know_the_call_that_drew_them():
    tokens, ends = drawn_by(np.array([[1, 3, 2, 0, 0, 0], [6, 0, 0, 0, 0, 0]]), 6)
    assert tokens.tolist() == [[1, 3, 3, 3, 2, 2], [6] * 6]
    assert ends.astype(int).tolist() == [[1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert (1 / tokens).sum(axis=1) == pytest.approx([3, 1])  # their calls


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sampling", *arguments])
    main()


def test_a_row_says_what_a_setting_costs_and_gives(workdir, monkeypatch, capsys, tmp_path):
    pictures = [tmp_path / "plot.png", tmp_path / "acceptance.png"]
    run(
        monkeypatch, f"--workdir={workdir}", "--methods=fixed_noise,zipar:window=2", "--guidance=2", "--window=4", "--images=6",
        "--accuracy_images=8", "--batch_size=4", "--rounds=1", "--json", f"--plot={pictures[0]}", f"--acceptance={pictures[1]}",
    )  # fmt: skip
    sequential, exact, lossy = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [row["method"] for row in (sequential, exact, lossy)] == ["sequential", "fixed_noise", "zipar"]
    assert [row["lossless"] for row in (sequential, exact, lossy)] == [True, True, False]
    assert [row["window"] for row in (sequential, exact, lossy)] == [None, 4, 2]
    assert (sequential["calls_per_image"], sequential["calls_ratio"]) == (16, 1)
    assert (lossy["calls_per_image"], lossy["calls_std"]) == (10, 0)  # 4 x 4 tokens, a row every two calls
    assert 1 < exact["calls_ratio"] <= 4
    assert exact["calls_ratio"] * exact["calls_per_image"] == pytest.approx(16)
    assert exact["same_tokens"] == 1
    assert exact["class_accuracy"] == sequential["class_accuracy"]
    for row in (sequential, exact, lossy):
        assert (row["guidance"], row["top_k"], row["images"], row["accuracy_images"]) == (2, 0, 6, 8)
        assert row["images_per_second"] > 0
        assert row["speed_ratio"] > 0
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_methods_that_lack_something_are_left_out_unless_they_are_named(workdir, capsys, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "tokens" / "frequencies.npz").unlink()
    methods = read_methods("jacobi:window=4,jacobi:window=4:first_drafts=uniform,zipar:window=2")
    assert possible(read_config(copy), copy, methods, named=False) == methods[1:]
    assert "left out: jacobi:window=4: there is no " in capsys.readouterr().err
    with pytest.raises(UserError, match="extract"):
        possible(read_config(copy), copy, methods, named=True)
