"""Runs the originals and stores what they compute in outputs.json.

In a virtual environment of its own:

    pip install keras tensorflow-cpu torch onnx onnxruntime
    cd tests && KERAS_BACKEND=tensorflow python -m originals.make_outputs
"""

import importlib.metadata
import json
import pathlib
import re

from originals import caffe_googlenet, keras_googlenet, torchvision_googlenet
from originals.weights import draw_images, draw_weights

# At some of the image sizes, rounding up, rounding down and SAME give different maps inside
# the network.
ORIGINALS = {
    "seed": (keras_googlenet, (96, 100, 224)),
    "paper": (caffe_googlenet, (96, 100, 224)),
    "torchvision": (torchvision_googlenet, (32, 96, 120, 127, 224)),
}
HEADS = ("logits", "aux_4a", "aux_4d")
PACKAGES = ("keras", "numpy", "onnxruntime", "tensorflow-cpu", "torch")
PATH = pathlib.Path(__file__).parent / "outputs.json"


def run_original(variant: str, image_size: int) -> dict[str, list[list[float]]]:
    """Computes the original's outputs for its weights and images, rounded to 9 digits."""
    weights = draw_weights(variant, image_size)
    original, _ = ORIGINALS[variant]
    outputs = original.run(weights, draw_images(variant, image_size))
    return {
        head: [[float(f"{logit:.9g}") for logit in row] for row in output]
        for head, output in zip(HEADS, outputs, strict=True)
    }


def main() -> None:
    """Writes outputs.json."""
    stored = {
        "made_with": {name: importlib.metadata.version(name) for name in PACKAGES},
        "outputs": {
            variant: {str(size): run_original(variant, size) for size in sizes}
            for variant, (_, sizes) in ORIGINALS.items()
        },
    }
    text = json.dumps(stored, indent=1)
    # The logits of an image on one line.
    text = re.sub(r"\[[^][]+\]", lambda row: " ".join(row[0].split()), text)
    PATH.write_text(text + "\n")


if __name__ == "__main__":
    main()
