import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import llamagen
from models.errors import UserError
from models.modules import describe, parameter_count
from models.tokens import Grid, Tokens
from tokenizer.tokenizer import TOKENIZERS, Tokenizer

SMALL = {"resolution": 8, "image_channels": 3, "quantizer": {"name": "vector", "codes": 9, "width": 4}, "channels": 8,
         "multipliers": (1, 2), "blocks": 1, "latent_channels": 6}  # fmt: skip


def make(**options):
    return describe(lambda rngs: Tokenizer(**(SMALL | options), rngs=rngs))


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)

    def random(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if "scale" in jax.tree_util.keystr(path):
            noise = 1 + 0.1 * noise
        elif leaf.ndim == 4:
            noise /= np.sqrt(np.prod(leaf.shape[:3]))
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(random, make().shapes)


def images(*, count=2, side=8, channels=3):
    return jax.random.uniform(jax.random.key(1), (count, side, side, channels), minval=-1, maxval=1)


@pytest.mark.parametrize(
    ("options", "side"),
    [({}, 4), ({"multipliers": (1,)}, 8), ({"multipliers": (1, 1, 2), "attention": False, "image_channels": 1}, 2),
     ({"dtype": "bfloat16", "resolution": 16}, 8)],
)  # fmt: skip
def test_shapes_follow_the_config(options, side):
    description = make(**options)
    tokenizer = description.merge(description.shapes)
    assert (tokenizer.spec.shape, tokenizer.spec.sizes, tokenizer.spec.positions) == (Grid(side, side), (9,), side**2)
    pixels = options.get("resolution", 8)
    x = jax.ShapeDtypeStruct((2, pixels, pixels, options.get("image_channels", 3)), jnp.float32)
    ids = jax.eval_shape(lambda p, x: description.merge(p).encode(x).ids, description.shapes, x)
    assert (ids.shape, ids.dtype) == ((2, side**2, 1), jnp.int32)
    out = jax.eval_shape(lambda p, ids: description.merge(p).decode(Tokens(ids)), description.shapes, ids)
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)


def test_ids_are_the_nearest_codes_of_the_latents_in_raster_order(small):
    description = make()

    @jax.jit
    def run(params, x):
        tokenizer = description.merge(params)
        return tokenizer.encode(x).ids, tokenizer.to_codes(tokenizer.encoder(x)), tokenizer.quantizer.rows()

    ids, grid, rows = (np.asarray(out) for out in run(small, images()))
    assert grid.shape == (2, 4, 4, 4)
    for sample, row, column in np.ndindex(2, 4, 4):
        point = grid[sample, row, column] / np.linalg.norm(grid[sample, row, column])
        assert ids[sample, row * 4 + column, 0] == np.linalg.norm(rows - point, axis=-1).argmin()


def test_decoding_lays_the_codes_out_in_raster_order_and_clips(small):
    description = make()
    ids = jax.random.randint(jax.random.key(0), (2, 16, 1), 0, 9)
    loud = {**small, "decoder": {**small["decoder"], "last": jax.tree.map(lambda x: x * 20, small["decoder"]["last"])}}

    @jax.jit
    def run(params):
        tokenizer = description.merge(params)
        grid = tokenizer.quantizer.rows()[ids.reshape(2, 4, 4)]
        return tokenizer.decode(Tokens(ids)), tokenizer.decoder(tokenizer.from_codes(grid))

    out, free = run(loud)
    assert (np.min(out), np.max(out)) == (-1, 1)
    assert np.abs(free).max() > 2
    np.testing.assert_allclose(out, np.clip(free, -1, 1), atol=1e-4)


def test_decoding_what_was_encoded_is_the_forward_pass_of_training(small):
    description = make()

    @jax.jit
    def run(params, x):
        tokenizer = description.merge(params)
        codes = tokenizer.quantizer.quantize(tokenizer.latents(x))[0]
        return tokenizer.decode(tokenizer.encode(x)), tokenizer.images(codes)

    decoded, trained = run(small, images())
    np.testing.assert_allclose(decoded, np.clip(trained, -1, 1), atol=1e-5)


def test_every_parameter_learns(small):
    description = make()

    @jax.jit
    def gradients(params, x):
        def loss(params):
            tokenizer = description.merge(params)
            codes, _, losses = tokenizer.quantizer.quantize(tokenizer.latents(x))
            return ((tokenizer.images(codes) - x) ** 2).mean() + sum(losses.values())

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(small, images())):
        name = jax.tree_util.keystr(path)
        # Softmax does not change where every key is moved alike, so its bias has no gradient but rounding.
        assert np.abs(leaf).max() > 0 or name.endswith("['k']['bias']"), name


@pytest.mark.parametrize(("resolution", "near"), [(30, "take 28 or 32"), (33, "take 32 or 36")])
def test_a_resolution_that_the_stride_does_not_divide_is_the_users_mistake(resolution, near):
    with pytest.raises(UserError, match=rf"data.resolution {resolution} is not divisible by .* stride 4; {near}"):
        make(resolution=resolution, multipliers=(1, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "convolution"}, "unknown encoder 'convolution'; did you mean 'convolutional'"),
        ({"decoder": "vit"}, "unknown decoder 'vit'"),
        ({"dtype": "float16"}, "unknown dtype"),
        (
            {"quantizer": {"name": "vectors", "codes": 9, "width": 4}},
            "unknown quantizer 'vectors'; did you mean 'vector'",
        ),
        ({"quantizer": {"name": "vector", "code": 9, "width": 4}}, "unknown field 'code'; did you mean 'codes'"),
    ],
)
def test_a_mistaken_field_is_told(options, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(**(SMALL | options), rngs=nnx.Rngs(0))


def test_llamagens_tokenizer_has_its_number_of_parameters():
    section = llamagen.get_config().tokenizer.to_dict()
    constructor = TOKENIZERS[section.pop("name")]
    description = describe(lambda rngs: constructor(**section, resolution=256, image_channels=3, rngs=rngs))
    assert parameter_count(description.shapes) == 71_883_403
    assert description.merge(description.shapes).spec.shape == Grid(16, 16)
