"""A small recipe for the handwritten digits of scikit-learn, which need no download.

    python -m googlenet_flax.main --config=configs/digits.py --workdir=runs/digits

Hardware: 2 CPU cores (AMD EPYC, AVX-512). Time: 71 s from command to result.
Accuracy: 98.15 % on the 360 held-out digits (n = 3, std 1.12), with --config.seed=0, 1, 2.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.dataset = "digits"
    config.variant = "bn"
    config.image_size = 80

    config.batch_size = 32
    config.num_epochs = 5
    config.learning_rate = 0.05
    config.decay_rate = 0.5
    config.decay_every_epochs = 1
    config.checkpoint_every_steps = 0

    return config
