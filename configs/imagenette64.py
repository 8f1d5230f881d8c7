"""Imagenette (ten classes of ImageNet) at 64x64 from TFDS; for one GPU.

python main.py --config=configs/imagenette64.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """8x8 tokens of 4,096 codes."""
    config = base.get_config()
    config.data.update(name="imagenette/160px-v2", resolution=64, channels=3, flip=True, crop_scale=(0.8, 1.0))
    config.tokenizer.update(channels=64, multipliers=(1, 2, 2, 4), blocks=2, latent_channels=128, dtype="bfloat16")
    config.tokenizer.quantizer.update(codes=4096, width=8)
    config.losses.update(l1=0.2, adversarial=0.1, adversarial_start=10_000, discriminator_layers=2)
    config.training.tokenizer = base.stage(
        steps=30_000, batch_size=64, learning_rate=3e-4, schedule="cosine", warmup_steps=500, ema_decay=0.999,
        log_every=50,
    )  # fmt: skip
    config.extract.copies = 10
    config.generator.update(width=512, depth=12, heads=8, dtype="bfloat16")
    config.training.generator = base.stage(
        steps=30_000, batch_size=128, learning_rate=3e-4, schedule="cosine", warmup_steps=500, ema_decay=0.999,
        log_every=50,
    )  # fmt: skip
    return config
