"""Export of all weights as a safetensors file, with a card for the Hugging Face Hub."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from googlenet_flax.exporters.network import Network, as_text
from googlenet_flax.runtime.errors import optional_package

CARD = """\
---
library_name: googlenet_flax
pipeline_tag: image-classification
tags: [googlenet, inception, flax, jax]
---

# GoogLeNet `{variant}`, {num_classes} classes

The network of [Going deeper with convolutions](https://arxiv.org/abs/1409.4842) with both
auxiliary classifiers, written by {generator} from checkpoint {checkpoint_step}.

- Variant: `{variant}`, width multiplier {width_multiplier}
- Accuracy: {accuracy}
- Auxiliary classifiers that are not trained: {untrained}
- Classes: {num_classes}, from {first!r} to {last!r}
- Input: {image_size} x {image_size} pixels, channels: {channels}. Rotate the picture by its
  EXIF orientation, {blend}cut out the central square, {crop_fraction} of its shorter side,
  and resize it bilinearly.
- Normalization of pixels from 0 to 255:
  (pixel * {input_scale} - {input_mean}) / {input_std}
- Tensors: float32 in Flax's layouts, `[H, W, in, out]` for convolutions and `[in, out]`
  for dense kernels; `mean` and `var` are the statistics of batch norm.

The metadata of the file hold these facts and the names of all classes. To use the network,
install googlenet_flax with its extra `import`, and run:

```bash
googlenet import-weights --from=googlenet_flax --weights={file_name} --workdir=imported
googlenet predict --workdir=imported photos/
```
"""


def write(network: Network, metadata: Mapping[str, Any]) -> bytes:
    """Serializes all weights, including those of the heads, by the paths of their leaves.

    The layouts are Flax's: `[H, W, in, out]` for convolutions, `[in, out]` for dense
    kernels.

    Raises:
      UserError: The package safetensors is missing.
    """
    with optional_package("safetensors", "--format=safetensors", "export"):
        import safetensors.numpy
    text = {"format": "flax", **as_text(metadata)}  # Other libraries require `format`.
    return safetensors.numpy.save(network.leaves(), metadata=text)


def read(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays, by name, from the contents of a safetensors file."""
    import safetensors.numpy

    return safetensors.numpy.load(data)


def model_card(metadata: Mapping[str, Any], file_name: str) -> str:
    """Formats the card of the network in a safetensors file with these metadata."""
    names, preprocess = metadata["class_names"], metadata["preprocess"]
    count = len(preprocess["input_mean"])
    return CARD.format(
        **{"accuracy": "not measured", **metadata, **preprocess},
        channels=preprocess["channel_order"] if count == 3 else count,
        blend="" if count == 4 else "put transparent pixels on white, ",
        untrained=", ".join(metadata["untrained_heads"]) or "none",
        num_classes=len(names),
        first=names[0],
        last=names[-1],
        file_name=shlex.quote(file_name),
    )
