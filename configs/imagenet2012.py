"""ImageNet as the paper trained it, with what it left open filled in.

    python -m googlenet_flax.main --config=configs/imagenet2012.py \
        --config.data_dir=DIR --workdir=runs/imagenet

DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org. The first
run writes them as the TFDS set imagenet2012/5.1.0, which takes about as much again as their
144 GiB (not measured), and does not need them any more. The same recipe reads an unpacked
tree, DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, with --config.dataset=folder
--config.eval_split=val.

From section 6: crops of 8 to 100 % of the area with sides of 3:4 to 4:3, photometric
distortion, random interpolation, 4 % less learning rate every 8 epochs, momentum 0.9, heads
at 0.3, averaged weights. Left open there and taken from Caffe's bvlc_googlenet: the start
of the learning rate (0.01), 250 epochs, weight decay (2e-4). Our own choice: batch 256
(Caffe 32), strength of the distortion, from when weights are averaged. Hardware: GPUs.
Time: not measured. Accuracy: not measured.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every field is explained in `googlenet_flax/config.py`."""
    config = ml_collections.ConfigDict()

    config.variant = "paper"
    config.width_multiplier = 1.0
    config.dtype = "bfloat16"

    config.dataset = "imagenet2012"
    config.data_dir = ""
    config.train_split = "train"
    config.eval_split = "validation"
    config.eval_fraction = 0.0
    config.storage_size = 320
    config.on_bad_image = "skip"
    config.decode_workers = 16

    config.image_size = 224
    config.crop_fraction = 224 / 256
    config.input_scale = 1.0
    config.input_mean = (104.0, 117.0, 123.0)
    config.input_std = (1.0, 1.0, 1.0)
    config.channel_order = "BGR"
    config.crop_padding_pixels = 0
    config.crop_min_area = 0.08
    config.crop_max_aspect = 4 / 3
    config.flip = "random"
    config.photometric_strength = 0.4
    config.interpolations = ("bilinear", "cubic", "area", "nearest")
    config.cutout_fraction = 0.0
    config.mixup_alpha = 0.0
    config.early_image_sizes = ()
    config.early_image_size_epochs = ()

    config.init_from = ""
    config.trainable = "all"

    config.batch_size = 256
    config.num_epochs = 250
    config.max_steps = 0
    config.accumulation_steps = 1
    config.learning_rate = 0.01
    config.schedule = "staircase"
    config.warmup_epochs = 0.0
    config.final_rate_fraction = 0.0
    config.momentum = 0.9
    config.decay_rate = 0.96
    config.decay_every_epochs = 8
    config.decay_offset_epochs = 0
    config.weight_decay = 0.0002
    config.aux_weight = 0.3
    config.final_aux_fraction = 1.0
    config.label_smoothing = 0.0
    config.averaging = "polyak"
    config.ema_decay = 0.999
    config.average_from_epoch = 200
    config.seed = 0

    config.distributed = False
    config.log_every_steps = 100
    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 5000
    config.profile_steps = ()
    config.wandb_project = ""
    config.restart = False

    return config
