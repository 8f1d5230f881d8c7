import jax.numpy as jnp
import numpy as np
import pytest
from tables import SMALL_TOKENIZER, Reference, assert_identical, blank, configured, describe, load, rule_models

from interop.sources import SOURCES
from interop.state_dicts import read_state, write_state
from interop.var import SCALES
from models.errors import UserError
from models.modules import parameter_count

# depth: (last scale, shared modulation, parameters, tensors), as published
SIZES = {
    16: (16, False, 310_283_520, 220),
    20: (16, False, 600_917_136, 272),
    24: (16, False, 1_033_399_360, 324),
    30: (16, False, 2_010_020_356, 402),
    36: (32, True, 2_353_893_904, 446),
}
GENERATOR, TOKENIZER = (SOURCES["var"].kinds[kind] for kind in ("generator", "tokenizer"))
TINY = {**SMALL_TOKENIZER, "tokenizer.multipliers": (1, 1), "data.resolution": 6, "data.classes": 2,
        "tokenizer.quantizer.scales": (1, 2, 3), "tokenizer.quantizer.inner.codes": 7, "tokenizer.quantizer.inner.width": 4,
        "generator.width": 8, "generator.depth": 2, "generator.heads": 2, "generator.mlp": 32}  # fmt: skip


def fields(depth):
    last, shared, *_ = SIZES[depth]
    return {**SMALL_TOKENIZER, "data.resolution": 16 * last, "tokenizer.quantizer.scales": SCALES[last],
            "generator.width": 64 * depth, "generator.depth": depth, "generator.heads": depth, "generator.mlp": 256 * depth,
            "generator.norm": "adaptive_shared" if shared else "adaptive"}  # fmt: skip


@pytest.mark.parametrize("depth", SIZES)
def test_a_generator_has_the_published_parameters_and_tensors_and_shows_its_size(depth):
    _, _, count, tensors = SIZES[depth]
    expected = fields(depth)
    shapes, state = describe("var", "generator", expected)
    assert parameter_count(shapes) == count
    assert len(state) == tensors
    shown = GENERATOR.config(state, {})
    for field in ("width", "depth", "heads", "mlp", "norm"):
        assert shown[f"generator.{field}"] == expected[f"generator.{field}"]
    assert shown["tokenizer.quantizer.scales"] == expected["tokenizer.quantizer.scales"]
    assert (shown["generator.qk_norm"], shown["data.classes"], shown["tokenizer.quantizer.inner.codes"]) == (
        "l2",
        1000,
        4096,
    )


def test_the_tokenizer_has_the_published_parameters_and_tensors():
    shapes, state = describe("var", "tokenizer", {})
    assert parameter_count(shapes) == 108_948_355
    assert len(state) == 324
    shown = TOKENIZER.config(state, {})
    assert (shown["tokenizer.channels"], shown["tokenizer.multipliers"]) == (160, (1, 1, 2, 2, 4))
    assert (shown["tokenizer.projection"], shown["tokenizer.quantizer.phi"], shown["data.resolution"]) == (3, 4, 256)


def test_the_names_and_shapes_are_those_of_the_originals(shared):
    for name, (of, tensors) in rule_models(shared / "parity" / "var").items():
        kind = "tokenizer" if "ch" in of else "generator"
        state = {key: blank(shape) for key, shape in tensors.items() if key != "lvl_1L"}
        assert SOURCES["var"].kind_of(state) == kind
        known = {"tokenizer.quantizer.scales": of["patch_nums"]}
        if kind == "generator":
            known["generator.heads"] = of["num_heads"]
        shown = SOURCES["var"].kinds[kind].config(state, known)
        stride = {} if kind == "tokenizer" else SMALL_TOKENIZER | {"data.resolution": 16 * of["patch_nums"][-1]}
        _, ours = describe("var", kind, stride | shown)
        assert {key: tensor.shape for key, tensor in ours.items()} == tensors, name


# ---- what the shapes show


def test_scales_are_counted_or_known_by_their_tokens_or_told():
    state = {"word_embed.weight": blank((64, 32)), "class_emb.weight": blank((11, 64)), "head.weight": blank((99, 64)),
             "blocks.0.ffn.fc1.weight": blank((256, 64)), "blocks.0.attn.q_bias": blank((64,))}  # fmt: skip
    scales = lambda more, known=None: GENERATOR.config(state | more, known or {})["tokenizer.quantizer.scales"]  # noqa: E731
    assert scales({"lvl_1L": np.array([[0, 1, 1, 1, 1, 2, 2, 2, 2]])}) == (1, 2, 2)
    assert scales({"pos_1LC": blank((1, 680, 64))}) == SCALES[16]
    assert scales({"pos_1LC": blank((1, 2240, 64))}) == SCALES[32]
    assert scales({"pos_1LC": blank((1, 30, 64))}, {"tokenizer.quantizer.scales": (1, 2, 3, 4)}) == (1, 2, 3, 4)
    with pytest.raises(UserError, match=r"30 tokens.*--config\.tokenizer\.quantizer\.scales"):
        scales({"pos_1LC": blank((1, 30, 64))})
    for wrong in ([[0, 1, 1, 1]], [[0, 2, 2, 2, 2]]):
        with pytest.raises(UserError, match="lvl_1L"):
            scales({"lvl_1L": np.array(wrong)})


def test_without_scales_of_heads_attention_is_not_normalised_and_heads_are_64_wide_or_told():
    _, state = describe("var", "generator", {**TINY, "generator.width": 128, "generator.qk_norm": "none",
                                             "generator.attention_scale": 0.25})  # fmt: skip
    shown = GENERATOR.config(state, {})
    assert (shown["generator.qk_norm"], shown["generator.attention_scale"], shown["generator.heads"]) == (
        "none",
        0.25,
        2,
    )
    assert GENERATOR.config(state, {"generator.heads": 4})["generator.heads"] == 4
    with pytest.raises(UserError, match=r"--config\.generator\.heads"):
        GENERATOR.config(state, {"generator.heads": 3})


def test_images_of_512_pixels_have_other_scales():
    _, state = describe("var", "tokenizer", {**SMALL_TOKENIZER})
    assert TOKENIZER.config(state, {"data.resolution": 512})["tokenizer.quantizer.scales"] == SCALES[32]
    with pytest.raises(UserError, match="no released model"):
        TOKENIZER.config(state, {"data.resolution": 384})
    with pytest.raises(UserError, match="of 10 scales"):
        TOKENIZER.config(state, {"tokenizer.quantizer.scales": (1, 2, 3)})


def test_one_phi_for_all_scales_has_a_name_of_its_own():
    _, state = describe("var", "tokenizer", TINY | {"tokenizer.quantizer.phi": 1})
    assert "quantize.quant_resi.qresi.weight" in state
    assert TOKENIZER.config(state, TINY)["tokenizer.quantizer.phi"] == 1


# ---- buffers


@pytest.fixture(scope="module")
def tiny():
    """Config and tensors of a tiny generator."""
    return configured("var", TINY), describe("var", "generator", TINY)[1]


def test_buffers_are_written_as_the_original_makes_them(tiny):
    _, state = tiny
    np.testing.assert_array_equal(state["lvl_1L"], [[0, 1, 1, 1, 1, *[2] * 9]])
    assert state["lvl_1L"].dtype == np.int64
    mask = state["attn_bias_for_masking"]
    assert (mask.shape, mask.dtype) == ((1, 1, 14, 14), np.float32)
    for t, s in np.ndindex(14, 14):
        assert mask[0, 0, t, s] == (0 if state["lvl_1L"][0, t] >= state["lvl_1L"][0, s] else -np.inf)
    np.testing.assert_array_equal(state["blocks.1.attn.zero_k_bias"], np.zeros(8))
    _, vae = describe("var", "tokenizer", TINY)
    np.testing.assert_array_equal(vae["quantize.ema_vocab_hit_SV"], np.zeros((3, 7)))


@pytest.mark.parametrize("name", ["lvl_1L", "attn_bias_for_masking", "blocks.1.attn.zero_k_bias"])
def test_buffers_that_the_model_follows_are_checked(tiny, name):
    config, state = tiny
    GENERATOR.params(state, config)
    GENERATOR.params({key: tensor for key, tensor in state.items() if key != name}, config)
    changed = state[name].copy()
    changed.flat[-1] = 1
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        GENERATOR.params(state | {name: changed}, config)


def test_counts_of_codes_are_ignored():
    config = configured("var", TINY)
    _, state = describe("var", "tokenizer", TINY)
    TOKENIZER.params(state | {"quantize.ema_vocab_hit_SV": np.ones((3, 7))}, config)


# ---- the same weights give the same numbers


@pytest.fixture(scope="module", params=["var", "var_shared"])
def pair(shared, request):
    folder = shared / "parity" / "var"
    _, found = load("var", [folder / "vae_tiny.pth", folder / f"{request.param}_tiny.pth"], {})
    return request.param, Reference(folder), found


def test_a_tokenizer_gives_the_originals_numbers(pair):
    _, reference, found = pair
    tokenizer, *_ = found["tokenizer"]
    images = jnp.asarray(reference.channels_last("vae/input"))
    reference.agree("vae/encoder_out", tokenizer.encoder(images))
    reference.agree("vae/latent", tokenizer.latents(images))
    tokens = tokenizer.encode(images)
    reference.agree("vae/indices", tokens.ids[..., 0])
    sums = [total.transpose(0, 3, 1, 2) for total in tokenizer.quantizer.sums(tokens.ids)]
    reference.agree("vae/fhat_per_scale", jnp.stack(sums, axis=1))
    reference.agree("vae/var_input", tokenizer.quantizer.scale_inputs(tokens.ids))
    reference.agree("vae/recon", tokenizer.decode(tokens))


def test_a_generator_gives_the_originals_logits(pair):
    name, reference, found = pair
    generator, *_ = found["generator"]
    labels = jnp.asarray(reference[f"{name}/labels"].astype(np.int32))
    inputs = jnp.asarray(reference[f"{name}/teacher_input"])
    reference.agree(f"{name}/tf_logits", generator.logits(inputs, labels))
    reference.agree(f"{name}/tf_logits_null", generator.logits(inputs, generator.condition.null(labels)))


def test_export_gives_every_tensor_back_bit_for_bit(pair, tmp_path):
    *_, found = pair
    for kind, (_, params, state) in found.items():
        fields = SOURCES["var"].kinds[kind].config(state, {"tokenizer.quantizer.scales": (1, 2, 3, 4)})
        config = configured(
            "var", fields | {"tokenizer.channels": 32, "tokenizer.multipliers": (1, 1), "data.resolution": 8}
        )
        written = SOURCES["var"].kinds[kind].state(params, config)
        assert written.keys() == state.keys()
        for suffix in ("pth", "safetensors"):
            path = tmp_path / f"{kind}.{suffix}"
            write_state(path, written, SOURCES["var"].container)
            assert_identical(read_state(path, SOURCES["var"].containers), state)


def test_two_of_no_pair_are_refused(shared):
    folder = shared / "parity" / "var"
    states = {
        "tokenizer": read_state(folder / "vae_tiny.pth", ((),)),
        "generator": read_state(folder / "var_tiny.pth", ((),)),
    }
    config = configured("var", {})
    with pytest.raises(UserError, match=r"tokenizer\.quantizer\.inner\.codes=99.*64"):
        SOURCES["var"].configure(
            config, states | {"generator": states["generator"] | {"head.weight": blank((99, 64))}}, {}
        )
    with pytest.raises(UserError, match=r"is of 4 scales, but \(1, 2\) are 2"):
        SOURCES["var"].configure(
            config, states | {"generator": states["generator"] | {"lvl_1L": np.array([0, 1, 1, 1, 1])}}, {}
        )


@pytest.mark.parametrize("container", [(), ("trainer", "var_wo_ddp")])
def test_files_of_its_own_training_are_read_as_well(tiny, tmp_path, container):
    config, state = tiny
    write_state(tmp_path / "ckpt.pth", state, container)
    read = read_state(tmp_path / "ckpt.pth", SOURCES["var"].containers)
    assert SOURCES["var"].kind_of(read) == "generator"
    GENERATOR.params(read, config)
