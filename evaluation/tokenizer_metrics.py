"""How well a tokenizer's reconstructions match their originals: the image metrics of papers, means over a data set."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from evaluation.similarity import ms_ssim, psnr, ssim
from input_pipeline.transforms import to_float
from models.errors import UserError, unknown
from tokenizer.perceptual import NETWORKS, lpips, network_of

Images = UInt8[np.ndarray, "_ _h _w _c"]  # a block may be of another size than the next
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]  # originals, reconstructions -> a value for each

SIMILARITIES: dict[str, Metric] = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
AT_A_TIME = 32  # images that a network sees, whose features are some hundred times their pixels


def judge_reconstructions(
    blocks: Iterable[tuple[Images, Images]], *, lpips: Mapping[str, Mapping[str, Array]]
) -> tuple[dict[str, float], dict[str, str]]:
    """PSNR, SSIM, MS-SSIM and LPIPS, each the mean over all images.

    Args:
      blocks: originals and their reconstructions, (N, H, W, C) each; held one block at a time.
      lpips: "vgg" and "alex" -> weights as from `tokenizer.perceptual.load_lpips`; what is not there is not measured.

    Returns:
      metrics: of psnr (dB; missing as soon as one image is perfect), ssim, ms_ssim, lpips_vgg and lpips_alex those that can
        be measured.
      missing: the others -> why not.

    Raises:
      UserError: there are no images, or weights stand under another network's name, or under none's.
    """
    for network in lpips.keys() - NETWORKS.keys():
        raise unknown("network of LPIPS", network, NETWORKS)
    metrics: dict[str, Metric] = dict(SIMILARITIES)
    missing: dict[str, str] = {}
    for network in NETWORKS:
        if network in lpips:
            metrics[f"lpips_{network}"] = perceptual_metric(network, lpips[network])
        else:
            missing[f"lpips_{network}"] = (
                f"there are no weights; `python -m interop.lpips {network} lpips_{network}.npz` makes them."
            )
    sums, images = dict.fromkeys(metrics, 0.0), 0
    for originals, reconstructions in blocks:
        images += len(originals)
        for name in [name for name in metrics if name not in missing]:
            try:
                sums[name] += float(metrics[name](originals, reconstructions).sum())
            except UserError as error:
                missing[name] = str(error)
    if not images:
        raise UserError("there are no reconstructions to judge; give at least one image.")
    found = {name: total / images for name, total in sums.items() if name not in missing}
    if np.isinf(found["psnr"]):
        del found["psnr"]
        missing["psnr"] = "an image came back without any error, and its PSNR is infinite."
    return found, missing


def perceptual_metric(network: str, weights: Mapping[str, Array]) -> Metric:
    """LPIPS of uint8 images, a few at a time; UserError where the weights are of another network."""
    if network_of(weights) != network:
        raise UserError(f"the LPIPS weights given for {network!r} are those of {network_of(weights)!r}; exchange them.")
    compiled = jax.jit(lpips)

    def metric(originals: Images, reconstructions: Images) -> Float[np.ndarray, "N"]:
        values = [np.zeros(0)]
        for start in range(0, len(originals), AT_A_TIME):
            x, y = (to_float(images[start : start + AT_A_TIME]) for images in (originals, reconstructions))
            values.append(np.asarray(compiled(weights, x, y), np.float64))
        return np.concatenate(values)

    return metric
