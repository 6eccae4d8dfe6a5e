"""What each ingredient of `configs/cifar10_best.py` gives, on a small scale.

    python benchmarks/recipe_ablation.py --workdir=DIR [--seeds=0,1] [--config.FIELD=VALUE]

Every row leaves one ingredient out of the whole recipe, the last all of them. Rows run one
after another, and what was interrupted goes on: commands with other seeds may run side by
side in one DIR. `SCALE` fits CPU cores; arguments after it, as `--config.data_dir=DIR`, go
to every run.
"""

import argparse
import pathlib

from run_seeds import markdown, seed_numbers, summarise, train

from googlenet_flax.runs.metrics import read_rows

SCALE = (
    "--config=configs/cifar10_best.py",
    "--config.dtype=float32",  # On CPUs the faster one.
    "--config.image_size=80",
    "--config.width_multiplier=0.25",
    "--config.train_split=train[:1000]",
    "--config.batch_size=32",
    "--config.num_epochs=45",
    "--config.learning_rate=0.05",
    "--config.warmup_epochs=1.125",  # Of the run the same share as in the recipe, like
    "--config.ema_decay=0.972",  # the window of the averages.
    "--config.eval_every_epochs=45",
    "--config.checkpoint_every_steps=400",
)
WITHOUT = {
    "shifts and mirror images": ("crop_padding_pixels=0", "flip=none"),
    "alternation of mirror images": ("flip=random",),
    "cutout": ("cutout_fraction=0",),
    "label smoothing": ("label_smoothing=0",),
    "weight decay": ("weight_decay=0",),
    "cosine: constant rate": ("schedule=linear", "final_rate_fraction=1"),
    "warm-up": ("warmup_epochs=0",),
    "auxiliary heads": ("aux_weight=0",),
    "fall of the heads' weight": ("final_aux_fraction=1",),
}


def rows() -> dict[str, tuple[str, ...]]:
    """What is changed in each row, as arguments."""
    changes = {"the whole recipe": ()}
    changes |= {f"without {name}": fields for name, fields in WITHOUT.items()}
    everything = [field for fields in WITHOUT.values() for field in fields]
    # Of a field that two rows change, the one that leaves more out.
    everything.remove("flip=random")
    everything.remove("final_aux_fraction=1")
    changes["without all of these"] = tuple(everything)
    return {
        name: tuple(f"--config.{field}" for field in fields)
        for name, fields in changes.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument(
        "--seeds", type=seed_numbers, default="0,1", help="numbers, with commas"
    )
    flags, more = parser.parse_known_args()
    for number, (name, changes) in enumerate(rows().items()):
        folder = flags.workdir.absolute() / f"{number}"
        folder.mkdir(parents=True, exist_ok=True)
        runs, seconds = {}, []
        for seed in flags.seeds:
            workdir = folder / f"seed-{seed}"
            seconds.append(train([*SCALE, *more, *changes], seed, workdir))
            runs[seed] = read_rows(workdir / "metrics.jsonl")
        table = markdown({"row": name, **summarise(runs, seconds)}).splitlines()
        print("\n".join(table if number == 0 else table[-1:]), flush=True)


if __name__ == "__main__":
    main()
