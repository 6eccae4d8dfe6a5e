"""Measures the effect of each ingredient of `configs/cifar10_cpu.py` in shorter runs.

    python benchmarks/recipe_ablation.py --workdir=DIR [--seeds=0,1] [--config.FIELD=VALUE]

The first row is the whole recipe, each of the next rows leaves one ingredient out, and the
last row leaves all of them out. Rows run one after another, and an interrupted run is
resumed. Commands with different seeds may run at the same time in one DIR. `SCALE` makes
the runs short enough for CPU cores. Further arguments, such as `--config.data_dir=DIR`, are
passed to every run.
"""

import argparse

from run_seeds import markdown, seed_numbers, summarize, train_all

from googlenet_flax.runtime.files import file_path

SCALE = (
    "--config=configs/cifar10_cpu.py",
    "--config.image_size=64",
    "--config.progressive_image_sizes=()",
    "--config.progressive_image_size_epochs=()",
    "--config.width_multiplier=0.5",
    "--config.num_epochs=8",
    # Training is unstable here with 0.353 epochs of warm-up, the share of the run that the
    # recipe spends on it: docs/results.md compares both.
    "--config.warmup_epochs=1",
    "--config.eval_every_epochs=8",
    "--config.checkpoint_every_steps=400",
)
WITHOUT = {
    "shifts and mirror images": ("crop_padding_pixels=0", "flip=none"),
    "cutout": ("cutout_fraction=0",),
    "label smoothing": ("label_smoothing=0",),
    "auxiliary heads": ("aux_weight=0",),
    "fall of the heads' weight": ("final_aux_fraction=1",),
    "weight decay": ("weight_decay=0",),
    "alternation of mirror images": ("flip=random",),
    "cosine: constant rate": ("schedule=linear", "final_rate_fraction=1"),
    "warm-up": ("warmup_epochs=0",),
}


def rows() -> dict[str, tuple[str, ...]]:
    """Returns the arguments that change the recipe, by the name of the row."""
    changes = {"the whole recipe": ()}
    changes |= {f"without {name}": fields for name, fields in WITHOUT.items()}
    everything = [field for fields in WITHOUT.values() for field in fields]
    # `flip=none` leaves out more, and `aux_weight=0` leaves no weight that could fall.
    everything.remove("flip=random")
    everything.remove("final_aux_fraction=1")
    changes["without all of these"] = tuple(everything)
    return {
        name: tuple(f"--config.{field}" for field in fields)
        for name, fields in changes.items()
    }


def main() -> None:
    """Trains all runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--workdir", type=file_path, required=True)
    parser.add_argument(
        "--seeds", type=seed_numbers, default="0,1", help="numbers, separated by commas"
    )
    flags, more = parser.parse_known_args()
    for number, (name, changes) in enumerate(rows().items()):
        folder = flags.workdir / f"{number}"
        runs, seconds = train_all([*SCALE, *more, *changes], flags.seeds, folder)
        table = markdown({"row": name, **summarize(runs, seconds)}).splitlines()
        print("\n".join(table if number == 0 else table[-1:]), flush=True)


if __name__ == "__main__":
    main()
