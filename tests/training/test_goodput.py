"""The clock is a list of numbers here: every reading is the next of them."""

import contextlib

import pytest

from training import goodput as module
from training.goodput import Goodput, matrix_rate


@pytest.fixture
def at(monkeypatch):
    """Set what the clock says."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_seconds_go_to_their_kind_and_what_is_left_is_other(at):
    goodput = Goodput(images=4)
    at(2)  # nobody's
    for kind, seconds in (("compile", 3), ("data", 1), ("step", 10), ("data", 1), ("evaluation", 2), ("save", 1)):
        with goodput.of(kind):
            at(seconds)
    assert goodput.shares() == {
        "goodput/step": 0.5, "goodput/compile": 0.15, "goodput/data": 0.1, "goodput/evaluation": 0.1,
        "goodput/save": 0.05, "goodput/seconds": 20,
    }  # fmt: skip
    assert str(goodput) == (
        "goodput 50 % of 20 s in steps; compile 15 %, data 10 %, evaluation 10 %, save 5 %, other 10 %"
    )


def test_seconds_count_also_where_something_was_raised(at):
    goodput = Goodput(images=1)
    with contextlib.suppress(KeyError), goodput.of("save"):
        at(4)
        raise KeyError
    assert goodput.seconds["save"] == 4


def test_speed_is_of_the_steps_since_it_was_last_asked_for(at):
    goodput = Goodput(images=4, tokens=10, flops=1e6, peak=4e6)
    assert goodput.speed() == {}
    for steps, seconds, waited, compiled in ((2, 3.0, 1.0, 100.0), (5, 2.0, 0.0, 0.0)):
        for kind, spent in (("compile", compiled), ("step", seconds), ("data", waited), ("save", 7.0)):
            with goodput.of(kind):
                at(spent)
        goodput.steps += steps
        found = goodput.speed()
        rate = steps / (seconds + waited)
        assert found.pop("speed/memory_gib") > 0.05
        assert found == pytest.approx({
            "speed/images": 4 * rate, "speed/tokens": 40 * rate, "speed/data_wait": waited / (seconds + waited),
            "speed/utilisation": rate / 4,
        })  # fmt: skip


def test_matrix_rate_is_of_this_machine():
    assert 1e8 < matrix_rate(128) < 1e16
