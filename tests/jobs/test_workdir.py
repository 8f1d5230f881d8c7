"""Workdirs that an older version made."""

import pytest

from configs import base
from jobs.workdir import complete, read_config
from models.files import write_json


@pytest.mark.parametrize(("before", "now"), [(True, "rms"), (False, "none"), ("l2", "l2")])
def test_a_field_that_was_said_otherwise_is_said_in_todays_words(config, tmp_path, before, now):
    older = config.to_dict()
    older["generator"]["qk_norm"] = before
    write_json(tmp_path / "config.json", older)
    assert read_config(tmp_path).generator.qk_norm == now


def test_free_sections_are_brought_up_to_date_and_others_left_alone(config):
    del config.evaluation["follow"]
    config.evaluation["classifier"] = "svc"  # a field that was
    config.evaluation.samples = 77
    config.generator["older"] = 1
    del config.training.generator["keep_every"], config.training["forecast"]
    complete(config, base.get_config())
    assert config.evaluation.follow is False
    assert "classifier" not in config.evaluation
    assert config.evaluation.samples == 77
    assert config.sampler.guidance_scale == 2.5
    assert config.generator.older == 1
    assert config.training.generator.keep_every == 0
    assert config.training.generator.batch_size != base.get_config().training.generator.batch_size
    assert config.training.forecast == base.get_config().training.forecast
