"""Verification against reference outputs: those of the originals, and folders that are made wrong here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from references import NPZ, excerpt, verified

from configs import base
from interop.state_dicts import read_state, write_state
from jobs import verify
from models.errors import UserError

ROOT = Path(__file__).parent.parent.parent
INPUTS = {"llamagen_c2i": 21, "llamagen_t2i": 10, "var": 27}  # by folder: arrays that nothing can compute


def edited(folder, edit):
    """The folder, its manifest changed in place by `edit`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


# ---- the originals' outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_every_array_of_the_originals_is_within_its_tolerance(shared, name, capsys):
    folder = shared / "parity" / name
    result, _ = verified(folder, capsys)
    assert result["failed"] == 0, [found for found in result["arrays"].items() if not found[1]["ok"]]
    assert result["skipped"] == {}
    names = [array for file in NPZ for array in np.load(folder / file).files]
    assert sorted([*result["arrays"], *result["inputs"]]) == sorted(names)
    assert len(result["inputs"]) == INPUTS[name]
    assert all(model["ok"] for model in result["models"].values())
    discrete = [found for found in result["arrays"].values() if "share_equal" in found and "max_abs_diff" not in found]
    assert discrete
    assert all(found["share_equal"] == 1 for found in discrete)


@pytest.mark.parametrize(
    ("name", "beginnings", "models"),
    [
        ("llamagen_c2i", ("vq/", "samp/", "rope/"), {"vq"}),
        ("llamagen_c2i", ("gqa/",), {"gqa"}),
        ("llamagen_t2i", ("t2i_short/",), {"t2i_short"}),
        ("var", ("vae/", "phi/", "samp/"), {"vae"}),
    ],
)
def test_a_part_of_a_folder_is_verified(shared, tmp_path, capsys, name, beginnings, models):
    result, lines = verified(excerpt(shared / "parity" / name, tmp_path / "part", *beginnings), capsys)
    assert result["failed"] == 0, lines
    assert set(result["models"]) == models
    assert max(found.get("of_tolerance", 0) for found in result["arrays"].values()) <= 1


# ---- what is wrong is found


@pytest.fixture(scope="module")
def small(shared, tmp_path_factory):
    """A part that is quickly verified."""
    return excerpt(shared / "parity" / "llamagen_c2i", tmp_path_factory.mktemp("small") / "f", "vq/", "samp/", "rope/")


@pytest.mark.parametrize(
    ("name", "index", "by", "found"),
    [
        ("vq/recon", (1, 2, 3, 4), 2e-3, "(1, 2, 3, 4)"),
        ("vq/indices", (1, 5), 1, "(1, 5)"),
        ("vq/recon_u8", (0, 0, 0, 0), 3, "(0, 0, 0, 0)"),
        ("samp/probs", (2, 7), 1e-4, "(2, 7)"),
        ("rope/x_rotated", (0, 3, 1, 9), np.nan, "nan"),
    ],
)
def test_one_wrong_number_is_one_failure_that_is_named(small, tmp_path, capsys, name, index, by, found):
    def change(other, array):
        if other == name:
            array = array.copy()
            array[index] += by
        return array

    folder = excerpt(small_source(small), tmp_path / "f", "vq/", "samp/", "rope/", change=change)
    result, lines = verified(folder, capsys)
    assert result["failed"] == 1
    assert [label for label, array in result["arrays"].items() if not array["ok"]] == [name]
    assert found in result["arrays"][name]["note"]
    assert any(line.startswith(f"  FAILED {name}: ") for line in lines)


def small_source(small):
    """`excerpt` reads both npz files of its source where the manifest names both."""
    return edited(small, lambda manifest: [manifest["arrays"].setdefault(file, {}) for file in NPZ])


def test_a_wrong_choice_comes_with_how_close_it_was(small, tmp_path, capsys):
    def change(name, array):
        return (array + (name == "vq/indices")).astype(array.dtype)

    result, _ = verified(excerpt(small_source(small), tmp_path / "f", "vq/", change=change), capsys)
    note = result["arrays"]["vq/indices"]["note"]
    assert "32 of 32 differ" in note
    with np.load(small / "ref.npz") as arrays:
        assert f"{arrays['vq/index_margin'][0, 0]:.3g} there" in note


def test_a_difference_within_the_tolerance_is_none(small, tmp_path, capsys):
    def change(name, array):
        return (array + 1e-5).astype(array.dtype) if name == "vq/latent" else array

    result, _ = verified(excerpt(small_source(small), tmp_path / "f", "vq/", change=change), capsys)
    assert result["failed"] == 0
    assert 1e-5 < result["arrays"]["vq/latent"]["max_abs_diff"] < 3e-5


def test_names_without_a_rule_are_skipped_and_fail(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "vq/images_u8")
    with np.load(folder / "ref.npz") as arrays:
        known = dict(arrays)
    np.savez(folder / "ref.npz", **known, **{"vq/mystery": np.zeros(3), "vq/latent": np.zeros(3), "new/x": np.zeros(3)})
    said = {"shape": [3], "dtype": "float64", "tolerance": "exact"}
    edited(folder, lambda manifest: manifest["arrays"]["ref.npz"].update({"vq/mystery": said}))
    result, _ = verified(folder, capsys)
    assert result["skipped"] == {
        "vq/mystery": "no rule for this name",
        "vq/latent": "the manifest gives no tolerance for it",
        "new/x": "no rule for this name",
    }
    assert result["failed"] == 3


def test_arrays_that_are_not_there_or_of_another_kind_fail(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "samp/")

    def edit(manifest):
        arrays = manifest["arrays"]["ref.npz"]
        arrays["rope/freqs_cis_grid5_hd8"] = arrays["rope/x_rotated"]
        arrays["rope/x"]["shape"] = [1, 2]
        arrays["samp/tie_probs"]["dtype"] = "float64"

    result, _ = verified(edited(folder, edit), capsys)
    notes = {label: array["note"] for label, array in result["arrays"].items() if not array["ok"]}
    assert set(notes) == {"rope/freqs_cis_grid5_hd8", "rope/x", "samp/tie_probs"}
    assert "lacks it" in notes["rope/freqs_cis_grid5_hd8"]
    assert "float32 (1, 17, 2, 64)" in notes["rope/x"]


def test_an_input_that_is_not_there_fails_what_needs_it(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/")
    with np.load(folder / "ref.npz") as arrays:
        np.savez(folder / "ref.npz", **{name: array for name, array in arrays.items() if name != "rope/x"})
    result, _ = verified(folder, capsys)
    assert {label for label, array in result["arrays"].items() if not array["ok"]} == {"rope/x", "rope/x_rotated"}


def test_files_of_one_model_must_hold_the_same(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "vq/images_u8", "vq/latent")
    state = dict(read_state(folder / "vq_ds16_c2i_tiny.safetensors", [()]))
    other = state["encoder.conv_in.bias"].copy()
    other[3] = np.nextafter(other[3], np.float32(np.inf))
    write_state(folder / "other.safetensors", {**state, "encoder.conv_in.bias": other}, ())
    (folder / "other.safetensors").replace(folder / "vq_ds16_c2i_tiny.safetensors")
    result, lines = verified(folder, capsys)
    assert result["models"]["vq"]["ok"] is False
    assert result["failed"] == 1
    assert any("encoder.conv_in.bias" in line and "FAILED vq: " in line for line in lines)


def test_the_hash_of_weights_by_rule_is_checked(shared, tmp_path, capsys):
    folder = excerpt(shared / "parity" / "llamagen_t2i", tmp_path / "f", "t2i_short/c", "t2i_short/emb_masks")
    rules = json.loads((folder / "rule_weights.json").read_text())
    rules["models"]["t2i_short"]["seed_name"] += "x"
    (folder / "rule_weights.json").write_text(json.dumps(rules))
    result, lines = verified(folder, capsys)
    assert result["models"]["t2i_short"]["ok"] is False
    assert any("sha256" in line for line in lines)


# ---- bad input


def damage(folder, what):
    """Make a folder unreadable in one way."""
    if what == "npz cut":
        (folder / "ref.npz").write_bytes((folder / "ref.npz").read_bytes()[:5000])
    elif what == "npz missing":
        (folder / "ref.npz").unlink()
    elif what == "no models":
        edited(folder, lambda manifest: manifest.update(models={}))
    elif what == "manifest cut":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-20])
    elif what == "manifest of another form":
        edited(folder, lambda manifest: manifest["arrays"]["ref.npz"]["vq/input"].pop("tolerance"))
    elif what == "weights missing":
        (folder / "vq_ds16_c2i_tiny.pt").unlink()
    elif what == "weights cut":
        weights = folder / "vq_ds16_c2i_tiny.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no rule":
        (folder / "rule_weights.json").unlink()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("npz cut", "ref.npz"), ("npz missing", "ref.npz"), ("no models", "no models"), ("manifest cut", "damaged"),
        ("manifest of another form", "tolerance"), ("weights missing", "vq_ds16_c2i_tiny.pt"),
        ("weights cut", "vq_ds16_c2i_tiny.safetensors"), ("no rule", "rule_weights.json"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_the_users_mistake(small, tmp_path, what, told):
    folder = excerpt(small_source(small), tmp_path / "f", "vq/")
    damage(folder, what)
    with pytest.raises(UserError, match=told) as caught:
        verify.run(base.get_config(), Path("nowhere"), folder=folder)
    assert "\n" not in str(caught.value)


def command(*arguments):
    """main.py, as a user's shell would run it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    call = [sys.executable, str(ROOT / "main.py"), "--job=verify", *arguments]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_exit_codes(small, tmp_path):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "samp/")
    fine = command(f"--input={folder}")
    assert fine.returncode == 0, fine.stderr
    assert json.loads(fine.stdout.splitlines()[-1])["failed"] == 0
    edited(folder, lambda manifest: manifest["arrays"]["ref.npz"]["rope/x_rotated"].update(tolerance="exact"))
    wrong = command(f"--input={folder}")
    assert wrong.returncode == 1, wrong.stderr
    assert json.loads(wrong.stdout.splitlines()[-1])["failed"] == 1
    assert wrong.stderr == ""
    for arguments in ((), (f"--input={tmp_path}",)):
        refused = command(*arguments)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
