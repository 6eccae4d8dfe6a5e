"""The paper's training on ImageNet, with our choices for the settings it does not give.

    python -m googlenet_flax.main --config=configs/imagenet2012.py \
        --config.data_dir=DIR --workdir=runs/imagenet

DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org. The first
run writes them as the TFDS set imagenet2012/5.1.0, which takes about as much space as their
144 GiB (not measured). Later runs do not need the archives. The same recipe reads an
unpacked tree, DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, with
--config.dataset=folder --config.eval_split=val.

Section 6 gives these settings: crops of 8 to 100 % of the area with aspect ratios of 3:4 to
4:3, photometric distortion, random interpolation, a learning rate that falls by 4 % every 8
epochs, momentum 0.9, and averaged weights. Section 5 gives the weight 0.3 of the heads.
Caffe's bvlc_googlenet gives the first learning rate (0.01), 250 epochs and the weight decay
(2e-4). Batch size 256 (Caffe has 32), the mirror images, the strength of the distortion and
the first epoch of averaging are our own choice.
Hardware: GPUs. Time: not measured. Accuracy: not measured.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.dataset = "imagenet2012"
    config.eval_split = "validation"
    config.storage_size = 384
    config.on_bad_image = "skip"
    config.decode_workers = 16

    config.variant = "paper"
    config.dtype = "bfloat16"
    config.crop_fraction = 0.875
    config.input_scale = 1.0
    config.input_mean = (104.0, 117.0, 123.0)
    config.channel_order = "BGR"

    config.crop_min_area = 0.08
    config.flip = "random"
    config.color_jitter = 0.4
    config.interpolations = ("bilinear", "cubic", "area", "nearest")

    config.num_epochs = 250
    config.learning_rate = 0.01
    config.decay_every_epochs = 8
    config.weight_decay = 2e-4
    config.averaging = "polyak"
    config.average_from_epoch = 200

    config.log_every_steps = 100
    config.checkpoint_every_steps = 5000

    return config
