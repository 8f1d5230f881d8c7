import jax.numpy as jnp
import numpy as np
import pytest
from tables import SMALL_TOKENIZER, Reference, assert_identical, blank, configured, describe, load, rule_models

from generator.conditioning import Captions
from interop.sources import SOURCES
from interop.state_dicts import read_state, write_state
from interop.torch_writer import write_torch
from models.errors import UserError
from models.modules import parameter_count
from models.transformer import swiglu_width

# name: (layers, width, heads, of classes, of captions), as published
SIZES = {
    "B": (12, 768, 12, 110_888_448, 112_282_368),
    "L": (24, 1024, 16, 342_910_976, 345_031_680),
    "XL": (36, 1280, 20, 774_699_520, 777_678_080),
    "XXL": (48, 1536, 24, 1_410_972_672, 1_414_940_160),
    "3B": (24, 3200, 32, 3_096_659_200, 3_110_249_600),
    "XXXL": (48, 2560, 40, 3_893_027_840, None),
    "1B": (22, 2048, 32, 1_199_616_000, None),
    "7B": (32, 4096, 32, 6_614_589_440, None),
}
UNTRAINED = 120 * 2048  # "no caption", which is no parameter there
GENERATOR, TOKENIZER = (SOURCES["llamagen"].kinds[kind] for kind in ("generator", "tokenizer"))
TINY = {"generator.heads": 2, "data.resolution": 8}


def fields(name):
    depth, width, heads, *_ = SIZES[name]
    return {**SMALL_TOKENIZER, "generator.width": width, "generator.depth": depth, "generator.heads": heads,
            "generator.kv_heads": heads, "generator.mlp": swiglu_width(width)}  # fmt: skip


@pytest.fixture(scope="module")
def sizes():
    """What `describe` says of every size's generator of classes."""
    return {name: describe("llamagen", "generator", fields(name)) for name in SIZES}


@pytest.mark.parametrize("name", SIZES)
def test_a_generator_of_classes_has_the_published_parameters_and_tensors(sizes, name):
    shapes, state = sizes[name]
    assert parameter_count(shapes) == SIZES[name][3]
    assert len(state) == 7 * SIZES[name][0] + 4
    assert sum(tensor.size for tensor in state.values()) == SIZES[name][3]


@pytest.mark.parametrize("name", SIZES)
def test_the_size_of_a_generator_shows_in_its_tensors(sizes, name):
    shown, expected = GENERATOR.config(sizes[name][1], {}), fields(name)
    for field in ("width", "depth", "heads", "kv_heads", "mlp"):
        assert shown[f"generator.{field}"] == expected[f"generator.{field}"]
    assert shown["data.classes"] == 1000
    assert shown["tokenizer.quantizer.codes"] == 16384


@pytest.mark.parametrize("name", [name for name in SIZES if SIZES[name][4]])
def test_a_generator_of_captions_has_the_published_parameters(name):
    text = {
        "generator.condition.name": "text",
        "generator.condition.entries": 120,
        "generator.condition.features": 2048,
    }
    shapes, state = describe("llamagen", "generator", fields(name) | text)
    assert parameter_count(shapes) - UNTRAINED == SIZES[name][4]
    shown = GENERATOR.config(state, {})
    assert {field: shown[field] for field in text} == text


@pytest.mark.parametrize(
    ("name", "multipliers", "count"), [("VQ-16", (1, 1, 2, 2, 4), 71_883_403), ("VQ-8", (1, 2, 2, 4), 70_109_835)]
)
def test_a_tokenizer_has_the_published_parameters_and_tensors(name, multipliers, count):
    shapes, state = describe("llamagen", "tokenizer", {"tokenizer.multipliers": multipliers})
    assert parameter_count(shapes) == count
    if name == "VQ-16":
        assert len(state) == 344
        assert parameter_count(shapes["encoder"]) == 29_298_176
        assert parameter_count(shapes["decoder"]) == 42_449_795
    shown = TOKENIZER.config(state, {})
    assert shown["tokenizer.multipliers"] == multipliers
    assert (shown["tokenizer.channels"], shown["tokenizer.blocks"], shown["tokenizer.latent_channels"]) == (128, 2, 256)
    assert (shown["tokenizer.attention"], shown["data.channels"]) == (True, 3)


@pytest.mark.parametrize("folder", ["llamagen_c2i", "llamagen_t2i"])
def test_the_names_and_shapes_are_those_of_the_originals(shared, folder):
    for name, (of, tensors) in rule_models(shared / "parity" / folder).items():
        kind = "tokenizer" if "ch" in of else "generator"
        state = {key: blank(shape) for key, shape in tensors.items()}
        assert SOURCES["llamagen"].kind_of(state) == kind
        known = {"generator.heads": of["n_head"]} if kind == "generator" else {}
        shown = SOURCES["llamagen"].kinds[kind].config(state, known)
        small = SMALL_TOKENIZER if kind == "generator" else {}
        _, ours = describe("llamagen", kind, small | shown)
        assert {key: tensor.shape for key, tensor in ours.items()} == tensors, name


def test_heads_of_other_widths_have_to_be_told():
    _, state = describe("llamagen", "generator", {**SMALL_TOKENIZER, "generator.width": 192, "generator.heads": 8,
                                                  "generator.kv_heads": 2, "generator.mlp": 256})  # fmt: skip
    shown = GENERATOR.config(state, {"generator.heads": 8})
    assert (shown["generator.heads"], shown["generator.kv_heads"]) == (8, 2)
    for heads in (None, 5):
        with pytest.raises(UserError, match=r"--config\.generator\.heads"):
            GENERATOR.config({**state, "tok_embeddings.weight": blank((16, 24))}, {"generator.heads": heads})


def test_a_tensor_that_sizes_are_read_from_may_be_missing():
    with pytest.raises(UserError, match=r"tok_embeddings\.weight is missing"):
        GENERATOR.config({"layers.0.attention.wo.weight": blank((4, 4))}, {})
    with pytest.raises(UserError, match="should have 4 axes"):
        TOKENIZER.config({"encoder.conv_in.weight": blank((4, 4)), "quantize.embedding.weight": blank((4, 4))}, {})


def test_the_rotary_table_of_older_files_is_left_out():
    fields = {**SMALL_TOKENIZER, "generator.width": 64, "generator.depth": 1, "generator.heads": 1, "generator.mlp": 64}
    _, state = describe("llamagen", "generator", fields)
    config = configured("llamagen", fields)
    assert "freqs_cis" not in GENERATOR.state(
        GENERATOR.params(state | {"freqs_cis": blank((3, 32, 2))}, config), config
    )
    with pytest.raises(UserError, match="too many freqs"):
        GENERATOR.params(state | {"freqs": blank((3, 32, 2))}, config)


# ---- the same weights give the same numbers


@pytest.fixture(scope="module")
def c2i(shared):
    folder = shared / "parity" / "llamagen_c2i"
    _, found = load("llamagen", [folder / "c2i_tiny.pt", folder / "vq_ds16_c2i_tiny.pt"], TINY)
    return Reference(folder), found


def test_a_tokenizer_gives_the_originals_numbers(c2i):
    reference, found = c2i
    tokenizer, *_ = found["tokenizer"]
    images = jnp.asarray(reference.channels_last("vq/input"))
    reference.agree("vq/encoder_out", tokenizer.encoder(images))
    reference.agree("vq/latent", tokenizer.latents(images))
    tokens = tokenizer.encode(images)
    reference.agree("vq/indices", tokens.ids[..., 0])
    reference.agree("vq/codebook_entries", tokenizer.codes(tokens))
    reference.agree("vq/recon", tokenizer.images(tokenizer.codes(tokens)))


def test_a_generator_of_classes_gives_the_originals_logits(c2i):
    reference, found = c2i
    generator, *_ = found["generator"]
    ids, labels = reference.ids("gpt/tokens"), jnp.asarray(reference["gpt/class_ids"].astype(np.int32))
    reference.agree("gpt/tf_logits", generator.logits(ids, labels))
    reference.agree("gpt/tf_logits_null", generator.logits(ids, generator.condition.null(labels)))


def test_grouped_queries_give_the_originals_logits(shared):
    folder = shared / "parity" / "llamagen_c2i"
    path, reference = folder / "c2i_gqa_tiny_fsdp.pt", Reference(folder)
    _, found = load("llamagen", [path], TINY | {"generator.heads": 4, "tokenizer.multipliers": (1, 1)})
    labels = jnp.asarray(reference["gqa/class_ids"].astype(np.int32))
    reference.agree("gqa/tf_logits", found["generator"][0].logits(reference.ids("gqa/tokens"), labels))


def test_a_generator_of_captions_gives_the_originals_logits(shared):
    folder = shared / "parity" / "llamagen_t2i"
    reference = Reference(folder)
    config, found = load("llamagen", [folder / "t2i_tiny.safetensors"], TINY | {"tokenizer.multipliers": (1, 1)})
    assert config.sampler.guidance_scale == 7.5
    generator, *_ = found["generator"]
    captions = Captions(
        jnp.asarray(reference["t2i/c_indices"]), jnp.asarray(reference["t2i/c_emb_masks"].astype(np.int32))
    )
    ids = reference.ids("t2i/tokens")
    reference.agree("t2i/caption_embedded", generator.condition(captions))
    reference.agree("t2i/tf_logits", generator.logits(ids, captions))
    reference.agree("t2i/tf_logits_null", generator.logits(ids, generator.condition.null(captions)))


FILES = ["llamagen_c2i/c2i_tiny.pt", "llamagen_c2i/c2i_gqa_tiny_fsdp.pt", "llamagen_c2i/vq_ds16_c2i_tiny.pt",
         "llamagen_t2i/t2i_tiny.pt", "llamagen_t2i/t2i_tiny.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_export_gives_every_tensor_back_bit_for_bit(shared, tmp_path, name):
    known = {} if "vq" in name else SMALL_TOKENIZER | {"generator.heads": 4 if "gqa" in name else 2}
    config, found = load("llamagen", [shared / "parity" / name], known)
    ((kind, (_, params, state)),) = found.items()
    written = SOURCES["llamagen"].kinds[kind].state(params, config)
    assert written.keys() == state.keys()
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"w.{suffix}"
        write_state(path, written, SOURCES["llamagen"].container)
        assert_identical(read_state(path, SOURCES["llamagen"].containers), state)


@pytest.mark.parametrize("container", [("model",), ("module",), ("state_dict",), ("ema",), ()])
def test_every_container_is_read(tmp_path, container):
    _, state = describe(
        "llamagen", "tokenizer", SMALL_TOKENIZER | {"tokenizer.multipliers": (1, 1), "tokenizer.projection": 1}
    )
    write_state(tmp_path / "vq.pt", state, container)
    read = read_state(tmp_path / "vq.pt", SOURCES["llamagen"].containers)
    assert read.keys() == state.keys()
    assert SOURCES["llamagen"].kind_of(read) == "tokenizer"
    assert SOURCES["var"].kind_of(read) is None


def test_the_averaged_weights_of_a_training_file_are_not_those_that_are_sampled_from(tmp_path):
    own, averaged = ({"tok_embeddings.weight": np.full((2, 2), value, np.float32)} for value in (1, 2))
    write_torch(tmp_path / "training.pt", {"model": own, "ema": averaged})
    read = read_state(tmp_path / "training.pt", SOURCES["llamagen"].containers)
    assert read["tok_embeddings.weight"][0, 0] == 1
