"""Handwritten digits of scikit-learn at 16x16: the demo, a few minutes on two CPU cores, nothing downloaded.

python main.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """8x8 tokens of 128 codes, and a generator of 1.3 M parameters."""
    config = base.get_config()
    config.data.update(name="digits", resolution=16, channels=1, shift=1)
    config.tokenizer.update(channels=16, multipliers=(1, 2), blocks=1, latent_channels=32, attention=False)
    config.tokenizer.quantizer.update(codes=128, width=8)
    config.training.tokenizer = base.stage(
        steps=500, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=20, ema_decay=0.99, save_every=250
    )
    config.generator.update(width=128, depth=6, heads=4, mlp=384, qk_norm=True, rotate_condition=True, init_std=0.08)
    config.training.generator = base.stage(
        steps=600, batch_size=64, learning_rate=3e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99, save_every=300
    )
    config.sampler.guidance_scale = 2.5
    config.evaluation.update(samples=1000, classifier_epochs=30)
    return config
