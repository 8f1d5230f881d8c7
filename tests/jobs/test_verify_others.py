"""Verification of folders whose models have other names and sizes than the originals'."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import excerpt, verified

from configs import base
from interop.rule_weights import rule_state
from interop.sources import SOURCES
from interop.state_dicts import write_state
from models.tokens import Tokens


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
