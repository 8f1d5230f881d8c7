"""The lines that stand for a progress bar where there is no terminal."""

from models.progress import Progress


def test_progress_prints_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("models.progress.time.monotonic", lambda: float(next(clock)))
    progress = Progress("train x", 10, start=2, images_per_step=6)
    for done in range(3, 11):
        progress.update(done, loss=0.5)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "train x: 5/10, loss 0.5, 2 images/s, 20 s left",
        "train x: 8/10, loss 0.5, 2 images/s, 8 s left",
        "train x: 10/10, loss 0.5, 2 images/s, 0 s left",
    ]
