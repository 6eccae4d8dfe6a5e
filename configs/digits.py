"""Handwritten digits that come with scikit-learn: no download, minutes on a laptop.

    python -m googlenet_flax.main --config=configs/digits.py --workdir=runs/digits

Hardware: 2 CPU cores (AVX-512 Xeon). Time: 107 s from command to result (median of 3).
Accuracy: 98.33 % on the 360 held-out digits (n = 3, std 0.56), with --config.seed=0, 1, 2.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every field is explained in `googlenet_flax/config.py`."""
    config = ml_collections.ConfigDict()

    config.variant = "bn"
    config.width_multiplier = 1.0
    config.dtype = "float32"

    config.dataset = "digits"
    config.data_dir = ""
    config.train_split = "train"
    config.eval_split = "test"
    config.eval_fraction = 0.0
    config.storage_size = 256
    config.on_bad_image = "stop"
    config.decode_workers = 0

    config.image_size = 80
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

    config.batch_size = 32
    config.num_epochs = 5
    config.max_steps = 0
    config.accumulation_steps = 1
    config.learning_rate = 0.05
    config.schedule = "staircase"
    config.warmup_epochs = 0.0
    config.final_rate_fraction = 0.0
    config.momentum = 0.9
    config.decay_rate = 0.5
    config.decay_every_epochs = 1
    config.decay_offset_epochs = 0
    config.weight_decay = 0.0
    config.aux_weight = 0.3
    config.final_aux_fraction = 1.0
    config.label_smoothing = 0.0
    config.averaging = "none"
    config.ema_decay = 0.999
    config.average_from_epoch = 0
    config.seed = 0

    config.distributed = False
    config.log_every_steps = 10
    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 0
    config.profile_steps = ()
    config.wandb_project = ""
    config.restart = False

    return config
