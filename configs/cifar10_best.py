"""A recipe that aims at the highest accuracy of this network on CIFAR-10; not yet run.

    python -m googlenet_flax.main --config=configs/cifar10_best.py \
        --workdir=runs/cifar10_best
    python -m googlenet_flax.evaluate --workdir=runs/cifar10_best --crops=6

It uses batch norm, augmentation, a cosine schedule and averaged weights; docs/results.md
explains each part. The second command averages six views of each image.
Hardware: a GPU. Time: not measured. Accuracy: not measured.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.dataset = "cifar10"
    config.variant = "bn"
    config.dtype = "bfloat16"
    config.input_mean = (0.4914, 0.4822, 0.4465)
    config.input_std = (0.247, 0.2435, 0.2616)

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
