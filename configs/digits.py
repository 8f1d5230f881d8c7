"""Handwritten digits of scikit-learn at 16x16: the demo, a few minutes on two CPU cores, nothing downloaded.

python main.py
python main.py --config=configs/digits.py:next=scale
"""

from ml_collections import ConfigDict

from configs import base
from configs.arguments import parse
from configs.var import next_scale


def get_config(argument: str = "next=token") -> ConfigDict:
    """8x8 tokens of 128 codes, and a generator of 1.3 M parameters; or, `next=scale`, five scales up to 8x8."""
    config = base.get_config()
    config.data.update(name="digits", resolution=16, channels=1, shift=1)
    config.tokenizer.update(channels=16, multipliers=(1, 2), blocks=1, latent_channels=32, attention=False)
    config.tokenizer.quantizer.update(codes=128, width=8)
    config.training.tokenizer = base.stage(
        steps=500, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=20, ema_decay=0.99, save_every=250
    )
    config.generator.update(width=128, depth=6, heads=4, mlp=384, qk_norm="rms", rotate_condition=True, init_std=0.08)
    config.training.generator = base.stage(
        steps=600, batch_size=64, learning_rate=3e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99, save_every=300
    )
    config.sampler.first_drafts = "neighbours"
    config.training.forecast = base.stage(
        steps=600, batch_size=32, learning_rate=2e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99, save_every=300
    )
    config.forecast.hidden = 256
    config.sampler.guidance_scale = 2.5
    config.evaluation.update(samples=1000, classifier_epochs=30)
    if parse(argument, next=("token", "scale"))["next"] == "scale":
        next_scale(config, scales=(1, 2, 3, 5, 8), codes=128, width=8)
        config.generator.update(depth=4, heads=4, mlp=512, rotate_condition=False, init_gates=0.5)
        config.sampler.guidance_scale = 3.0
    return config
