"""CIFAR-10 at 32x32: size S for an hour of two CPU cores, size B for one GPU.

    python main.py --config=configs/cifar10.py:size=S --config.data.path=DIR

DIR holds train.npz and test.npz with `images` (N, 32, 32, 3) uint8 and `labels` (N,). With --config.data.name=cifar10 TFDS
brings the images itself.
"""

from ml_collections import ConfigDict

from configs import base
from configs.arguments import parse


def get_config(argument: str = "size=B") -> ConfigDict:
    """8x8 tokens, of 512 codes (S) or 4,096 (B)."""
    size = parse(argument, size=("B", "S"))["size"]
    config = base.get_config()
    config.data.update(name="npz", path="data/cifar10", resolution=32, channels=3, flip=True)
    config.losses.l1 = 0.2
    {"S": small, "B": big}[size](config)
    return config


def small(config: ConfigDict) -> None:
    """Without a discriminator, which would take half of the time."""
    config.tokenizer.update(channels=16, multipliers=(1, 2, 4), blocks=1, latent_channels=64, attention=False)
    config.tokenizer.quantizer.update(codes=512, width=8)
    config.training.tokenizer = base.stage(
        steps=1600, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=100, ema_decay=0.995,
        save_every=400,
    )  # fmt: skip
    config.generator.update(
        width=192, depth=6, heads=6, mlp=512, qk_norm="rms", rotate_condition=True, init_std=0.07
    )  # fmt: skip
    config.training.generator = base.stage(
        steps=2400, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=100, ema_decay=0.995,
        save_every=400,
    )  # fmt: skip
    config.sampler.first_drafts = "neighbours"
    config.training.forecast = base.stage(
        steps=600, batch_size=32, learning_rate=2e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99, save_every=300
    )
    config.forecast.hidden = 384
    config.evaluation.samples = 10_000


def big(config: ConfigDict) -> None:
    """With a discriminator, and a generator of 38 M parameters."""
    config.tokenizer.update(channels=64, multipliers=(1, 2, 4), blocks=2, latent_channels=128)
    config.tokenizer.quantizer.update(codes=4096, width=8)
    config.losses.update(adversarial=0.1, adversarial_start=20_000, discriminator_layers=1)
    config.training.tokenizer = base.stage(
        steps=40_000, batch_size=128, learning_rate=4e-4, schedule="cosine", warmup_steps=500, ema_decay=0.999,
        log_every=50,
    )  # fmt: skip
    config.generator.update(width=512, depth=12, heads=8)
    config.training.generator = base.stage(
        steps=100_000, batch_size=256, learning_rate=4e-4, schedule="cosine", warmup_steps=1000, log_every=50,
        save_every=5000,
    )  # fmt: skip
    config.sampler.guidance_scale = 1.5
