"""The recipe of `cifar10_best.py` for CIFAR-100.

    python -m googlenet_flax.main --config=configs/cifar100.py --workdir=runs/cifar100

Hardware: a GPU. Time: not measured. Accuracy: not measured.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.dataset = "cifar100"
    config.variant = "bn"
    config.dtype = "bfloat16"
    config.input_mean = (0.5071, 0.4866, 0.4409)
    config.input_std = (0.2673, 0.2564, 0.2762)

    config.crop_padding_pixels = 4
    config.flip = "alternating"
    config.cutout_fraction = 0.5
    config.label_smoothing = 0.1

    config.num_epochs = 200
    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.weight_decay = 5e-4
    config.final_aux_fraction = 0.0
    config.averaging = "ema"

    config.log_every_steps = 50
    config.checkpoint_every_steps = 0
    config.eval_every_epochs = 5

    return config
