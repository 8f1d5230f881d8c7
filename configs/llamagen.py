"""LlamaGen on ImageNet (arXiv:2406.06525), its tokenizer and its generators B, L, XL, XXL and 3B, as published.

    python main.py --config=configs/llamagen.py:size=B --job=train --config.data.path=IMAGENET

IMAGENET holds train/ and val/ with a folder of images a class (or take --config.data.name=imagenet2012 from TFDS). The
perceptual loss needs --config.losses.lpips_weights=FILE (see `python -m interop.lpips --help`).
"""

from ml_collections import ConfigDict

from configs import base
from configs.arguments import parse

# size: (layers, width, heads, parameters in millions as published, guidance scale of the published FID)
SIZES = {
    "B": (12, 768, 12, 111, 2.0),
    "L": (24, 1024, 16, 343, 2.0),
    "XL": (36, 1280, 20, 775, 1.75),
    "XXL": (48, 1536, 24, 1400, 1.75),
    "3B": (24, 3200, 32, 3100, 1.65),
}


def get_config(argument: str = "size=B") -> ConfigDict:
    """`size` of the generator, and `resolution` (256 or 384) of the images."""
    options = parse(argument, size=tuple(SIZES), resolution=("256", "384"))
    depth, width, heads, _, guidance_scale = SIZES[options["size"]]
    config = base.get_config()
    config.data.update(name="folder", path="data/imagenet", resolution=int(options["resolution"]), channels=3,
                       classes=1000, crop_scale=(0.8, 1.0), flip=True)  # fmt: skip
    config.tokenizer.dtype = "bfloat16"
    config.losses.update(adversarial=0.5)
    config.training.tokenizer = base.stage(
        steps=400_000, batch_size=128, optimizer={"name": "adam", "b1": 0.9, "b2": 0.95, "weight_decay": 0.0},
        log_every=100, save_every=5000,
    )  # fmt: skip
    config.extract.update(crops="ten", ranges=(1.1, 1.05))
    config.generator.update(width=width, depth=depth, heads=heads, dtype="bfloat16", remat="dots")
    config.training.generator = base.stage(steps=1_500_000, batch_size=256, log_every=100, save_every=5000)
    config.sampler.guidance_scale = guidance_scale
    config.evaluation.update(batch_size=64, training_images=0)
    return config
