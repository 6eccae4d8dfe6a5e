"""Draws a picture to which a layer or a class of the network responds strongly.

googlenet dream --workdir=DIR --layer=inception_4c --image=FILE --out=FILE
googlenet dream --workdir=DIR --layer=classifier --channel=cat --out=FILE
"""

from googlenet_flax.analysis.dream import FROM_NOISE, FROM_PICTURE, PICTURE_SIZE, draw
from googlenet_flax.analysis.endpoints import ENDPOINTS
from googlenet_flax.runtime.command import add_run_flags, argument_parser, running
from googlenet_flax.runtime.files import file_path

SIZE_DEFAULT = f"the network's input; with --image the picture's, at most {PICTURE_SIZE}"
SETTINGS = {
    "octaves": "largest number of picture sizes (octaves), each 1.4 times the last",
    "steps": "gradient steps in each octave",
    "rate": "mean change per step, in pixel values from 0 to 255",
    "jitter": "largest random shift before each step, in pixels",
    "smoothness": "smoothing of each step: 0 draws fine noise, 1 broad shapes",
}


def main() -> None:
    """Runs the command."""
    parser = argument_parser("dream", __doc__)
    add = parser.add_argument
    add_run_flags(parser)
    add("--layer", required=True, help=f"layer that responds: {', '.join(ENDPOINTS)}")
    add("--channel", default="", help="channel of the layer, or class of a classifier")
    add("--image", default="", help="picture to start from; default: gray noise")
    add("--out", required=True, type=file_path, help="PNG file to write")
    add("--size", type=int, help=f"longer side in pixels; default: {SIZE_DEFAULT}")
    for name, text in SETTINGS.items():
        noise, picture = getattr(FROM_NOISE, name), getattr(FROM_PICTURE, name)
        default = f"{noise}" if noise == picture else f"{noise}, with --image {picture}"
        add(f"--{name}", type=type(noise), help=f"{text}; default: {default}")
    add("--seed", type=int, default=0, help="seed of noise and jitter; default: 0")
    args = parser.parse_args()
    with running():
        print(draw(**vars(args)))


if __name__ == "__main__":
    main()
