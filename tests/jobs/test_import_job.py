"""Import and export: what a workdir of public checkpoints holds, and which files are refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from generator.generator import describe_generator
from interop.sources import SOURCES, apply
from interop.state_dicts import read_state, write_state
from jobs import evaluate, export, import_, train
from jobs.sample import Sampler
from jobs.workdir import load, prepare, read_config
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer, token_spec

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "data.resolution": 8, "data.channels": 1, "data.classes": 10, "tokenizer.channels": 32, "tokenizer.multipliers": (1, 2),
    "tokenizer.blocks": 1, "tokenizer.latent_channels": 8, "generator.width": 16, "generator.depth": 2, "generator.heads": 2,
    "generator.mlp": 32,
}  # fmt: skip
OWN = {
    "llamagen": {"tokenizer.quantizer.codes": 16, "tokenizer.quantizer.width": 4},
    "var": {"tokenizer.quantizer.scales": (1, 2, 4), "tokenizer.quantizer.inner.codes": 16,
            "tokenizer.quantizer.inner.width": 4, "tokenizer.quantizer.phi": 2},
}  # fmt: skip
KNOWN = {"data.name": "digits", "data.path": "", "generator.heads": 2, "data.resolution": 8}
PAIRS = {"llamagen": ("vq.pt", "c2i.safetensors"), "var": ("vae.safetensors", "var.pth")}


def arrays(params):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}


def assert_same(first, second):
    first, second = arrays(first), arrays(second)
    assert first.keys() == second.keys()
    for path, array in first.items():
        assert array.tobytes() == second[path].tobytes(), path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A tiny model of each source: {source: ({kind: parameters}, {kind: file})}."""
    made = {}
    for name, source in SOURCES.items():
        config = apply(base.get_config(), {**source.defaults, **SMALL, **OWN[name]})
        folder = tmp_path_factory.mktemp(name)
        params, files = {}, {}
        for kind, file in zip(("tokenizer", "generator"), PAIRS[name]):
            shapes, random = source.kinds[kind].describe(config).shapes, np.random.default_rng(0)
            params[kind] = jax.tree.map(
                lambda leaf, random=random: 0.1 * random.normal(size=leaf.shape).astype("f4"), shapes
            )
            files[kind] = folder / file
            write_state(files[kind], source.kinds[kind].state(params[kind], config), source.container)
        made[name] = params, files
    return made


def import_files(source, files, workdir, **overrides):
    known = KNOWN | {name.replace("__", "."): value for name, value in overrides.items()}
    import_.run(base.get_config(), workdir, source=source, files=[str(file) for file in files], overrides=known)
    return read_config(workdir)


@pytest.fixture(scope="session", params=list(SOURCES))
def imported(request, models, tmp_path_factory):
    """(source, workdir) of the tiny model; the generator is named first. Tests leave it as it is."""
    workdir = tmp_path_factory.mktemp(f"imported-{request.param}") / "w"
    import_files(request.param, reversed(models[request.param][1].values()), workdir)
    return request.param, workdir


def test_the_config_is_complete_and_the_weights_are_those_of_the_files(imported, models):
    source, workdir = imported
    config = read_config(workdir)
    assert (config.generator.depth, config.generator.width, config.generator.mlp, config.data.classes) == (
        2,
        16,
        32,
        10,
    )
    assert config.keys() == base.get_config().keys()
    tokenizer = describe_tokenizer(config)
    generator = describe_generator(config, token_spec(tokenizer), scan_layers=True)
    for kind, description in {"tokenizer": tokenizer, "generator": generator}.items():
        params, step = load(kind, description, config, workdir)
        assert_same(params, models[source][0][kind])
        assert step == 0
        record = json.loads((workdir / kind / "imported.json").read_text())
        assert record["source"] == source
        assert record["file"].endswith(PAIRS[source][kind == "generator"])


def test_it_is_sampled_from_like_any_other(imported):
    source, workdir = imported
    config = read_config(workdir)
    assert config.sampler.guidance_schedule == {"llamagen": "constant", "var": "linear"}[source]
    samples = Sampler(prepare(config, workdir, write=False), workdir)(np.arange(2, dtype=np.int32), 2)
    assert samples.images.shape == (2, 8, 8, 1)
    assert samples.calls == {"llamagen": 16, "var": 3}[source]


def test_the_same_command_again_changes_nothing(imported, models, capsys):
    source, workdir = imported
    before = {
        path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "config.json"
    }
    import_files(source, models[source][1].values(), workdir)
    assert capsys.readouterr().out.count("imported already") == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_interrupted_import_is_finished(models, tmp_path):
    params, files = models["var"]
    config = import_files("var", files.values(), tmp_path)
    shutil.rmtree(tmp_path / "tokenizer" / "checkpoints")  # as if killed before it was written
    import_files("var", files.values(), tmp_path)
    assert_same(load("tokenizer", describe_tokenizer(config), config, tmp_path)[0], params["tokenizer"])


# ---- export


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_gives_the_files_back_and_import_the_weights(imported, models, tmp_path, suffix):
    source, workdir = imported
    files = [tmp_path / f"{kind}{suffix}" for kind in ("tokenizer", "generator")]
    export.run(read_config(workdir), workdir, source=source, files=[str(file) for file in files])
    for kind, file in zip(("tokenizer", "generator"), files):
        written, original = (read_state(path, SOURCES[source].containers) for path in (file, models[source][1][kind]))
        assert written.keys() == original.keys()
        for name, tensor in original.items():
            assert (written[name].dtype, written[name].tobytes()) == (tensor.dtype, tensor.tobytes())
    config = import_files(source, files, tmp_path / "w")
    tokenizer = describe_tokenizer(config)
    assert_same(load("tokenizer", tokenizer, config, tmp_path / "w")[0], models[source][0]["tokenizer"])
    generator = describe_generator(config, token_spec(tokenizer), scan_layers=True)
    assert_same(load("generator", generator, config, tmp_path / "w")[0], models[source][0]["generator"])


def refused(job, *arguments, **options):
    with pytest.raises(UserError) as caught:
        job(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_be_written_are_refused(imported, tmp_path):
    source, workdir = imported
    config, there = read_config(workdir), tmp_path / "there.pt"
    there.write_text("mine")
    for files, said in (([tmp_path / "a.pt"], "names 1 files"), ([there, tmp_path / "b.pt"], "there.pt is there already"),
                        ([tmp_path / "a.bin", tmp_path / "b.pt"], "a.bin ends in no format")):  # fmt: skip
        message = refused(export.run, config, workdir, source=source, files=[str(file) for file in files])
        assert said in message
    assert there.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [there]


def test_one_of_two_stages_can_be_chosen(imported, tmp_path):
    source, workdir = imported
    config = read_config(workdir)
    config.stages = ("generator",)
    export.run(config, workdir, source=source, files=[str(tmp_path / "g.safetensors")])
    assert SOURCES[source].kind_of(read_state(tmp_path / "g.safetensors", ((),))) == "generator"


def test_a_model_that_the_source_does_not_have_is_refused_by_field(imported, tmp_path):
    source, workdir = imported
    config, files = read_config(workdir), [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    (other,) = set(SOURCES) - {source}
    assert "tokenizer." in refused(export.run, config, workdir, source=other, files=files)
    field, value = {"llamagen": ("rotate_condition", True), "var": ("attention_scale", 0.5)}[source]
    config.generator[field] = value
    assert f"generator.{field}={value}" in refused(export.run, config, workdir, source=source, files=files)


# ---- what is refused


def changed(file, path, container, **tensors):
    """A copy of a file with other tensors; None takes one away."""
    state = read_state(file, [container, ()]) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    write_state(path, {name: tensor for name, tensor in state.items() if tensor is not None}, container)
    return path


class Code:
    def __reduce__(self):
        return os.system, ("touch was-run",)


@pytest.fixture
def bad(models, tmp_path):
    """{what is wrong: (source, files, what the message says)}."""
    (vq, c2i), (vae, var) = (models[source][1].values() for source in ("llamagen", "var"))
    cut, code, bare = (tmp_path / f"{name}.pt" for name in ("cut", "code", "bare"))
    cut.write_bytes(vq.read_bytes()[: vq.stat().st_size // 2])
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Code()}))
        archive.writestr("archive/version", "3")
    bare.write_bytes(pickle.dumps({"model": Code()}))
    ones = np.ones((16, 16), np.float32)
    of = lambda file, name, container=("model",), **tensors: changed(file, tmp_path / name, container, **tensors)  # noqa: E731
    missing = of(c2i, "missing.pt", layers__1__attention__wo__weight=None)
    extra = of(c2i, "extra.safetensors", layers__1__attention__more__weight=ones)
    head = of(c2i, "head.pt", output__weight=np.ones((17, 16), np.float32))
    codes = of(
        c2i,
        "codes.pt",
        output__weight=np.ones((17, 16), np.float32),
        tok_embeddings__weight=np.ones((17, 16), np.float32),
    )
    scales = of(var, "scales.pth", (), lvl_1L=np.array([[0, 1, 1, 1, 1]]))
    mask = of(var, "mask.pth", (), attn_bias_for_masking=np.zeros((1, 1, 21, 21), np.float32))
    other = of(c2i, "other.pt", **dict.fromkeys(read_state(c2i, [()])), features=ones)
    return {
        "cut": ("llamagen", [cut, c2i], [str(cut), "cut short"]),
        "code": ("llamagen", [code], [str(code), "system", "nothing of it was run"]),
        "bare pickle": ("llamagen", [bare], [str(bare), "neither"]),
        "source": ("llamagen", [vq, var], [str(var), "a generator of VAR", "--source=var"]),
        "nothing known": ("var", [other], [str(other), "'features'"]),
        "missing": ("llamagen", [vq, missing], [str(missing), "lacks layers.1.attention.wo.weight"]),
        "extra": ("llamagen", [vq, extra], [str(extra), "has too many layers.1.attention.more.weight"]),
        "shape": ("llamagen", [vq, head], [str(head), "output.weight ((17, 16), not (16, 16))"]),
        "two": ("llamagen", [c2i, c2i], ["both a generator"]),
        "vocabulary": ("llamagen", [vq, codes], ["tokenizer.quantizer.codes=17", "16"]),
        "scales": ("var", [vae, scales], ["quantize.ema_vocab_hit_SV is of 3 scales", "(1, 2)"]),
        "mask": ("var", [vae, mask], [str(mask), "attn_bias_for_masking"]),
        "no file": ("var", [tmp_path / "absent.pth"], ["absent.pth"]),
        "no files": ("var", [], ["--input=FILE"]),
        "no source": ("", [vq], ["--source=llamagen or --source=var"]),
        "unknown source": ("lamagen", [vq], ["did you mean 'llamagen'?"]),
    }  # fmt: skip


def test_files_that_are_no_models_are_refused_in_a_line_and_leave_nothing(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for what, (source, files, said) in bad.items():
        message = refused(import_files, source, files, tmp_path / "w")
        for part in said:
            assert part in message, (what, message)
        assert not (tmp_path / "w").exists(), what
    assert not (tmp_path / "was-run").exists()


def test_another_model_does_not_overwrite_a_workdir(imported, models, tmp_path):
    source, workdir = imported
    (other,) = set(SOURCES) - {source}
    assert "was made with" in refused(import_files, other, models[other][1].values(), workdir)
    same_size = {kind: changed(file, tmp_path / file.name, SOURCES[source].container, quant_conv__bias=np.ones(4, np.float32))
                 for kind, file in models[source][1].items() if kind == "tokenizer"}  # fmt: skip
    before = (workdir / "config.json").read_bytes()
    message = refused(import_files, source, [*same_size.values(), models[source][1]["generator"]], workdir)
    assert "holds other weights" in message
    assert (workdir / "config.json").read_bytes() == before


def test_a_trained_workdir_is_left_alone(imported, models, tmp_path):
    source, _ = imported
    import_files(source, models[source][1].values(), tmp_path)
    (tmp_path / "generator" / "checkpoints" / "0").rename(tmp_path / "generator" / "checkpoints" / "40")
    assert "other weights" in refused(import_files, source, models[source][1].values(), tmp_path)
    assert not (tmp_path / "generator" / "checkpoints" / "0").exists()


def test_a_generator_alone_is_imported_and_has_no_tokenizer_to_sample_with(models, tmp_path):
    config = import_files("llamagen", [models["llamagen"][1]["generator"]], tmp_path, data__resolution=16)
    assert config.tokenizer.multipliers == (1, 1, 2, 2, 4)
    assert config.tokenizer.quantizer.codes == 16
    with pytest.raises(UserError, match="no trained tokenizer"):
        Sampler(config, tmp_path)


def test_overrides_win(models, tmp_path):
    given = {"data__resolution": 12, "generator__dtype": "bfloat16", "sampler__guidance_scale": 4.0}
    config = import_files("llamagen", models["llamagen"][1].values(), tmp_path, **given)
    assert (config.data.resolution, config.generator.dtype, config.sampler.guidance_scale) == (12, "bfloat16", 4.0)


# ---- what other jobs make of it


@pytest.mark.slow
def test_it_is_judged_without_tokens_and_trained_further(models, tmp_path):
    config = import_files("var", models["var"][1].values(), tmp_path, **{
        f"training__{stage}__{name}": value for stage in ("tokenizer", "generator")
        for name, value in {"steps": 2, "batch_size": 16, "learning_rate": 1e-12}.items()
    }, evaluation__samples=10, evaluation__batch_size=10, evaluation__heldout=20)  # fmt: skip
    evaluate.run(prepare(config, tmp_path, write=False), tmp_path)
    record = json.loads((tmp_path / "eval" / "fixed_noise-0.json").read_text())
    assert "--job=extract" in record["missing"]["generator_loss_nats_per_token"]
    assert record["metrics"]["distinct_samples"] > 1
    train.run(config, tmp_path)
    trained, step = load("tokenizer", describe_tokenizer(config), config, tmp_path)
    assert step == 2
    for path, array in arrays(models["var"][0]["tokenizer"]).items():
        np.testing.assert_allclose(arrays(trained)[path], array, atol=1e-6)


def command(*arguments, cwd):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    return subprocess.run([sys.executable, ROOT / "main.py", *map(str, arguments)], capture_output=True, text=True,
                          env=environment, timeout=300, cwd=cwd)  # fmt: skip


def test_the_command_imports_and_tells_mistakes_in_one_line(models, bad, tmp_path):
    files = ",".join(map(str, models["var"][1].values()))
    result = command("--job=import", "--source=var", f"--input={files}", "--workdir=w", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert read_config(tmp_path / "w").generator.width == 16
    _, (code,), _ = bad["code"]
    for arguments, said in ((["--source=llamagen", f"--input={code}", "--workdir=v"], "nothing of it was run"),
                            (["--source=var", f"--input={files}"], "--job=import needs --workdir=DIR")):  # fmt: skip
        result = command("--job=import", *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "v").exists()


def test_the_parity_models_are_imported_and_come_back(shared, tmp_path):
    folder = shared / "parity" / "var"
    files = [folder / "var_shared_tiny.safetensors", folder / "vae_tiny.pth"]
    import_.run(base.get_config(), tmp_path / "w", source="var", files=list(map(str, files)), overrides={})
    out = [tmp_path / "vae.safetensors", tmp_path / "var.pth"]
    export.run(read_config(tmp_path / "w"), tmp_path / "w", source="var", files=list(map(str, out)))
    for original, written in zip(reversed(files), out):
        theirs, ours = read_state(original, ((),)), read_state(written, ((),))
        assert theirs.keys() == ours.keys()
        assert all(ours[name].tobytes() == tensor.tobytes() for name, tensor in theirs.items())
