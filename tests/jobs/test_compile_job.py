"""--job=compile: a table, a plan, and one JSON object; by the compiler for TPUs, which needs none."""

import contextlib
import io
import json

import pytest

from configs import digits
from jobs import compile as job
from jobs.compilation import out_of_memory, usable_bytes
from jobs.programs import programs
from jobs.topologies import open_topology
from models.errors import UserError
from training.chips import GIB


def tiny_config():
    config = digits.get_config()
    config.experiment = "tiny"
    config.data.classes = 10
    config.tokenizer.update(channels=8, multipliers=(1, 2), blocks=1, latent_channels=8)
    config.tokenizer.quantizer.update(codes=16, width=4)
    config.generator.update(width=32, depth=3, heads=2, mlp=64)
    config.training.generator.batch_size = 8
    config.mesh.update(data=-1, fsdp=1)
    config.stages = ("generator",)
    config.sample.batch_size = 4
    return config


@pytest.fixture(scope="module")
def topology():
    pytest.importorskip("libtpu")
    return open_topology("v5e:2x2")


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e-16", "h100", "h100x0", "cpu:1x1", "v5e:2x"])
def test_an_unknown_topology_names_those_that_exist(name):
    with pytest.raises(UserError, match=r"unknown topology .* v5e:16x16.*tpu7x:4x4x4, h100x8"):
        open_topology(name)


def test_sizes_that_do_not_exist_are_refused(topology):
    with pytest.raises(UserError, match=r"no topology 'v5e:3x3'.*not divisible"):
        open_topology("v5e:3x3")


@pytest.mark.parametrize(
    ("name", "kind", "chips", "devices"),
    [("v4:2x2x1", "TPU v4", 4, 4), ("v6e:2x2", "TPU v6e", 4, 4), ("tpu7x:2x2x1", "TPU7x", 4, 8)],
)
def test_chips_are_counted_not_cores(topology, name, kind, chips, devices):
    opened = open_topology(name)
    assert (opened.chip.name, opened.chips, len(opened.devices)) == (kind, chips, devices)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"stages": ("forecast",)}, "nothing to compile"), ({"data.classes": 0}, "--config.data.classes=N")],
)
def test_what_cannot_be_compiled_is_said_before(tmp_path, fields, said):
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=said):
        job.run(config, tmp_path, topology="v5e:2x2", as_json=False)
    with pytest.raises(UserError, match="--topology=NAME"):
        job.run(config, tmp_path, topology="", as_json=False)


def test_refusals_of_both_compilers_are_read():
    tpu = ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
           "temporaries (48.00G) exceeds available HBM (15.75G). HLO module: jit_f.")  # fmt: skip
    assert out_of_memory(tpu) == (48 * GIB, 15.75 * GIB)
    assert out_of_memory("RESOURCE_EXHAUSTED: vector memory") is None


def test_memory_that_programs_may_use_is_less_than_there_is(topology):
    assert usable_bytes(topology) == 15.75 * GIB


@pytest.fixture(scope="module")
def output(topology, tmp_path_factory):
    """What the job prints, run in this process."""
    text, workdir = io.StringIO(), tmp_path_factory.mktemp("compiled")
    with contextlib.redirect_stdout(text):
        job.run(tiny_config(), workdir, topology="v5e:2x2", as_json=True)
    assert not list(workdir.iterdir())  # nothing is written
    return text.getvalue()


@pytest.mark.slow
def test_the_last_line_is_one_object(output):
    found = json.loads(output.splitlines()[-1])
    for name in (
        "fits",
        "chips",
        "bytes_per_chip",
        "hbm_bytes",
        "flops_per_step",
        "step_seconds_bound",
        "mfu_bound",
        "compile_seconds",
    ):
        assert found[name] is not None
    assert found["fits"]
    assert found["chips"] == 4
    assert found["hbm_bytes"] == 15.75 * GIB
    assert found["plan"]["overrides"] == {}
    assert [program["program"] for program in found["programs"]] == ["train generator", "sample", "evaluate generator"]
    assert "fits: " in output


@pytest.mark.slow
def test_flops_are_the_networks(output):
    programs = {program["program"]: program for program in json.loads(output.splitlines()[-1])["programs"]}
    positions, width, mlp, depth, rows, codes = 64, 32, 64, 3, 8, 16
    layer = (
        2 * positions * (width * 3 * width + width * width + width * 2 * mlp + mlp * width)
        + 2 * 2 * positions**2 * width
    )
    forward = rows * (depth * layer + 2 * positions * width * codes)
    assert programs["evaluate generator"]["model_flops_per_step"] == forward
    assert programs["evaluate generator"]["flops_per_step"] == forward
    assert programs["train generator"]["model_flops_per_step"] == 3 * forward
    assert programs["train generator"]["flops_per_step"] == 3 * forward


@pytest.mark.slow
def test_parameters_optimizer_and_average_are_what_they_weigh(output):
    train = json.loads(output.splitlines()[-1])["programs"][0]
    held = train["memory"]
    assert held["parameters"] == held["average"] > 0
    assert held["optimizer"] == 2 * held["parameters"] + 2 * 4  # of two moments, and two counters
    assert held["batch"] == 2 * (64 + 1) * 4  # two rows a chip
    # Every gradient, in float32 like the parameters, is summed over the four chips, and little else.
    assert train["links_per_chip"]["all-reduce"] == pytest.approx(2 * 3 / 4 * held["parameters"], rel=0.02)


@pytest.mark.slow
def test_a_program_that_is_too_large_is_refused_and_a_plan_is_made(topology, tmp_path, capsys, monkeypatch):
    config = tiny_config()
    config.generator.update(width=6144, depth=4, heads=48, mlp=4 * 6144, remat="full")  # 29 GB of state
    monkeypatch.setattr(
        job, "programs", lambda *given: [item for item in programs(*given) if item[0] == "train generator"]
    )
    job.run(config, tmp_path, topology="v5e:2x2", as_json=True)
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert not found["fits"]
    assert found["bytes_per_chip"] > found["programs"][0]["memory"]["parameters"] * 4 > found["hbm_bytes"]
    assert "DOES NOT FIT" in output
    assert found["plan"]["overrides"] == {"mesh.data": 1, "mesh.fsdp": 4}
    assert found["plan"]["attempts"] == 1
    assert found["plan"]["record"]["fits"]
