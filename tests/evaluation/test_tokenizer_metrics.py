import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evaluation.tokenizer_metrics as tokenizer_metrics
from evaluation.similarity import ms_ssim, psnr, ssim
from evaluation.tokenizer_metrics import judge_reconstructions
from models.errors import UserError
from tokenizer.perceptual import lpips, shapes


@pytest.fixture(scope="module")
def weights():
    """Random LPIPS weights by network."""
    rng = np.random.default_rng(0)

    def array(name, shape):
        scale = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.1
        values = scale * rng.standard_normal(shape, np.float32)
        return jnp.asarray(np.abs(values) if name.startswith("lin") else values, jnp.float32)

    return {
        network: {name: array(name, shape) for name, shape in shapes(network).items()} for network in ("vgg", "alex")
    }


def pairs(count, side, seed=0):
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    noise = rng.integers(-40, 41, originals.shape) * np.linspace(0.1, 1, count)[:, None, None, None]
    return originals, np.clip(originals + noise, 0, 255).astype(np.uint8)


def test_means_over_images_and_not_over_blocks(weights, monkeypatch):
    """Blocks of 5, 1 and 0 images: a mean of blocks would weigh the one image five times."""
    monkeypatch.setattr(tokenizer_metrics, "AT_A_TIME", 2)
    originals, reconstructions = pairs(6, 32)
    blocks = ((originals[part], reconstructions[part]) for part in (slice(0, 5), slice(5, 6), slice(6, 6)))
    metrics, missing = judge_reconstructions(blocks, lpips=weights)
    expected = {"psnr": psnr(originals, reconstructions), "ssim": ssim(originals, reconstructions)}
    for network in ("vgg", "alex"):
        x, y = (jnp.asarray(images, jnp.float32) / 127.5 - 1 for images in (originals, reconstructions))
        expected[f"lpips_{network}"] = np.asarray(jax.jit(lpips)(weights[network], x, y))
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(float(np.mean(values)), rel=1e-5)
        assert metrics[name] != pytest.approx((np.mean(values[:5]) + values[5]) / 2, rel=1e-3)
    assert missing == {"ms_ssim": "images of 32x32 pixels are too small for MS-SSIM, which needs 176 a side."}


def test_ms_ssim_of_images_that_are_large_enough():
    originals, reconstructions = pairs(2, 176)
    metrics, missing = judge_reconstructions([(originals, reconstructions)], lpips={})
    assert metrics["ms_ssim"] == pytest.approx(ms_ssim(originals, reconstructions).mean())
    assert missing.keys() == {"lpips_vgg", "lpips_alex"}
    assert "python -m interop.lpips alex" in missing["lpips_alex"]


def test_images_too_small_for_all_but_psnr(weights):
    originals, reconstructions = pairs(3, 8)
    metrics, missing = judge_reconstructions([(originals, reconstructions)], lpips=weights)
    assert metrics == {"psnr": pytest.approx(psnr(originals, reconstructions).mean())}
    for name, smallest in {"ssim": 11, "ms_ssim": 176, "lpips_vgg": 16, "lpips_alex": 31}.items():
        assert "images of 8x8 pixels are too small" in missing[name]
        assert f"needs {smallest}" in missing[name]


def test_a_metric_that_one_block_lacks_is_missing():
    metrics, missing = judge_reconstructions([pairs(2, 16), pairs(2, 8)], lpips={})
    assert metrics.keys() == {"psnr"}
    assert "8x8" in missing["ssim"]


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match=r"given for 'alex' are those of 'vgg'"):
        judge_reconstructions([pairs(1, 32)], lpips={"alex": weights["vgg"]})


def test_a_network_that_does_not_exist_is_refused(weights):
    with pytest.raises(UserError, match="did you mean 'vgg'"):
        judge_reconstructions([pairs(1, 32)], lpips={"vgg16": weights["vgg"]})


def test_no_images_are_refused():
    with pytest.raises(UserError, match="no reconstructions"):
        judge_reconstructions([], lpips={})


def test_one_block_at_a_time_is_held():
    """A block is asked for only after the one before it has been judged, and let go."""
    import weakref

    alive = []

    def blocks():
        for seed in range(3):
            assert all(reference() is None for reference in alive[:-1])
            originals, reconstructions = pairs(2, 16, seed)
            alive.append(weakref.ref(originals))
            yield originals, reconstructions
            del originals, reconstructions

    assert judge_reconstructions(blocks(), lpips={})[0]["psnr"] > 10
