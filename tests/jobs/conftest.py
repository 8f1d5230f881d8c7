"""A demo so small that it is done in seconds, run once for all tests of the jobs."""

import pytest

from configs import digits
from jobs import demo
from jobs.workdir import prepare


def make_config(argument="next=token"):
    """The demo's config with everything small; enough training for a picture, not for a good one."""
    config = digits.get_config(argument)
    config.tokenizer.update(channels=4, latent_channels=8, multipliers=(1, 2, 2))
    quantizer = config.tokenizer.quantizer
    quantizer.get("inner", quantizer).update(codes=16, width=4)
    if argument == "next=scale":
        quantizer.scales = (1, 2, 4)
    config.generator.update(width=16, depth=2, heads=2, mlp=32, dropout=0.0)
    config.extract.copies = 2
    config.forecast.hidden = 8
    for stage in (config.training.tokenizer, config.training.generator, config.training.forecast):
        stage.update(steps=6, batch_size=16, learning_rate=2e-3, warmup_steps=0, save_every=3, log_every=2)
    config.sample.update(count=20, batch_size=10)
    config.evaluation.update(samples=20, batch_size=10, classifier_epochs=8)
    return config


@pytest.fixture
def config():
    return make_config()


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """The workdir of one finished demo; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("demo") / "w"
    demo.run(prepare(make_config(), folder, write=True), folder)
    return folder


@pytest.fixture(scope="session")
def scale_workdir(tmp_path_factory):
    """The workdir of a finished next-scale demo; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("demo-of-scales") / "w"
    demo.run(prepare(make_config("next=scale"), folder, write=True), folder)
    return folder
