"""Workdirs that an older version made."""

from configs import base
from jobs.workdir import complete


def test_free_sections_are_brought_up_to_date_and_others_left_alone(config):
    del config.evaluation["follow"]
    config.evaluation["classifier"] = "svc"  # a field that was
    config.evaluation.samples = 77
    config.generator["older"] = 1
    complete(config, base.get_config())
    assert config.evaluation.follow is False
    assert "classifier" not in config.evaluation
    assert config.evaluation.samples == 77
    assert config.sampler.guidance_scale == 2.5
    assert config.generator.older == 1
