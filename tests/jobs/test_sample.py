"""Sampling: a picture belongs to (seed, index), and a batch is one program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generator.sampling import samplers
from generator.sampling.first_drafts import FIRST_DRAFTS
from jobs import train
from jobs.conditions import asked_classes
from jobs.sample import Sampler, to_uint8
from jobs.workdir import read_config
from models.errors import UserError
from models.files import write_json
from tokenizer.tokenizer import describe_tokenizer
from training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent.parent
LABELS = np.arange(16, dtype=np.int32) % 10


@pytest.fixture(scope="module")
def sampler(workdir):
    return Sampler(read_config(workdir), workdir)


@pytest.fixture(scope="module")
def all_at_once(sampler):
    return sampler(LABELS, 16)


@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_images_do_not_depend_on_the_batch_size(sampler, all_at_once, batch_size):
    samples = sampler(LABELS, batch_size)
    np.testing.assert_array_equal(samples.ids, all_at_once.ids)
    np.testing.assert_array_equal(samples.images, all_at_once.images)
    assert samples.images.shape == (16, 16, 16, 1)


def test_images_do_not_depend_on_the_number_of_devices(workdir, all_at_once, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("samples"))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    # Batches that eight devices do not divide are filled up.
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={copy}", "--job=sample",
               "--config.sample.count=16", "--config.sample.batch_size=6"]  # fmt: skip
    subprocess.run(command, check=True, env=environment, timeout=300)
    (found,) = (copy / "samples").glob("*.npz")
    with np.load(found) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], all_at_once.images)
        np.testing.assert_array_equal(arrays["arr_1"], LABELS)


def test_images_differ_from_one_another_and_follow_the_seed(workdir, sampler, all_at_once):
    assert len(np.unique(all_at_once.ids.reshape(16, -1), axis=0)) == 16
    config = read_config(workdir)
    config.seed = 1
    other = Sampler(config, workdir)(LABELS, 16)
    assert (other.ids != all_at_once.ids).any(axis=(1, 2)).all()


def test_calls_of_the_model_are_one_a_token(all_at_once):
    assert all_at_once.calls == 16  # 4 x 4 tokens


@pytest.fixture(scope="module")
def forecast_workdir(workdir, tmp_path_factory):
    """The demo's, with forecasting heads trained on its generator."""
    folder = shutil.copytree(workdir, tmp_path_factory.mktemp("forecast") / "w")
    config = read_config(folder)
    config.stages, config.sampler.window = ("forecast",), 5
    train.run(config, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "first_drafts"),
    [*(("fixed_noise", way) for way in FIRST_DRAFTS), ("siblings", "neighbours"), ("siblings", "forecast")],
)
def test_shared_noise_draws_the_sequential_samplers_images(forecast_workdir, all_at_once, name, first_drafts):
    config = read_config(forecast_workdir)
    config.sampler.update(name=name, window=5, first_drafts=first_drafts)
    sampler = Sampler(config, forecast_workdir)
    for batch_size in (1, 7) if first_drafts == "forecast" else (7,):
        samples = sampler(LABELS, batch_size)
        np.testing.assert_array_equal(samples.ids, all_at_once.ids)
        np.testing.assert_array_equal(samples.images, all_at_once.images)
        assert 16 / 5 <= samples.calls < 16


def test_the_default_is_as_wide_as_its_batch_leaves_room_for(workdir, all_at_once, monkeypatch):
    assert read_config(workdir).sampler.name == "fixed_noise"
    assert all_at_once.calls == 16  # on a CPU: one a token
    monkeypatch.setitem(samplers.ROWS, "cpu", 40)
    sampler = Sampler(read_config(workdir), workdir)
    for batch_size, slower in ((2, 8), (5, 16)):  # with guidance 10 and 4 drafts
        found = sampler(LABELS, batch_size)
        np.testing.assert_array_equal(found.ids, all_at_once.ids)
        assert found.calls < slower
    assert sampler(LABELS, 16).calls == 16


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("jacobi", 5),
        ("coupled_gumbel", 5),
        ("coupled_maximal", 5),
        ("siblings", 5),
        ("gsd", 5),
        ("lantern", 5),
        ("zipar", 2),
    ],
)
def test_rows_of_a_batch_know_nothing_of_one_another(workdir, name, window):
    config = read_config(workdir)
    config.sampler.update(name=name, window=window, rule="multi_round")
    sampler = Sampler(config, workdir)
    alone, together = sampler(LABELS, 1), sampler(LABELS, 16)
    np.testing.assert_array_equal(alone.ids, together.ids)
    assert alone.calls == together.calls < 16


def test_what_cannot_be_speculated_on_is_refused(workdir, scale_workdir):
    for folder, fields, said in (
        (workdir, {"window": 17}, "window 17 .* 16 tokens"),
        (workdir, {"window": -1}, "window -1 .* 16 tokens"),
        (workdir, {"first_drafts": "frequencies"}, "frequency"),
        (scale_workdir, {"window": 4}, "one after the other"),
    ):
        config = read_config(folder)
        config.sampler.update({"name": "fixed_noise", **fields})
        with pytest.raises(UserError, match=said):
            Sampler(config, folder)


@pytest.mark.parametrize(
    ("name", "fields"), [("draft_model", {"window": 5}), ("draft_model", {"window": 9, "chains": 4, "rule": "k_seq"}),
                         ("dyspec", {"window": 6}), ("recycling", {"window": 6})],
)  # fmt: skip
def test_trees_are_drafted_by_another_workdirs_generator(workdir, all_at_once, name, fields):
    config = read_config(workdir)
    config.sampler.update(name=name, draft=str(workdir), **fields)
    sampler = Sampler(config, workdir)
    assert ("draft" in sampler.aids.weights) == (name != "recycling")
    alone, together = sampler(LABELS, 1), sampler(LABELS, 16)
    np.testing.assert_array_equal(alone.ids, together.ids)
    assert (together.ids == all_at_once.ids).all() == (fields.get("rule") != "k_seq")
    if name == "draft_model" and "rule" not in fields:
        assert together.calls == 4  # the model itself drafts: 16 tokens, 5 a call


def test_a_draft_model_of_other_tokens_is_refused(workdir, scale_workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other, ignore=shutil.ignore_patterns("samples", "tokenizer"))
    config = read_config(workdir)
    description = describe_tokenizer(config)
    checkpoints = Checkpoints(other / "tokenizer" / "checkpoints")
    checkpoints.save_imported(description.init(jax.random.key(7)))
    checkpoints.close()
    for folder, changed in (("few", {"tokenizer.quantizer.codes": 8}), ("classes", {"data.classes": 7})):
        fields = read_config(workdir)
        fields.update_from_flattened_dict(changed)
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "config.json", fields.to_dict())
    for draft, said in (("", "sampler.draft=WORKDIR"), (tmp_path / "none", "holds no run"), (other, "another tokenizer"),
                        (scale_workdir, "one after the other"), (tmp_path / "few", "of 8 codes"),
                        (tmp_path / "classes", "'classes': 7")):  # fmt: skip
        for name in ("draft_model", "dyspec"):
            config.sampler.update(name=name, draft=str(draft))
            with pytest.raises(UserError, match=said):
                Sampler(config, workdir)


def programs(function, folder):
    """How many XLA programs ran on the devices while `function` did, counted in the profiler's trace."""
    with jax.profiler.trace(str(folder)):
        function()
    (file,) = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    events = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    return sum("Executable::ExecuteHelper" in name for name in events), events


@pytest.mark.parametrize("name", ["sequential", "fixed_noise", "siblings"])
def test_a_batch_is_one_program(workdir, tmp_path, name):
    """So no result of a call of the model is read by the host before the next."""
    config = read_config(workdir)
    config.sampler.update(name=name, window=5)
    sampler = Sampler(config, workdir)
    sampler(LABELS, 4)  # compiled before it is counted
    twice = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(twice(jnp.zeros(3)))
    one, events = programs(lambda: twice(x).block_until_ready(), tmp_path / "one")
    assert one > 0, sorted(set(events))
    two, _ = programs(lambda: twice(twice(x)).block_until_ready(), tmp_path / "two")
    assert two == 2 * one  # it is executions that are counted
    batches, _ = programs(lambda: sampler(LABELS, 4), tmp_path / "batches")
    assert batches == 4 * one
    batch, _ = programs(lambda: sampler(LABELS[:4], 4), tmp_path / "batch")
    assert batch == one


def test_asked_classes_come_in_turn_and_must_be_known():
    assert asked_classes((-1,), 3, 5).tolist() == [0, 1, 2, 0, 1]
    assert asked_classes((2, 0), 3, 5).tolist() == [2, 0, 2, 0, 2]
    for label in (3, -2):
        with pytest.raises(UserError, match=f"class {label} .* 0 to 2"):
            asked_classes((0, label), 3, 5)


def test_pixels_are_rounded_to_the_nearest_and_clipped():
    values = jnp.array([-2.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 1.0, 3.0]).reshape(1, 1, -1, 1)
    assert to_uint8(values).reshape(-1).tolist() == [0, 0, 0, 1, 255, 255, 255]
