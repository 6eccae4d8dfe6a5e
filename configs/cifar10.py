"""GoogLeNet as a Keras tutorial trains it, with the same settings, on all of CIFAR-10.

    python -m googlenet_flax.main --config=configs/cifar10.py --workdir=runs/cifar10

Hardware: any. Time: 161 s on an H100 with 16 CPU cores, plus some 15 s for imports and
data. The H100 computes float32 as TF32, and the compiled programs were in the cache.
Accuracy: 76.41 % of the 10,000 test images (n = 1), on a copy of CIFAR-10 re-encoded as
JPEG.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    # Data: pixels are divided by 255 and resized bilinearly.
    config.dataset = "cifar10"
    config.train_split = "train"
    config.eval_split = "test"
    config.image_size = 224
    config.interpolations = ("bilinear",)
    config.input_scale = 1 / 255
    config.input_mean = (0.0, 0.0, 0.0)
    config.input_std = (1.0, 1.0, 1.0)

    # Network: Table 1 as the tutorial builds it, with two heads of weight 0.3.
    config.variant = "seed"
    config.aux_weight = 0.3

    # SGD with momentum; the learning rate is 0.01 * 0.96 ** floor((1 + epoch) / 8).
    config.batch_size = 256
    config.num_epochs = 15
    config.learning_rate = 0.01
    config.momentum = 0.9
    config.schedule = "staircase"
    config.decay_rate = 0.96
    config.decay_every_epochs = 8
    config.decay_offset_epochs = 1
    config.weight_decay = 0.0

    return config
