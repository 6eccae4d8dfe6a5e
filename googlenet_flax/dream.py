"""Draws what a part of the network responds to.

python -m googlenet_flax.dream --workdir=DIR --layer=inception_4c --image=FILE --out=FILE
python -m googlenet_flax.dream --workdir=DIR --layer=classifier --channel=cat --out=FILE
"""

import argparse
import pathlib

from googlenet_flax.analysis.dream import FROM_NOISE, FROM_PICTURE, PICTURE_SIZE, draw
from googlenet_flax.analysis.endpoints import ENDPOINTS
from googlenet_flax.runtime.command import argument_parser, running

SIZE_DEFAULT = f"the network's, or of --image its own up to {PICTURE_SIZE}"


def main() -> None:
    """Runs the command."""
    args = _parse_arguments()
    with running():
        print(draw(**vars(args)))


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser("dream", __doc__)
    add = parser.add_argument

    def add_setting(name: str, text: str) -> None:
        noise, picture = getattr(FROM_NOISE, name), getattr(FROM_PICTURE, name)
        default = f"{noise}" if noise == picture else f"{noise}, with --image {picture}"
        add(f"--{name}", type=type(noise), help=f"{text}; default: {default}")

    add("--workdir", required=True, help="directory of a run or import")
    add("--checkpoint", default="best", help="best, latest or a step")
    add("--layer", required=True, help=f"what is to respond: {', '.join(ENDPOINTS)}")
    add("--channel", default="", help="one channel of it; of a classifier, a class")
    add("--image", default="", help="picture to begin with; default: grey noise")
    add("--out", required=True, type=pathlib.Path, help="PNG file to write")
    add("--size", type=int, help=f"longer side in pixels; default: {SIZE_DEFAULT}")
    add_setting("octaves", "sizes at most, each 1.4 times the one before")
    add_setting("steps", "for each octave")
    add_setting("rate", "mean change of a step, in pixel values of 0 to 255")
    add_setting("jitter", "random shift before each step, in pixels at most")
    add_setting("smoothness", "0 draws fine noise, 1 broad strokes")
    add("--seed", type=int, default=0, help="of noise and jitter")
    return parser.parse_args()


if __name__ == "__main__":
    main()
