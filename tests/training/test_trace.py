import pytest

from models.errors import UserError
from training.trace import FIRST, STEPS, Trace


def test_a_trace_is_of_its_steps_alone(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda directory: calls.append(("start", number)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(("stop", number)))
    trace = Trace(tmp_path, 100)
    for number in range(FIRST + STEPS + 3):
        trace.before(number)
        if trace.ends(number):
            trace.close()
    trace.close()
    assert calls == [("start", FIRST), ("stop", FIRST + STEPS - 1)]


def test_profile_flag_writes_a_trace(train_generator, tmp_path):
    train_generator(steps=FIRST + STEPS, save_every=100, profile=True)
    assert list((tmp_path / "generator" / "trace").rglob("*.xplane.pb"))


def test_too_few_steps_to_trace_are_the_users_mistake(train_generator):
    with pytest.raises(UserError, match=r"--profile traces steps 6 to 10 .* 6 are left"):
        train_generator(profile=True)
