"""The tutorial as printed: 3,000 training images, 15 epochs, validated on 3,000 others.

    python -m googlenet_flax.main --config=configs/cifar10_blog.py --workdir=runs/blog

Hardware: 2 CPU cores (AVX-512 Xeon). Time: 56 min, evaluated every 5 epochs. Accuracy:
20.90 % of the 3,000 test images (n = 1, on a copy of CIFAR-10 re-encoded as JPEG); the
tutorial reports 78 %, see docs/results.md. With the ragged last batch dropped, its 15
epochs are 165 updates here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every field is explained in `googlenet_flax/config.py`."""
    config = ml_collections.ConfigDict()

    config.variant = "seed"
    config.width_multiplier = 1.0
    config.dtype = "float32"

    config.dataset = "cifar10"
    config.data_dir = ""
    config.train_split = "train[:3000]"
    config.eval_split = "test[:3000]"
    config.eval_fraction = 0.0
    config.storage_size = 256
    config.on_bad_image = "stop"
    config.decode_workers = 0

    config.image_size = 224
    config.crop_fraction = 1.0
    config.input_scale = 1 / 255
    config.input_mean = (0.0, 0.0, 0.0)
    config.input_std = (1.0, 1.0, 1.0)
    config.channel_order = "RGB"
    config.crop_padding_pixels = 0
    config.crop_min_area = 1.0
    config.crop_max_aspect = 4 / 3
    config.flip = "none"
    config.photometric_strength = 0.0
    config.interpolations = ("bilinear",)
    config.cutout_fraction = 0.0
    config.mixup_alpha = 0.0
    config.early_image_sizes = ()
    config.early_image_size_epochs = ()

    config.init_from = ""
    config.trainable = "all"

    config.batch_size = 256
    config.num_epochs = 15
    config.max_steps = 0
    config.accumulation_steps = 1
    config.learning_rate = 0.01
    config.schedule = "staircase"
    config.warmup_epochs = 0.0
    config.final_rate_fraction = 0.0
    config.momentum = 0.9
    config.decay_rate = 0.96
    config.decay_every_epochs = 8
    config.decay_offset_epochs = 1
    config.weight_decay = 0.0
    config.aux_weight = 0.3
    config.final_aux_fraction = 1.0
    config.label_smoothing = 0.0
    config.averaging = "none"
    config.ema_decay = 0.999
    config.average_from_epoch = 0
    config.seed = 0

    config.distributed = False
    config.log_every_steps = 1
    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 0
    config.profile_steps = ()
    config.wandb_project = ""
    config.restart = False

    return config
