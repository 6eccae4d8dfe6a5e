"""Fine-tuning of imported torchvision weights on your own pictures.

    python -m googlenet_flax.main --config=configs/finetune.py \
        --config.init_from=runs/torchvision --config.data_dir=photos --workdir=runs/flowers

`googlenet import-weights --from=torchvision --workdir=runs/torchvision` creates
`runs/torchvision`; `photos` is a folder as in `configs/folder.py`. The scale of the input
fits torchvision's own weights; for other weights, an error names the fields to set.
Hardware: any. Time: not measured. Accuracy: not measured.
"""

from googlenet_flax.config import default_config


def get_config():
    """Returns the recipe; `googlenet_flax/config.py` explains every field."""
    config = default_config()

    config.init_from = "runs/torchvision"
    config.variant = "torchvision"
    config.input_mean = (0.5, 0.5, 0.5)
    config.input_std = (0.5, 0.5, 0.5)
    config.aux_weight = 0.0  # torchvision's heads are not trained.

    config.dataset = "folder"
    config.data_dir = "photos"
    config.storage_size = 512
    config.crop_fraction = 0.875
    config.crop_min_area = 0.25
    config.flip = "random"

    config.batch_size = 32
    config.num_epochs = 10
    config.learning_rate = 0.005
    config.decay_rate = 0.8
    config.decay_every_epochs = 1
    config.weight_decay = 1e-4
    config.checkpoint_every_steps = 200

    return config
