"""--job=compile: a table, a plan, and one JSON object; by the compiler for TPUs, which needs none."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import digits
from generator.generator import describe_generator
from jobs import compile as job
from jobs.compilation import compile_program, out_of_memory, usable_bytes
from jobs.programs import as_on, heldout, programs, sampling
from jobs.topologies import open_topology
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.chips import GIB, chip_of


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


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e-16", "h100", "h100x0", "cpu:1x1", "v5e:2x", "v5e:0x0", "v5p:2x0x2"]
)
def test_an_unknown_topology_names_those_that_exist(name):
    with pytest.raises(UserError, match=r"unknown topology .* v5e:16x16.*tpu7x:4x4x4, h100x8"):
        open_topology(name)


@pytest.mark.parametrize(("name", "most"), [("v5e:64x64", 256), ("v6e:32x32", 256), ("h100x16", 8)])
def test_more_chips_than_links_join_are_refused(name, most):
    with pytest.raises(UserError, match=f"{most} at most"):
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


def test_a_host_is_a_topology_of_its_own(topology):
    assert topology.host() is topology
    slice_of = open_topology("v5p:4x4x4")
    assert (slice_of.host().name, slice_of.host().chips) == ("v5p:2x2x1", 4)
    assert len({device.process_index for device in slice_of.host().devices}) == 1


@pytest.mark.parametrize("family", ["v5e:2x2", "h100x8"])
def test_the_sampler_is_as_wide_as_on_that_backend(topology, family):
    # Of GPUs without their compiler: all but the devices.
    opened = topology if family == "v5e:2x2" else dataclasses.replace(topology, platform="cuda", backend="gpu")
    config = tiny_config()
    config.sample.batch_size = 40  # and as many without their class, for guidance: 256 rows are three of each
    generator = describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=False)
    assert as_on(opened.backend, config, generator.merge(generator.shapes), 40)["window"] == 3
    assert sampling(config, opened).calls == 22


def test_a_gpu_gives_jax_a_share_of_its_memory(topology, monkeypatch):
    chip = chip_of("NVIDIA H200")
    gpus = dataclasses.replace(topology, platform="cuda", backend="gpu", chip=chip)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert usable_bytes(gpus) == 0.75 * chip.hbm_bytes
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert usable_bytes(gpus) == 0.9 * chip.hbm_bytes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages": ("forecast",)}, "nothing to compile"),
        ({"stages": ("generator", "tokeniser")}, "unknown stage 'tokeniser'; did you mean 'tokenizer'"),
        ({"data.classes": 0}, "--config.data.classes=N"),
        ({"generator.condition": {"name": "text", "entries": 4, "features": 8}}, "generators of classes"),
    ],
)
def test_what_cannot_be_compiled_is_said_before(tmp_path, fields, said):
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=said):
        job.run(config, tmp_path, topology="v5e:2x2", as_json=False)
    with pytest.raises(UserError, match="--topology=NAME"):
        job.run(config, tmp_path, topology="", as_json=False)


def test_a_tokenizer_needs_no_classes():
    config = tiny_config()
    config.update_from_flattened_dict({"data.classes": 0, "stages": ("tokenizer",)})
    assert job.stages_of(config) == ["tokenizer"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mesh.data": 3}, "mesh data 3 .* does not fit 4 devices"),
        ({"mesh.tensor": 8}, "does not fit 4 devices"),
        ({"mesh.data": 1, "mesh.tensor": 3}, "does not fit 4 devices"),
        ({"generator.remat": "ful"}, "unknown rematerialisation policy 'ful'; did you mean 'full'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_compiled(topology, tmp_path, monkeypatch, fields, said):
    monkeypatch.setattr(job, "compile_program", lambda *_: pytest.fail("compiled"))
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=said):
        job.run(config, tmp_path, topology="v5e:2x2", as_json=True)


def test_a_batch_that_does_not_divide_gets_a_plan(topology, tmp_path, monkeypatch, capsys):
    compiled = []

    def fake(program, chips, usable):
        compiled.append((program.name, program.images))
        return {"program": program.name, "fits": True, "bytes_per_chip": 1.0, "hbm_bytes": 2.0}

    monkeypatch.setattr(job, "compile_program", fake)
    config = tiny_config()
    config.training.generator.batch_size = 11
    config.mesh.update(data=1, fsdp=2, tensor=-1)
    config.generator.remat = "full"
    job.run(config, tmp_path, topology="v5e:2x2", as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not found["fits"]
    assert "batch_size 11 does not divide" in found["programs"][0]["reason"]
    assert found["plan"]["overrides"] == {"training.generator.batch_size": 10}
    assert compiled == [("sample", 4), ("train generator", 2), ("train generator", 10)]  # the most frugal offer first


def test_a_config_for_compilation_is_chosen_without_its_dataset(tmp_path):
    """By main.py, in a process of its own: the dataset is not there, and a fresh workdir stays so."""
    root = Path(__file__).parent.parent.parent
    code = """
import sys, main, pathlib
main.parse(sys.argv)
print(main.choose_config("compile", pathlib.Path(main.flags.FLAGS.workdir)).data.classes)
"""

    def chosen(workdir, *options):
        command = [
            sys.executable,
            "-c",
            code,
            f"--config={root}/configs/imagenet256.py",
            f"--workdir={workdir}",
            *options,
        ]
        missing = f"--config.data.path={tmp_path}/missing"
        done = subprocess.run([*command, missing], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert chosen(tmp_path / "fresh", "--config.data.classes=0") == "0"
    assert not (tmp_path / "fresh").exists()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text(json.dumps({"data": {"classes": 7}, "generator": {}}))
    assert chosen(tmp_path / "made", "--config.data.classes=0") == "7"  # as the workdir's dataset had


def leaves(tree):
    return sorted((str(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def test_every_argument_is_of_one_kind(topology):
    config = tiny_config()
    config.stages = ("tokenizer", "generator")
    config.training.tokenizer.batch_size = 8
    for _, build in programs(config, config.stages, topology):
        program = build()
        assert leaves(program.kinds) == leaves(program.arguments), program.name


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
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_chips_that_sample_next_scale_with_guidance_exchange_nothing(topology, interval):
    config = digits.get_config("next=scale")
    config.data.classes, config.sample.batch_size = 10, 4
    config.tokenizer.update(channels=8, multipliers=(1, 2), blocks=1, latent_channels=8)
    config.generator.update(width=32, depth=1, heads=2, mlp=64)
    config.sampler.update(guidance_scale=2.5, guidance_interval=interval)
    record = compile_program(sampling(config, topology), topology, usable_bytes(topology))
    assert record["fits"]
    assert record["collectives"] == {}


@pytest.mark.slow
def test_memory_is_the_sum_of_its_kinds_and_holds_what_lies_beside(output):
    train, sample, evaluate = json.loads(output.splitlines()[-1])["programs"]
    for program in (train, sample, evaluate):
        assert program["bytes_per_chip"] == sum(program["memory"].values())
        assert min(program["memory"].values()) >= 0
        assert program["memory"]["program"] > 0
    for kind in ("parameters", "average", "optimizer", "batch"):
        assert evaluate["memory"][kind] == train["memory"][kind]
    # All of it is given to the compiler as arguments, in tiles: what it says of their size is no less.
    assert evaluate["memory"]["padding"] == train["memory"]["padding"]


@pytest.mark.slow
def test_two_devices_are_one_chip(topology, output):
    """Twice the parameters lie on a chip, whose peak is that of both, and the FLOPs of a step stay what they are."""
    opened, one = open_topology("tpu7x:2x2x1"), json.loads(output.splitlines()[-1])["programs"][2]
    usable = usable_bytes(opened)
    record = compile_program(heldout(tiny_config(), "generator", opened.devices), opened, usable)
    assert 0.95 * 192 * GIB < record["hbm_bytes"] == usable <= 192 * GIB
    assert record["chips"] == 4
    assert record["flops_per_step"] == record["model_flops_per_step"] == one["flops_per_step"]
    for kind in ("parameters", "optimizer", "average"):
        assert record["memory"][kind] == 2 * one["memory"][kind]
    assert record["memory"]["batch"] == one["memory"]["batch"]  # half of it on each
    assert record["seconds"]["compute"] == pytest.approx(one["model_flops_per_step"] / (4 * 2307e12))
    assert record["seconds"]["links"] == 0


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
    assert programs["train generator"]["recomputed_flops_per_step"] == 0  # remat=none keeps every product
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
    config.generator.update(width=1024, depth=72, heads=16, mlp=4096, remat="full")  # 19 GB of state, in layers alike
    config.training.generator.batch_size = 4  # so that there is one offer
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
