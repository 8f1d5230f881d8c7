"""The whole way: what a demo leaves behind, and that a second one repeats nothing."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import demo, extract, sample
from jobs.workdir import check_same, flat, prepare, read_config
from models.errors import UserError
from training.metrics import read_metrics

SUMMARY = {
    "tokenizer_psnr", "tokenizer_ssim", "tokenizer_usage", "cfd",
    "generator_loss_nats_per_token", "class_accuracy", "classifier_accuracy_real",
    "near_copy_share", "near_copy_share_real", "distinct_samples", "wall_seconds", "images_per_second_sampling",
}  # fmt: skip
LOCK = ".lock"  # of who writes to eval/; it stays, because a lock file that is deleted keeps nobody out


def snapshot(folder):
    """What repeating nothing leaves untouched: checkpoints, tokens, samples, evaluations, metrics."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    kinds = ("checkpoints", "tokens", "samples", "eval", "metrics.jsonl")
    return {str(path): path.stat().st_mtime_ns for path in files if any(kind in path.parts for kind in kinds)}


def test_summary_holds_every_figure_within_its_range(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert all(np.isfinite(value) for value in summary.values())
    for name in ("tokenizer_usage", "class_accuracy", "near_copy_share", "near_copy_share_real"):
        assert 0 <= summary[name] <= 1, name
    assert summary["classifier_accuracy_real"] > 0.9
    assert 0 < summary["generator_loss_nats_per_token"] < 2 * np.log(16)
    assert 5 < summary["tokenizer_psnr"] < 40
    assert 1 <= summary["distinct_samples"] <= 20
    assert summary["wall_seconds"] > 0
    assert summary["images_per_second_sampling"] > 0


def test_samples_are_in_the_layout_that_evaluators_read(workdir):
    (path,) = (workdir / "samples").glob("*.npz")
    assert path.stem == "fixed_noise-6"
    with np.load(path) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8
    assert images.shape == (20, 16, 16, 1)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert len(np.unique(images.reshape(20, -1), axis=0)) > 10


def test_pictures_open_and_show_something(workdir):
    pictures = {str(path.relative_to(workdir)) for path in workdir.rglob("*.png")}
    assert pictures >= {"loss.png", "samples/fixed_noise-6.png", "eval/nearest-fixed_noise-6.png",
                        "eval/reconstructions-tokenizer-6.png"}  # fmt: skip
    for picture in pictures:
        with Image.open(workdir / picture) as image:
            assert np.asarray(image.convert("L")).std() > 0, picture


def test_config_is_complete_and_metrics_are_readable(workdir):
    config = read_config(workdir)
    assert config.data.classes == 10
    assert config.generator.width == 16
    assert config.stages == ("tokenizer", "generator")  # tuples stay tuples
    for stage, tag in (("tokenizer", "reconstruction_loss"), ("generator", "loss")):
        rows = read_metrics(workdir / stage / "metrics.jsonl")
        assert [row["step"] for row in rows if tag in row] == [2, 4, 6]
        assert [row["step"] for row in rows if "heldout/loss" in row] == [3, 6]
        events = EventAccumulator(str(workdir / stage)).Reload()
        assert [event.step for event in events.Scalars(tag)] == [2, 4, 6]


def test_no_temporary_files_are_left(workdir):
    names = {path.name for path in workdir.rglob("*")} - {LOCK}
    assert not [name for name in names if name.startswith(".") or "tmp" in name or "partial" in name]


def test_second_demo_repeats_nothing(workdir, capsys):
    before = snapshot(workdir)
    assert len(before) > 20
    figures = json.loads((workdir / "summary.json").read_text())
    demo.run(prepare(read_config(workdir), workdir, write=True), workdir)
    assert snapshot(workdir) == before
    out = capsys.readouterr().out
    for text in ("tokenizer: trained already", "generator: trained already", "sampled already", "evaluated already"):
        assert text in out
    again = json.loads((workdir / "summary.json").read_text())
    changing = {"wall_seconds", "peak_memory_gib"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in figures.items() if k not in changing
    }
    assert again["wall_seconds"] >= figures["wall_seconds"]


def test_of_several_processes_the_first_tells(workdir, tmp_path, monkeypatch):
    copy, told = (
        shutil.copytree(workdir, tmp_path / "copy"),
        ("summary.json", "loss.png", "report.html", "seconds.json"),
    )
    for name in told:
        (copy / name).unlink()
    config = prepare(read_config(copy), copy, write=True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    demo.run(config, copy)
    assert not [name for name in told if (copy / name).exists()]


def test_lost_samples_come_back_the_same(workdir, tmp_path):
    copy = tmp_path / "copy"  # nothing but checkpoints and the config
    copy.mkdir()
    for name in ("tokenizer", "generator"):
        shutil.copytree(workdir / name, copy / name)
    shutil.copy(workdir / "config.json", copy)
    sample.run(prepare(read_config(copy), copy, write=False), copy)
    with np.load(copy / "samples/fixed_noise-6.npz") as new, np.load(workdir / "samples/fixed_noise-6.npz") as old:
        np.testing.assert_array_equal(new["arr_0"], old["arr_0"])
        np.testing.assert_array_equal(new["arr_1"], old["arr_1"])


def test_tokens_of_another_tokenizer_are_refused_and_kept(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    before = snapshot(copy)
    extract.run(read_config(copy), copy)  # its own tokenizer's: nothing to do
    assert snapshot(copy) == before
    newest = copy / "tokenizer" / "checkpoints" / "6"
    shutil.rmtree(newest)
    shutil.rmtree(copy / "generator")  # --job=train would extract before it trains the generator
    manifest = (copy / "tokens/train/manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"tokens/train has tokenizer '[0-9a-f]+', not '[0-9a-f]+'; delete"):
        extract.run(read_config(copy), copy)
    assert (copy / "tokens/train/manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("generator.width", 32, False), ("data.flip", True, False), ("training.generator.batch_size", 1, False),
        ("seed", 1, False), ("training.generator.learning_rate", 1.0, True), ("training.generator.steps", 9, True),
        ("sampler.top_k", 3, True), ("mesh.fsdp", 2, True),
        ("training.tokenizer.save_every", 9, True), ("evaluation.samples", 9, True), ("data.path", "moved", True),
        ("extract.batch_size", 9, True), ("extract.shard_size", 9, True), ("extract.copies", 9, False),
    ],
)  # fmt: skip
def test_what_may_change_between_two_commands(config, tmp_path, field, value, allowed):
    before = config.copy_and_resolve_references()
    assert flat(before)[field] != value
    config.update_from_flattened_dict({field: value})
    if allowed:
        check_same(before, config, tmp_path)
    else:
        with pytest.raises(UserError, match=field):
            check_same(before, config, tmp_path)
