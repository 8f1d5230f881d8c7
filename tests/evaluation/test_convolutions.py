import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.convolutions import TILED, convolution


def definition(x, kernel, stride, same):
    """A convolution by its definition, in float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    height, width = kernel.shape[:2]
    if same:
        x = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwiyx,yxio->bhwo", windows, kernel)


SMALL, TALL, ODD = (9, 12), (TILED, TILED + 1), (TILED + 3, TILED)  # even and odd sides, for what cuts or tiles them
CASES = [  # kernel, stride, image
    ((1, 1), 1, SMALL),  # a matrix product
    ((3, 3), 1, (TILED - 1, TILED)),  # the one instruction
    ((5, 5), 1, SMALL),
    ((1, 7), 1, TALL),
    ((7, 1), 1, SMALL),
    ((1, 3), 1, SMALL),
    ((3, 3), 1, TALL),  # Winograd's
    ((3, 3), 1, ODD),
    ((3, 3), 2, SMALL),  # windows
    ((3, 3), 2, TALL),
    ((1, 1), 2, SMALL),
    ((5, 3), 2, SMALL),
    ((3, 3), 3, TALL),  # the instruction again
]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("size", "stride", "shape"), CASES)
def test_every_form_is_the_definition(size, stride, shape, same):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 5)).astype(np.float32)
    kernel = rng.normal(size=(*size, 5, 4)).astype(np.float32)
    result = convolution(jnp.asarray(x), jnp.asarray(kernel), stride=stride, same=same)
    np.testing.assert_allclose(result, definition(x, kernel, stride, same), atol=5e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_take_the_one_instruction_with_the_highest_precision(platform):
    x, kernel = np.zeros((2, 40, 40, 5), np.float32), np.zeros((3, 3, 5, 4), np.float32)
    program = jax.jit(convolution).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == 1
    assert program.count("HIGHEST") == 2
    assert "dot_general" not in program
