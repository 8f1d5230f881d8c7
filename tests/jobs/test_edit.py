"""Edits: what is kept is the tokenizer's reconstruction, what is new is drawn for it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from generator.generator import describe_generator
from generator.sampling.samplers import build_sampler
from jobs.conditions import asked_classes
from jobs.edit import keep_scales, kept_cells, read_edit
from jobs.feeds import ScaleFeed
from jobs.sample import Sampler, run, to_uint8
from jobs.workdir import load, read_config
from models.errors import UserError
from models.tokens import Grid
from tokenizer.tokenizer import describe_tokenizer, token_spec

SIDE = 16


@pytest.fixture
def files(tmp_path):
    """A digit-like image, and a mask that is white in its lower half."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 2 :] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def asked(config, files, *, image="image.png", mask="mask.png"):
    config.sample.update(edit=image and str(files / image), mask=mask and str(files / mask))
    return config


def pixels(edit):
    return jnp.asarray(edit.image[None] / np.float32(127.5) - 1)


def reconstruction(config, workdir, edit):
    """What the tokenizer makes of the image, and its tokens."""
    description = describe_tokenizer(config)

    @jax.jit
    def run(params, images):
        tokenizer = description.merge(params)
        tokens = tokenizer.encode(images)
        return to_uint8(tokenizer.decode(tokens))[0], tokens.ids[0]

    return map(np.asarray, run(load("tokenizer", description, config, workdir)[0], pixels(edit)))


@pytest.mark.parametrize("kind", ["workdir", "scale_workdir"])
def test_what_is_kept_is_the_reconstruction_and_the_rest_is_new(request, files, kind):
    workdir = request.getfixturevalue(kind)
    config = asked(read_config(workdir), files)
    edit = read_edit(config)
    sampler = Sampler(config, workdir, edit=edit)
    samples = sampler(asked_classes((-1,), 10, 10), 10)
    image, ids = reconstruction(config, workdir, edit)
    kept = ~edit.new
    for painted in samples.images:
        np.testing.assert_array_equal(painted[kept], image[kept])
    assert len(np.unique(samples.images[:, edit.new].reshape(10, -1), axis=0)) == 10
    if kind == "workdir":  # 4 x 4 tokens, of which the upper half is given
        np.testing.assert_array_equal(samples.ids[:, :8], np.broadcast_to(ids[:8], (10, 8, 1)))
    # Without the edit the same noise draws other images.
    plain = Sampler(config, workdir)(asked_classes((-1,), 10, 10), 10)
    assert (plain.images[:, kept] != image[kept]).any(axis=(1, 2)).all()


def test_an_edit_of_scales_brings_the_sum_of_codes_near_the_images_latents_where_it_is_kept(scale_workdir, files):
    """Before anything is blended: kept cells of the last scale are quantized against all that was painted."""
    config = asked(read_config(scale_workdir), files)
    edit, description = read_edit(config), describe_tokenizer(config)
    generator = describe_generator(config, token_spec(description), scan_layers=False)
    sample = build_sampler(config.sampler.to_dict(), 0, generator.merge(generator.shapes))
    labels = jnp.arange(8)

    @jax.jit
    def run(params, drawer):
        latents = description.merge(params).latents(pixels(edit))
        codes = {"inner": {"codebook": latents.reshape(16, 4)}}  # so that training has not to be waited for
        tokenizer = description.merge({**params, "quantizer": {**params["quantizer"], **codes}})
        model, feed = generator.merge(drawer), ScaleFeed(tokenizer.quantizer)
        states = [
            sample(model, labels, labels, feed, revise=revise).state for revise in (keep_scales(edit, tokenizer), None)
        ]
        return [x - latents for x in (*states, tokenizer.quantizer.quantize(latents)[0])]

    errors = run(load("tokenizer", description, config, scale_workdir)[0], generator.init(jax.random.key(0)))
    kept = kept_cells(edit.new, Grid(4, 4))
    edited, free, own = (np.mean(np.asarray(error)[:, kept] ** 2) for error in errors)
    assert edited < 0.5 * free
    assert edited < 3 * own


def test_cells_that_touch_the_mask_are_new():
    new = np.zeros((8, 8), bool)
    new[5, 6] = True
    np.testing.assert_array_equal(
        kept_cells(new, Grid(4, 4)), ~np.array([[0] * 4, [0] * 4, [0, 0, 0, 1], [0] * 4], bool)
    )
    np.testing.assert_array_equal(kept_cells(new, Grid(1, 1)), [[False]])
    # Cells of 8 / 3 pixels overlap: row 5 is of the second and of the third.
    np.testing.assert_array_equal(kept_cells(new, Grid(3, 3)), ~np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1]], bool))


def test_image_and_mask_are_brought_to_the_models_size(config, tmp_path):
    image = np.zeros((48, 32, 3), np.uint8)
    image[:24] = 200
    mask = np.zeros((48, 32), np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = read_edit(asked(config, tmp_path))
    assert edit.image.shape == (SIDE, SIDE, 1)
    assert edit.image[0, 0, 0] == 200
    assert edit.image[-1, 0, 0] == 0
    np.testing.assert_array_equal(edit.new, np.broadcast_to(np.arange(SIDE) >= SIDE // 2, (SIDE, SIDE)))


def test_bad_files_are_told(config, files):
    assert read_edit(config) is None
    Image.fromarray(np.full((SIDE, SIDE + 2), 255, np.uint8)).save(files / "wide.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(files / "black.png")
    (files / "text.png").write_text("no image")
    for names, said in (
        ({"mask": "wide.png"}, "18x16 pixels.*16x16"),
        ({"mask": "black.png"}, "nowhere white"),
        ({"mask": "none.png"}, "there is no image"),
        ({"image": "text.png"}, "no readable image"),
        ({"mask": ""}, "needs both"),
        ({"image": ""}, "needs both"),
    ):
        with pytest.raises(UserError, match=said):
            read_edit(asked(config, files, **names))


def test_another_image_under_the_same_name_is_sampled_anew(workdir, files, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("samples"))
    config = asked(read_config(copy), files)
    config.sample.update(count=4, batch_size=4)
    run(config, copy)
    run(config, copy)
    assert "sampled already" in capsys.readouterr().out
    first = np.load(next((copy / "samples").glob("*.npz")))["arr_0"]
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(files / "image.png")
    run(config, copy)
    assert "sampled already" not in capsys.readouterr().out
    assert (np.load(next((copy / "samples").glob("*.npz")))["arr_0"] != first).any()
