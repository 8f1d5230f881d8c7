"""VAR on ImageNet (arXiv:2404.02905): its multi-scale tokenizer and its next-scale generators d16 to d36, as published.

    python main.py --config=configs/var.py:depth=16 --job=train --config.data.path=IMAGENET

IMAGENET holds train/ and val/ with a folder of images a class (or take --config.data.name=imagenet2012 from TFDS). The
perceptual loss needs --config.losses.lpips_weights=FILE (see `python -m interop.lpips --help`).
"""

from ml_collections import ConfigDict

from configs import base
from configs.arguments import parse

SCALES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}

# depth: (epochs, batch, learning rate for a batch of 256, its share at the end, gates at first, norm)
SIZES = {
    "16": (200, 768, 1e-4, 0.1, 1e-3, "adaptive"),
    "20": (250, 768, 1e-4, 0.1, 1e-3, "adaptive"),
    "24": (350, 768, 8e-5, 0.01, 1e-4, "adaptive"),
    "30": (350, 1024, 8e-5, 0.01, 1e-5, "adaptive"),
    "36": (350, 768, 8e-5, 0.01, 5e-6, "adaptive_shared"),
}
IMAGES = 1_281_167  # of ImageNet's training split


def get_config(argument: str = "depth=16") -> ConfigDict:
    """`depth` of the generator; 36 is of images of 512 pixels, the others of 256, unless `resolution` says otherwise."""
    options = parse(argument, depth=tuple(SIZES), resolution=("", *map(str, SCALES)))
    depth = int(options["depth"])
    resolution = int(options["resolution"] or (512 if depth == 36 else 256))
    epochs, batch, rate, final, gates, norm = SIZES[options["depth"]]
    config = base.get_config()
    config.data.update(name="folder", path="data/imagenet", resolution=resolution, channels=3, classes=1000,
                       crop_scale=(0.889, 0.889))  # fmt: skip
    next_scale(config, scales=SCALES[resolution], codes=4096, width=32)
    config.tokenizer.update(channels=160, latent_channels=32, groups=32, dtype="bfloat16")
    config.losses.adversarial = 0.5
    config.training.tokenizer = base.stage(steps=400_000, batch_size=128, log_every=100, save_every=5000)
    config.extract.copies = 10
    width = 64 * depth
    config.generator.update(
        width=width, depth=depth, heads=depth, mlp=4 * width, norm=norm, init_std=(3 * width) ** -0.5,
        init_residual=(2 * depth) ** -0.5, init_gates=gates, drop_path=0.1 * depth / 24, dtype="bfloat16", remat="dots",
    )  # fmt: skip
    steps = epochs * IMAGES // batch
    config.training.generator = base.stage(
        steps=steps, batch_size=batch, learning_rate=rate * batch / 256, schedule="linear", warmup_steps=steps // 50,
        final_share=final, clip_norm=2.0, log_every=100, save_every=5000,
    )  # fmt: skip
    config.sampler.update(guidance_scale=2.5, top_k=900, top_p=0.96)
    config.evaluation.update(batch_size=64, training_images=0)
    return config


def next_scale(config: ConfigDict, *, scales: tuple[int, ...], codes: int, width: int) -> None:
    """VAR's tokenizer and generator in the place of LlamaGen's; guidance rises from nothing at the first scale."""
    vector = {"name": "vector", "codes": codes, "width": width, "commitment": 0.25, "l2_norm": False, "usage_decay": 0.99,
              "revive_below": 0.03}  # fmt: skip
    config.tokenizer.projection = 3
    config.tokenizer.quantizer = ConfigDict(
        {
            "name": "multi_scale",
            "inner": vector,  # quantizer of single vectors
            "scales": scales,  # sides of the grids
            "phi": 4,  # convolutions that the scales share
            "phi_share": 0.5,  # of the convolution in phi
            "commitment": 0.25,
            "scale_dropout": 0.0,  # share of training images of which only the first scales are summed
            "least_scales": 3,  # of them, at least so many
        }
    )
    config.generator.update(layout="scales", activation="gelu", norm="adaptive", qk_norm="l2", bias=True, position="learned",
                            dropout=0.0)  # fmt: skip
    config.sampler.guidance_schedule = "linear"
