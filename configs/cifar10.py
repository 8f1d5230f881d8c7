"""CIFAR-10 at 32x32; for one GPU, or hours of a CPU.

    python main.py --config=configs/cifar10.py --config.data.path=DIR

DIR holds train.npz and test.npz with `images` (N, 32, 32, 3) uint8 and `labels` (N,). With --config.data.name=cifar10 TFDS
brings the images itself.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """8x8 tokens of 4,096 codes."""
    config = base.get_config()
    config.data.update(name="npz", path="data/cifar10", resolution=32, channels=3, flip=True)
    config.tokenizer.update(channels=64, multipliers=(1, 2, 4), blocks=2, latent_channels=128)
    config.tokenizer.quantizer.update(codes=4096, width=8)
    config.losses.update(l1=0.2, adversarial=0.1, adversarial_start=20_000, discriminator_layers=1)
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
    config.evaluation.classifier = "convnet"
    return config
