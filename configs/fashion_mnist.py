"""Fashion-MNIST at 32x32, from npz files; 40 minutes on two CPU cores.

    python main.py --config=configs/fashion_mnist.py --config.data.path=DIR
    python main.py --config=configs/fashion_mnist.py:next=scale --config.data.path=DIR

DIR holds train.npz and test.npz with `images` (N, 28, 28, 1) uint8 and `labels` (N,).
"""

from ml_collections import ConfigDict

from configs import base
from configs.arguments import parse
from configs.var import next_scale


def get_config(argument: str = "next=token") -> ConfigDict:
    """8x8 tokens of 512 codes; or, `next=scale`, five scales up to 8x8."""
    config = base.get_config()
    config.data.update(name="npz", path="data/fashion_mnist", resolution=32, channels=1, flip=True)

    config.tokenizer.update(channels=16, multipliers=(1, 2, 4), blocks=1, latent_channels=64, attention=False)
    config.tokenizer.quantizer.update(codes=512, width=8)
    config.training.tokenizer = base.stage(
        steps=1500, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=100, ema_decay=0.995,
        save_every=300,
    )  # fmt: skip
    config.generator.update(
        width=192, depth=6, heads=6, mlp=512, qk_norm="rms", rotate_condition=True, init_std=0.07
    )  # fmt: skip
    config.training.generator = base.stage(
        steps=1200, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=100, ema_decay=0.995,
        save_every=300,
    )  # fmt: skip
    config.sampler.first_drafts = "neighbours"
    config.training.forecast = base.stage(
        steps=600, batch_size=32, learning_rate=2e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99, save_every=300
    )
    config.forecast.hidden = 384
    config.evaluation.samples = 10_000
    if parse(argument, next=("token", "scale"))["next"] == "scale":
        next_scale(config, scales=(1, 2, 3, 5, 8), codes=512, width=8)
        config.generator.update(mlp=768, rotate_condition=False, init_gates=0.5)
        config.training.generator.steps = 650  # of 103 tokens an image, not 64
        config.sampler.guidance_scale = 3.0
    return config
