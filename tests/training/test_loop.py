"""The loop's own duties: resume after damage, stop at NaN, write metrics."""

import json
import logging
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.errors import UserError
from training.checkpoints import Checkpoints
from training.loop import check_finite
from training.metrics import MetricsLog, read_metrics


def steps(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())


def learned(directory):
    """The lines of metrics.jsonl without what the clock says."""
    rows = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(("speed/", "goodput/"))} for row in rows]


def contents(directory, step):
    """Checksums and place in the data of a checkpoint: equal if and only if the runs are."""
    folder = directory / "checkpoints" / str(step)
    return json.loads((folder / "checksums" / "metadata").read_text()), sorted(
        path.read_text() for path in (folder / "data").glob("*.json")
    )


def test_finished_run_resumes_bit_for_bit_after_its_newest_checkpoint_is_damaged(train_generator, tmp_path, caplog):
    train_generator()
    directory = tmp_path / "generator"
    wanted = contents(directory, 6)
    before = learned(directory)
    newest = directory / "checkpoints" / "6"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, logger="absl"):
        train_generator()
    assert "6 is damaged and skipped" in caplog.text
    assert contents(directory, 6) == wanted
    assert 6 in steps(directory)
    assert learned(directory) == before


def test_longer_run_is_the_shorter_one_gone_on(train_generator, tmp_path):
    train_generator(steps=3)
    train_generator(steps=6)
    parts = contents(tmp_path / "generator", 6)
    (tmp_path / "generator").rename(tmp_path / "parts")
    train_generator(steps=6)
    assert contents(tmp_path / "generator", 6) == parts


def test_not_finite_names_the_step_and_the_last_good_checkpoint(train_generator, tmp_path):
    train_generator(steps=2)
    # Step 3 leaves parameters with which step 4 is not finite: seen one step late, and in time before a save.
    for save_every, kept in ((6, 2), (1, 3)):
        said = f"gradient_norm/generator is not finite at step 4; the last good checkpoint is step {kept}."
        with pytest.raises(UserError, match=said):
            train_generator(learning_rate=1e30, save_every=save_every)
        assert max(steps(tmp_path / "generator")) == kept


@pytest.mark.parametrize("name", ["loss", "reconstruction_loss", "heldout/loss", "gradient_norm/discriminator"])
def test_any_loss_or_gradient_that_is_not_finite_stops_the_run(name, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    finite = {"loss": 1.0, "gradient_norm/autoencoder": 3.0}
    check_finite("tokenizer", 3, finite, checkpoints)
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(
            UserError, match=f"tokenizer: {name} is not finite at step 3; there is no checkpoint"
        ) as error:
            check_finite("tokenizer", 3, finite | {name: value}, checkpoints)
        assert "training.tokenizer.learning_rate" in str(error.value)
    checkpoints.close()


def test_checkpoint_of_another_model_is_refused_by_the_loop_and_kept(train_generator, tmp_path):
    train_generator(steps=2)
    with pytest.raises(UserError, match="another config"):
        train_generator(generator={"width": 32})
    assert steps(tmp_path / "generator") == [2]


def test_metrics_are_written_for_every_step_once_and_tensorboard_reads_them(train_generator, tmp_path):
    train_generator()
    rows = read_metrics(tmp_path / "generator" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "heldout/loss" in row] == [2, 4, 6]
    assert rows[0]["loss"] == pytest.approx(np.log(16), rel=1e-5)  # the head starts at 0: uniform over 16 codes
    assert rows[0]["learning_rate"] == pytest.approx(2e-3)
    events = EventAccumulator(str(tmp_path / "generator")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([event.value for event in events.Scalars("loss")],
                               [row["loss"] for row in rows if "loss" in row], rtol=1e-6)  # fmt: skip


def test_log_says_how_fast_steps_are_and_at_the_end_where_the_time_went(train_generator, tmp_path, capsys):
    train_generator(batch_size=8)
    rows = read_metrics(tmp_path / "generator" / "metrics.jsonl")
    for row in (row for row in rows if "loss" in row):
        assert row["speed/tokens"] == pytest.approx(64 * row["speed/images"])
        assert row["speed/images"] > 0
        assert 0 <= row["speed/data_wait"] <= 1
        assert row["speed/memory_gib"] > 0.05
    last = rows[-1]
    assert last["step"] == 6
    shares = {name: value for name, value in last.items() if name.startswith("goodput/")}
    seconds = shares.pop("goodput/seconds")
    assert set(shares) == {f"goodput/{kind}" for kind in ("step", "compile", "data", "evaluation", "save")}
    assert 0 < sum(shares.values()) < 1
    assert seconds > 0
    assert "goodput" in capsys.readouterr().out


def test_resumed_log_drops_later_lines_and_a_line_cut_short(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, {"loss": step / 10})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4, 5]
    log = MetricsLog(tmp_path, 3)
    log.write(4, {"loss": 9.0})
    log.close()
    assert read_metrics(log.path) == [
        {"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 0.3}, {"step": 4, "loss": 9.0},
    ]  # fmt: skip


def test_no_metrics_are_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_progress_names_the_stage_the_steps_and_the_speed(train_generator, capsys):
    train_generator()
    out = capsys.readouterr().out
    assert re.search(r"train generator: 6/6, loss [\d.]+, [\d,]+ images/s, 0 s left", out)
    assert re.search(r"generator: [\d,]+ parameters", out)
