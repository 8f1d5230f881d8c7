"""Verification against reference outputs: those of the originals, and folders that are made wrong or of other sizes here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from interop.rule_weights import rule_state
from interop.sources import SOURCES
from interop.state_dicts import read_state, write_state
from jobs import verify
from models.errors import Failed, UserError
from models.tokens import Tokens

ROOT = Path(__file__).parent.parent.parent
NPZ = ("ref.npz", "ref_rule.npz")
INPUTS = {"llamagen_c2i": 21, "llamagen_t2i": 10, "var": 27}  # by folder: arrays that nothing can compute


def verified(folder, capsys):
    """The result of a verification, and its readable lines."""
    capsys.readouterr()
    try:
        verify.run(base.get_config(), Path("nowhere"), folder=folder)
        failed = False
    except Failed:
        failed = True
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert failed == bool(result["failed"])
    assert result["checked"] == len(result["arrays"])
    return result, lines


def excerpt(source, to, *beginnings, names=lambda name: name, change=lambda name, array: array):
    """A copy of a folder with only the arrays that begin so, their names and their models' changed, and their numbers."""
    to.mkdir()
    manifest = json.loads((source / "manifest.json").read_text())
    rules = json.loads((source / "rule_weights.json").read_text())
    for file in NPZ:
        kept = {name: said for name, said in manifest["arrays"][file].items() if name.startswith(beginnings)}
        if kept:
            with np.load(source / file) as arrays:
                np.savez(to / file, **{names(name): change(name, arrays[name]) for name in kept})
        manifest["arrays"][file] = {
            names(name): {**said, "description": said["description"].replace(name, names(name))}
            for name, said in kept.items()
        }
    manifest["arrays"] = {file: arrays for file, arrays in manifest["arrays"].items() if arrays}
    for model in manifest["models"].values():
        for file in model.get("files", ()):
            shutil.copy(source / file, to / file)
            (to / file).chmod(0o644)
    for content, file in ((manifest, "manifest.json"), (rules, "rule_weights.json")):
        content["models"] = {names(f"{name}/").removesuffix("/"): model for name, model in content["models"].items()}
        (to / file).write_text(json.dumps(content))
    return to


def edited(folder, edit):
    """The folder, its manifest changed in place by `edit`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


# ---- the originals' outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_every_array_of_the_originals_is_within_its_tolerance(shared, name, capsys):
    folder = shared / "parity" / name
    result, _ = verified(folder, capsys)
    assert result["failed"] == 0, [found for found in result["arrays"].items() if not found[1]["ok"]]
    assert result["skipped"] == {}
    names = [array for file in NPZ for array in np.load(folder / file).files]
    assert sorted([*result["arrays"], *result["inputs"]]) == sorted(names)
    assert len(result["inputs"]) == INPUTS[name]
    assert all(model["ok"] for model in result["models"].values())
    discrete = [found for found in result["arrays"].values() if "share_equal" in found and "max_abs_diff" not in found]
    assert discrete
    assert all(found["share_equal"] == 1 for found in discrete)


@pytest.mark.parametrize(
    ("name", "beginnings", "models"),
    [
        ("llamagen_c2i", ("vq/", "samp/", "rope/"), {"vq"}),
        ("llamagen_c2i", ("gqa/",), {"gqa"}),
        ("llamagen_t2i", ("t2i_short/",), {"t2i_short"}),
        ("var", ("vae/", "phi/", "samp/"), {"vae"}),
    ],
)
def test_a_part_of_a_folder_is_verified(shared, tmp_path, capsys, name, beginnings, models):
    result, lines = verified(excerpt(shared / "parity" / name, tmp_path / "part", *beginnings), capsys)
    assert result["failed"] == 0, lines
    assert set(result["models"]) == models
    assert max(found.get("of_tolerance", 0) for found in result["arrays"].values()) <= 1


# ---- what is wrong is found


@pytest.fixture(scope="module")
def small(shared, tmp_path_factory):
    """A part that is quickly verified."""
    return excerpt(shared / "parity" / "llamagen_c2i", tmp_path_factory.mktemp("small") / "f", "vq/", "samp/", "rope/")


@pytest.mark.parametrize(
    ("name", "index", "by", "found"),
    [
        ("vq/recon", (1, 2, 3, 4), 2e-3, "(1, 2, 3, 4)"),
        ("vq/indices", (1, 5), 1, "(1, 5)"),
        ("vq/recon_u8", (0, 0, 0, 0), 3, "(0, 0, 0, 0)"),
        ("samp/probs", (2, 7), 1e-4, "(2, 7)"),
        ("rope/x_rotated", (0, 3, 1, 9), np.nan, "nan"),
    ],
)
def test_one_wrong_number_is_one_failure_that_is_named(small, tmp_path, capsys, name, index, by, found):
    def change(other, array):
        if other == name:
            array = array.copy()
            array[index] += by
        return array

    folder = excerpt(small_source(small), tmp_path / "f", "vq/", "samp/", "rope/", change=change)
    result, lines = verified(folder, capsys)
    assert result["failed"] == 1
    assert [label for label, array in result["arrays"].items() if not array["ok"]] == [name]
    assert found in result["arrays"][name]["note"]
    assert any(line.startswith(f"  FAILED {name}: ") for line in lines)


def small_source(small):
    """`excerpt` reads both npz files of its source where the manifest names both."""
    return edited(small, lambda manifest: [manifest["arrays"].setdefault(file, {}) for file in NPZ])


def test_a_wrong_choice_comes_with_how_close_it_was(small, tmp_path, capsys):
    def change(name, array):
        return (array + (name == "vq/indices")).astype(array.dtype)

    result, _ = verified(excerpt(small_source(small), tmp_path / "f", "vq/", change=change), capsys)
    note = result["arrays"]["vq/indices"]["note"]
    assert "32 of 32 differ" in note
    with np.load(small / "ref.npz") as arrays:
        assert f"{arrays['vq/index_margin'][0, 0]:.3g} there" in note


def test_a_difference_within_the_tolerance_is_none(small, tmp_path, capsys):
    def change(name, array):
        return (array + 1e-5).astype(array.dtype) if name == "vq/latent" else array

    result, _ = verified(excerpt(small_source(small), tmp_path / "f", "vq/", change=change), capsys)
    assert result["failed"] == 0
    assert 1e-5 < result["arrays"]["vq/latent"]["max_abs_diff"] < 3e-5


def test_names_without_a_rule_are_skipped_and_fail(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "vq/images_u8")
    with np.load(folder / "ref.npz") as arrays:
        known = dict(arrays)
    np.savez(folder / "ref.npz", **known, **{"vq/mystery": np.zeros(3), "vq/latent": np.zeros(3), "new/x": np.zeros(3)})
    said = {"shape": [3], "dtype": "float64", "tolerance": "exact"}
    edited(folder, lambda manifest: manifest["arrays"]["ref.npz"].update({"vq/mystery": said}))
    result, _ = verified(folder, capsys)
    assert result["skipped"] == {
        "vq/mystery": "no rule for this name",
        "vq/latent": "the manifest gives no tolerance for it",
        "new/x": "no rule for this name",
    }
    assert result["failed"] == 3


def test_arrays_that_are_not_there_or_of_another_kind_fail(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "samp/")

    def edit(manifest):
        arrays = manifest["arrays"]["ref.npz"]
        arrays["rope/freqs_cis_grid5_hd8"] = arrays["rope/x_rotated"]
        arrays["rope/x"]["shape"] = [1, 2]
        arrays["samp/tie_probs"]["dtype"] = "float64"

    result, _ = verified(edited(folder, edit), capsys)
    notes = {label: array["note"] for label, array in result["arrays"].items() if not array["ok"]}
    assert set(notes) == {"rope/freqs_cis_grid5_hd8", "rope/x", "samp/tie_probs"}
    assert "lacks it" in notes["rope/freqs_cis_grid5_hd8"]
    assert "float32 (1, 17, 2, 64)" in notes["rope/x"]


def test_an_input_that_is_not_there_fails_what_needs_it(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/")
    with np.load(folder / "ref.npz") as arrays:
        np.savez(folder / "ref.npz", **{name: array for name, array in arrays.items() if name != "rope/x"})
    result, _ = verified(folder, capsys)
    assert {label for label, array in result["arrays"].items() if not array["ok"]} == {"rope/x", "rope/x_rotated"}


def test_files_of_one_model_must_hold_the_same(small, tmp_path, capsys):
    folder = excerpt(small_source(small), tmp_path / "f", "vq/images_u8", "vq/latent")
    state = dict(read_state(folder / "vq_ds16_c2i_tiny.safetensors", [()]))
    other = state["encoder.conv_in.bias"].copy()
    other[3] = np.nextafter(other[3], np.float32(np.inf))
    write_state(folder / "other.safetensors", {**state, "encoder.conv_in.bias": other}, ())
    (folder / "other.safetensors").replace(folder / "vq_ds16_c2i_tiny.safetensors")
    result, lines = verified(folder, capsys)
    assert result["models"]["vq"]["ok"] is False
    assert result["failed"] == 1
    assert any("encoder.conv_in.bias" in line and "FAILED vq: " in line for line in lines)


def test_the_hash_of_weights_by_rule_is_checked(shared, tmp_path, capsys):
    folder = excerpt(shared / "parity" / "llamagen_t2i", tmp_path / "f", "t2i_short/c", "t2i_short/emb_masks")
    rules = json.loads((folder / "rule_weights.json").read_text())
    rules["models"]["t2i_short"]["seed_name"] += "x"
    (folder / "rule_weights.json").write_text(json.dumps(rules))
    result, lines = verified(folder, capsys)
    assert result["models"]["t2i_short"]["ok"] is False
    assert any("sha256" in line for line in lines)


# ---- bad input


def damage(folder, what):
    """Make a folder unreadable in one way."""
    if what == "npz cut":
        (folder / "ref.npz").write_bytes((folder / "ref.npz").read_bytes()[:5000])
    elif what == "npz missing":
        (folder / "ref.npz").unlink()
    elif what == "no models":
        edited(folder, lambda manifest: manifest.update(models={}))
    elif what == "manifest cut":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-20])
    elif what == "manifest of another form":
        edited(folder, lambda manifest: manifest["arrays"]["ref.npz"]["vq/input"].pop("tolerance"))
    elif what == "weights missing":
        (folder / "vq_ds16_c2i_tiny.pt").unlink()
    elif what == "weights cut":
        weights = folder / "vq_ds16_c2i_tiny.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no rule":
        (folder / "rule_weights.json").unlink()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("npz cut", "ref.npz"), ("npz missing", "ref.npz"), ("no models", "no models"), ("manifest cut", "damaged"),
        ("manifest of another form", "tolerance"), ("weights missing", "vq_ds16_c2i_tiny.pt"),
        ("weights cut", "vq_ds16_c2i_tiny.safetensors"), ("no rule", "rule_weights.json"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_the_users_mistake(small, tmp_path, what, told):
    folder = excerpt(small_source(small), tmp_path / "f", "vq/")
    damage(folder, what)
    with pytest.raises(UserError, match=told) as caught:
        verify.run(base.get_config(), Path("nowhere"), folder=folder)
    assert "\n" not in str(caught.value)


def command(*arguments):
    """main.py, as a user's shell would run it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    call = [sys.executable, str(ROOT / "main.py"), "--job=verify", *arguments]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_exit_codes(small, tmp_path):
    folder = excerpt(small_source(small), tmp_path / "f", "rope/", "samp/")
    fine = command(f"--input={folder}")
    assert fine.returncode == 0, fine.stderr
    assert json.loads(fine.stdout.splitlines()[-1])["failed"] == 0
    edited(folder, lambda manifest: manifest["arrays"]["ref.npz"]["rope/x_rotated"].update(tolerance="exact"))
    wrong = command(f"--input={folder}")
    assert wrong.returncode == 1, wrong.stderr
    assert json.loads(wrong.stdout.splitlines()[-1])["failed"] == 1
    assert wrong.stderr == ""
    for arguments in ((), (f"--input={tmp_path}",)):
        refused = command(*arguments)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1


# ---- folders of other names and sizes


def test_models_may_have_any_name(shared, tmp_path, capsys):
    new = {"gpt/": "some/other/", "vq/": "gpt/", "gqa/": "vq/"}  # the old names are those of other models

    def names(name):
        return next((new[old] + name.removeprefix(old) for old in new if name.startswith(old)), name)

    arrays = (
        "gpt/class",
        "gpt/tokens",
        "gpt/tf_logits",
        "gpt/greedy_cfg2/",
        "image/greedy_cfg2",
        "vq/images",
        "vq/recon",
    )
    folder = excerpt(shared / "parity" / "llamagen_c2i", tmp_path / "f", *arrays, names=names)
    result, lines = verified(folder, capsys)
    assert result["failed"] == 0, lines
    assert {"some/other/greedy_cfg2/step_logits", "gpt/recon", "image/greedy_cfg2_u8"} <= set(result["arrays"])
    assert set(result["models"]) == {"some/other", "gpt"}


def numpy_llamagen(state, config, ids, labels):
    """Logits (B, N, V) of LlamaGen in float64, written from its description, all slots at once."""
    heads, groups = config["n_head"], config["n_kv_head"]
    side, d = int(config["block_size"] ** 0.5), config["dim"] // config["n_head"]
    w = {name: tensor.astype(np.float64) for name, tensor in state.items()}
    x = np.concatenate([w["cls_embedding.embedding_table.weight"][labels][:, None], w["tok_embeddings.weight"][ids]], 1)
    B, T = x.shape[:2]
    rotation = np.zeros((T, d // 2), complex)
    for t in range(1, T):
        for pair in range(d // 2):
            place = (t - 1) // side if pair < d // 4 else (t - 1) % side
            rotation[t, pair] = np.exp(1j * place * 10000.0 ** (-2 * (pair % (d // 4)) / (d // 2)))

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def turned(x):
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * rotation[:, None]
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    for layer in range(config["n_layer"]):
        name = f"layers.{layer}."
        qkv = norm(x, w[f"{name}attention_norm.weight"]) @ w[f"{name}attention.wqkv.weight"].T
        q, k, v = np.split(qkv, [heads * d, (heads + groups) * d], axis=-1)
        q, k = turned(q.reshape(B, T, heads, d)), turned(k.reshape(B, T, groups, d))
        k, v = (x.reshape(B, T, groups, d).repeat(heads // groups, axis=2) for x in (k, v))
        scores = np.einsum("bthd,bshd->bhts", q, k) / d**0.5
        scores[..., ~np.tri(T, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v).reshape(B, T, -1)
        x = x + attended @ w[f"{name}attention.wo.weight"].T
        h = norm(x, w[f"{name}ffn_norm.weight"])
        gate, up = (h @ w[f"{name}feed_forward.w{i}.weight"].T for i in (1, 3))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{name}feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def write_folder(folder, models, arrays, rules=None):
    """A folder of reference outputs; `arrays` are {name: (array, tolerance)}."""
    said = {
        name: {
            "shape": array.shape, "dtype": array.dtype.name,
            "tolerance": "exact" if tolerance is None else {"atol": tolerance, "rtol": 1e-4},
        }
        for name, (array, tolerance) in arrays.items()
    }  # fmt: skip
    np.savez(folder / "ref.npz", **{name: array for name, (array, _) in arrays.items()})
    (folder / "manifest.json").write_text(json.dumps({"models": models, "arrays": {"ref.npz": said}}))
    (folder / "rule_weights.json").write_text(json.dumps({"models": rules or {}}))
    return folder


@pytest.mark.parametrize("stored", [False, True])
def test_llamagen_of_other_sizes_agrees_with_a_float64_formula(tmp_path, capsys, stored):
    config = {"dim": 48, "n_layer": 2, "n_head": 6, "n_kv_head": 3, "multiple_of": 16, "num_classes": 5, "vocab_size": 40,
              "cls_token_num": 1, "block_size": 9, "model_type": "c2i"}  # fmt: skip
    shapes = {"cls_embedding.embedding_table.weight": (6, 48), "tok_embeddings.weight": (40, 48)}
    for layer in range(2):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (96, 48), f"layers.{layer}.attention.wo.weight": (48, 48),
            f"layers.{layer}.feed_forward.w1.weight": (128, 48), f"layers.{layer}.feed_forward.w3.weight": (128, 48),
            f"layers.{layer}.feed_forward.w2.weight": (48, 128), f"layers.{layer}.attention_norm.weight": (48,),
            f"layers.{layer}.ffn_norm.weight": (48,),
        }  # fmt: skip
    shapes |= {"norm.weight": (48,), "output.weight": (40, 48)}
    tensors = [{"key": key, "shape": shape, "dtype": "float32", "mean": float(len(shape) == 1),
                "amp": 0.5 if len(shape) == 1 else 1.7 if "emb" in key else 2 * shape[-1] ** -0.5}
               for key, shape in shapes.items()]  # fmt: skip
    state, digest = rule_state("seed", tensors)
    parameters = sum(tensor.size for tensor in state.values())

    labels, tokens = np.array([4, 0, 2]), np.random.default_rng(0).integers(0, 40, (3, 9))
    null = np.full_like(labels, 5)
    drawn, steps = np.zeros((3, 0), np.int64), []
    for step in range(9):
        conditional, unconditional = (numpy_llamagen(state, config, drawn, asked)[:, -1] for asked in (labels, null))
        guided = unconditional + (conditional - unconditional) * 3 if step < 1 + 2 else conditional
        steps.append(guided)
        drawn = np.concatenate([drawn, guided.argmax(-1)[:, None]], axis=1)
    steps = np.stack(steps, axis=1)
    ordered = np.sort(steps, axis=-1)
    gap = ordered[..., -1] - ordered[..., -2]
    assert gap.min() > 1e-3
    forced, without = (numpy_llamagen(state, config, tokens[:, :-1], asked) for asked in (labels, null))
    arrays = {
        "class_ids": (labels, None), "tokens": (tokens, None), "some_positions": (np.array([8, 2]), None),
        "tf_logits": (forced, 1e-4), "tf_logits_null": (without, 1e-4), "tf_argmax": (forced.argmax(-1), None),
        "tf_logits_null_positions": (np.array([8, 2]), None), "tf_logits_null_at_positions": (without[:, [8, 2]], 1e-4),
        "tf_logsumexp": (np.log(np.exp(forced).sum(-1)), 1e-4), "greedy_cfg3_interval1/tokens": (drawn, None),
        "greedy_cfg3_interval1/step_logits": (steps, 3e-4), "greedy_cfg3_interval1/top2_gap": (gap, 3e-4),
        "param_count": (np.array([parameters]), None),
    }  # fmt: skip
    model = {"config": config, "num_params": parameters}
    if stored:
        write_state(tmp_path / "w.safetensors", state, ())
        model["files"] = ["w.safetensors"]
    rules = {"a/b": {"seed_name": "seed", "tensors": tensors, "sha256_of_filled_tensors": digest}}
    arrays = {f"a/b/{name}": found for name, found in arrays.items()}
    result, lines = verified(write_folder(tmp_path, {"a/b": model}, arrays, rules), capsys)
    assert result["failed"] == 0, lines
    assert set(result["inputs"]) == {name for name in arrays if name.endswith(("class_ids", "/b/tokens", "positions"))
                                     and "at_" not in name}  # fmt: skip


@pytest.fixture(scope="module")
def other_var(tmp_path_factory):
    """A folder of a VAR with scales, sizes and names of its own, its outputs by the modules called one by one."""
    folder, source = tmp_path_factory.mktemp("other_var"), SOURCES["var"]
    config = source.configure(base.get_config(), {}, {
        "data.resolution": 10, "data.classes": 3, "tokenizer.channels": 32, "tokenizer.multipliers": (1, 2),
        "tokenizer.blocks": 1, "tokenizer.latent_channels": 12, "tokenizer.quantizer.scales": (2, 3, 5),
        "tokenizer.quantizer.phi": 3, "tokenizer.quantizer.inner.codes": 19, "tokenizer.quantizer.inner.width": 12,
        "generator.width": 24, "generator.depth": 3, "generator.heads": 3, "generator.mlp": 96,
    })  # fmt: skip
    params, described = {}, {}
    for seed, (kind, name) in enumerate((("tokenizer", "pics/a"), ("generator", "pics/b"))):
        described[kind] = source.kinds[kind].describe(config)
        fresh = described[kind].init(jax.random.key(seed))
        leaves, tree = jax.tree.flatten(fresh)
        keys = jax.random.split(jax.random.key(seed + 2), len(leaves))
        leaves = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
        params[kind] = jax.tree.unflatten(tree, leaves)
        write_state(folder / f"{name[-1]}.safetensors", source.kinds[kind].state(params[kind], config), ())

    images, labels = np.random.default_rng(0).integers(0, 256, (2, 10, 10, 3), np.uint8), jnp.array([2, 0])

    @jax.jit
    def compute(params):
        tokenizer, generator = (described[kind].merge(params[kind]) for kind in ("tokenizer", "generator"))
        quantizer = tokenizer.quantizer
        latents = tokenizer.latents(jnp.asarray(images, jnp.float32) / 127.5 - 1)
        ids = quantizer.quantize(latents)[1]

        def guided(ids):
            fed, t = quantizer.scale_inputs(ids), 2.5 * generator.layout.time[:, None] / 2
            return (1 + t) * generator.logits(fed, labels) - t * generator.logits(fed, jnp.full(2, 3))

        # Scale by scale with all slots at once: what is fed for later scales is seen by nobody.
        greedy = jnp.zeros_like(ids)
        for start, stop in tokenizer.spec.shape.bounds:
            greedy = greedy.at[:, start:stop, 0].set(guided(greedy)[:, start:stop].argmax(-1))
        picture = (tokenizer.decode(Tokens(greedy)) + 1) / 2
        return {
            "a/latent": latents.transpose(0, 3, 1, 2), "a/indices": ids[..., 0],
            "b/teacher_input": quantizer.scale_inputs(ids),
            "b/tf_logits": generator.logits(quantizer.scale_inputs(ids), labels),
            "b/greedy_cfg2.5/tokens": greedy[..., 0], "b/greedy_cfg2.5/logits": guided(greedy),
            "b/greedy_cfg2.5/image": picture.transpose(0, 3, 1, 2),
            "b/greedy_cfg2.5/image_u8": (picture * 255).astype(jnp.uint8),
        }  # fmt: skip

    given = {"a/images_u8": images, "a/phi_index": np.array([0, 1, 2]), "b/labels": labels}
    outputs = {f"pics/{name}": np.asarray(array) for name, array in {**given, **compute(params)}.items()}
    tolerances = {"f": 1e-3, "u": 1, "i": None}
    arrays = {name: (array, tolerances[array.dtype.kind]) for name, array in outputs.items()}
    models = {
        "pics/a": {"config": {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 12, "vocab_size": 19,
                              "patch_nums": [2, 3, 5]}, "files": ["a.safetensors"]},
        "pics/b": {"config": {"num_classes": 3, "depth": 3, "embed_dim": 24, "num_heads": 3, "shared_aln": False,
                              "attn_l2_norm": True, "patch_nums": [2, 3, 5]}, "files": ["b.safetensors"]},
    }  # fmt: skip
    return write_folder(folder, models, arrays)


@pytest.mark.slow
def test_var_of_other_sizes_agrees_with_its_modules(other_var, capsys):
    result, lines = verified(other_var, capsys)
    assert result["failed"] == 0, lines
    assert sorted(result["inputs"]) == ["pics/a/images_u8", "pics/b/labels"]
