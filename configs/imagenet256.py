"""ImageNet at 256x256 through LlamaGen-L, from TFDS.

python main.py --config=configs/imagenet256.py --job=train
"""

from ml_collections import ConfigDict

from configs import llamagen


def get_config() -> ConfigDict:
    """LlamaGen-L; TFDS needs ImageNet's archives in `manual_dir` once."""
    config = llamagen.get_config("size=L,resolution=256")
    config.data.update(name="imagenet2012", path="")
    return config
