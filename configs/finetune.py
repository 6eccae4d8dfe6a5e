"""Fine-tunes imported weights of torchvision on your own pictures.

    python -m googlenet_flax.main --config=configs/finetune.py \
        --config.init_from=runs/imagenet --config.data_dir=photos --workdir=runs/finetuned

`runs/imagenet` was made by `googlenet_flax.import_weights --from=torchvision`, `photos` is
as in `configs/folder.py`. The input is scaled as torchvision's own trained weights want it;
for others the run says what to set. Hardware: any. Time: not measured. Accuracy: not
measured.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every field is explained in `googlenet_flax/config.py`."""
    config = ml_collections.ConfigDict()

    config.variant = "torchvision"
    config.width_multiplier = 1.0
    config.dtype = "float32"

    config.dataset = "folder"
    config.data_dir = "photos"
    config.train_split = "train"
    config.eval_split = "test"
    config.eval_fraction = 0.0
    config.storage_size = 320
    config.on_bad_image = "stop"
    config.decode_workers = 0

    config.image_size = 224
    config.crop_fraction = 0.875
    config.input_scale = 1 / 255
    config.input_mean = (0.5, 0.5, 0.5)
    config.input_std = (0.5, 0.5, 0.5)
    config.channel_order = "RGB"
    config.crop_padding_pixels = 0
    config.crop_min_area = 0.25
    config.crop_max_aspect = 4 / 3
    config.flip = "random"
    config.photometric_strength = 0.0
    config.interpolations = ("bilinear",)
    config.cutout_fraction = 0.0
    config.mixup_alpha = 0.0
    config.early_image_sizes = ()
    config.early_image_size_epochs = ()

    config.init_from = "runs/imagenet"
    config.trainable = "all"

    config.batch_size = 32
    config.num_epochs = 10
    config.max_steps = 0
    config.accumulation_steps = 1
    config.learning_rate = 0.005
    config.schedule = "staircase"
    config.warmup_epochs = 0.0
    config.final_rate_fraction = 0.0
    config.momentum = 0.9
    config.decay_rate = 0.8
    config.decay_every_epochs = 1
    config.decay_offset_epochs = 0
    config.weight_decay = 1e-4
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
    config.checkpoint_every_steps = 200
    config.profile_steps = ()
    config.wandb_project = ""
    config.restart = False

    return config
