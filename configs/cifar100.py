"""CIFAR-100 as well as this network can; the recipe of `cifar10_best.py`.

    python -m googlenet_flax.main --config=configs/cifar100.py --workdir=runs/cifar100

Aims at 78.1 %. Hardware: a GPU. Time: not measured.
Accuracy: not measured.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every field is explained in `googlenet_flax/config.py`."""
    config = ml_collections.ConfigDict()

    config.variant = "bn"
    config.width_multiplier = 1.0
    config.dtype = "bfloat16"

    config.dataset = "cifar100"
    config.data_dir = ""
    config.train_split = "train"
    config.eval_split = "test"
    config.eval_fraction = 0.0
    config.storage_size = 256
    config.on_bad_image = "stop"
    config.decode_workers = 0

    config.image_size = 224
    config.crop_fraction = 1.0
    config.input_scale = 1 / 255
    config.input_mean = (0.5071, 0.4866, 0.4409)
    config.input_std = (0.2673, 0.2564, 0.2762)
    config.channel_order = "RGB"
    config.crop_padding_pixels = 4
    config.crop_min_area = 1.0
    config.crop_max_aspect = 4 / 3
    config.flip = "alternating"
    config.photometric_strength = 0.0
    config.interpolations = ("bilinear",)
    config.cutout_fraction = 0.5
    config.mixup_alpha = 0.0
    config.early_image_sizes = ()
    config.early_image_size_epochs = ()

    config.init_from = ""
    config.trainable = "all"

    config.batch_size = 256
    config.num_epochs = 200
    config.max_steps = 0
    config.accumulation_steps = 1
    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.final_rate_fraction = 0.0
    config.momentum = 0.9
    config.decay_rate = 0.96
    config.decay_every_epochs = 8
    config.decay_offset_epochs = 1
    config.weight_decay = 0.0005
    config.aux_weight = 0.3
    config.final_aux_fraction = 0.0
    config.label_smoothing = 0.1
    config.averaging = "ema"
    config.ema_decay = 0.999
    config.average_from_epoch = 0
    config.seed = 0

    config.distributed = False
    config.log_every_steps = 50
    config.eval_every_epochs = 5
    config.checkpoint_every_steps = 100
    config.profile_steps = ()
    config.wandb_project = ""
    config.restart = False

    return config
