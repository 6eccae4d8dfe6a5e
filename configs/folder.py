"""Training from scratch on your own pictures, augmented as in section 6 of the paper.

    python -m googlenet_flax.main --config=configs/folder.py --config.data_dir=photos \
        --workdir=runs/photos

`photos` holds train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg together with
--config.eval_fraction=0.2. Hardware: any. Time: not measured. Accuracy: not measured.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.dataset = "folder"
    config.data_dir = "photos"
    config.storage_size = 384
    config.crop_fraction = 0.875
    config.variant = "bn"

    config.crop_min_area = 0.08
    config.flip = "random"
    config.color_jitter = 0.5

    config.batch_size = 32
    config.num_epochs = 60
    config.learning_rate = 0.05
    config.decay_every_epochs = 1
    config.weight_decay = 1e-4
    config.checkpoint_every_steps = 200

    return config
