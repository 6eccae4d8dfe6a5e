"""Weights and images for the originals, and where each weight goes in our tree.

This module needs only NumPy, because the stored outputs are also checked on machines that
have none of the originals. Nothing in this folder uses `googlenet_flax`, so that both sides
cannot share a mistake.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

NUM_CLASSES = 10
BATCH_SIZE = 2
Weights = dict[str, np.ndarray]  # Arrays by the original's own names.

# Table 1: input channels, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTIONS = {
    "inception_3a": (192, 64, 96, 128, 16, 32, 32),
    "inception_3b": (256, 128, 128, 192, 32, 96, 64),
    "inception_4a": (480, 192, 96, 208, 16, 48, 64),
    "inception_4b": (512, 160, 112, 224, 24, 64, 64),
    "inception_4c": (512, 128, 128, 256, 24, 64, 64),
    "inception_4d": (512, 112, 144, 288, 32, 64, 64),
    "inception_4e": (528, 256, 160, 320, 32, 128, 128),
    "inception_5a": (832, 256, 160, 320, 32, 128, 128),
    "inception_5b": (832, 384, 192, 384, 48, 128, 128),
}
HEADS = {"aux_4a": 512, "aux_4d": 528}  # Input channels.


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution, or a dense layer: a convolution as large as its input."""

    name: str  # A name in our tree.
    side: int  # Side of the kernel in pixels.
    inputs: int
    outputs: int
    dense: bool = False

    @property
    def path(self) -> str:
        """The path of the layer's parameters in our tree."""
        return f"params/{self.name}" if self.dense else f"params/{self.name}/conv"


class Keras:
    """The tutorial's network: how it lays out its weights and sees its images.

    Keras names no arrays, so these are the layers of `keras_googlenet`.
    """

    kernel_5x5 = 5  # Side of the kernel that the paper calls 5x5, in pixels.
    bias_range = (-0.1, 0.3)  # Large enough for a missing bias to show.

    def aux_side(self, image_size: int) -> int:
        """Returns the side of a head's map: four strides round up, a 5x5/3 pool down."""
        return (-(-image_size // 16) - 5) // 3 + 1

    def names(self, layer: Layer) -> dict[str, str]:
        """The original's names by the paths of our tree."""
        return {
            f"{layer.path}/kernel": f"{layer.name}/kernel",
            f"{layer.path}/bias": f"{layer.name}/bias",
        }

    def kernel_shape(self, layer: Layer) -> tuple[int, ...]:
        """Returns the shape of a kernel, in the layout of our tree."""
        if layer.dense:
            return layer.side**2 * layer.inputs, layer.outputs
        return layer.side, layer.side, layer.inputs, layer.outputs

    def our_kernel(self, kernel: np.ndarray, layer: Layer) -> np.ndarray:
        """Returns a kernel in the layout of our tree."""
        return kernel

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Computes the input of the network from RGB of 0 to 255."""
        return pixels / 255

    def layers(self, image_size: int) -> Iterator[Layer]:
        """Returns all layers for images of a size, in the order of the paper."""
        yield Layer("conv1", 7, 3, 64)
        yield Layer("conv2_reduce", 1, 64, 64)
        yield Layer("conv2", 3, 64, 192)
        for name, (inputs, *widths) in INCEPTIONS.items():
            conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = widths
            yield Layer(f"{name}/1x1", 1, inputs, conv_1x1)
            yield Layer(f"{name}/3x3_reduce", 1, inputs, reduce_3x3)
            yield Layer(f"{name}/3x3", 3, reduce_3x3, conv_3x3)
            yield Layer(f"{name}/5x5_reduce", 1, inputs, reduce_5x5)
            yield Layer(f"{name}/5x5", self.kernel_5x5, reduce_5x5, conv_5x5)
            yield Layer(f"{name}/pool_proj", 1, inputs, pool_proj)
        for name, inputs in HEADS.items():
            yield Layer(f"{name}/proj", 1, inputs, 128)
            yield Layer(f"{name}/fc", self.aux_side(image_size), 128, 1024, dense=True)
            yield Layer(f"{name}/classifier", 1, 1024, NUM_CLASSES, dense=True)
        yield Layer("classifier", 1, 1024, NUM_CLASSES, dense=True)


class Torchvision(Keras):
    """torchvision's `state_dict`, without its counters of batches."""

    kernel_5x5 = 3
    BLOCKS: ClassVar = {
        **{"conv2_reduce": "conv2", "conv2": "conv3", "classifier": "fc"},
        **{"aux_4a": "aux1", "aux_4d": "aux2"},
    }
    PARTS: ClassVar = {
        **{"1x1": ".branch1", "3x3_reduce": ".branch2.0", "3x3": ".branch2.1"},
        **{"5x5_reduce": ".branch3.0", "5x5": ".branch3.1", "pool_proj": ".branch4.1"},
        **{"proj": ".conv", "fc": ".fc1", "classifier": ".fc2", "": ""},
    }

    def aux_side(self, image_size: int) -> int:
        """Returns the side of a head's map, which is 4 for every image size."""
        return 4

    def names(self, layer: Layer) -> dict[str, str]:
        block, _, part = layer.name.partition("/")
        name = self.BLOCKS.get(block, block.replace("_", "")) + self.PARTS[part]
        if layer.dense:
            return {
                f"{layer.path}/kernel": f"{name}.weight",
                f"{layer.path}/bias": f"{name}.bias",
            }
        return {
            f"{layer.path}/kernel": f"{name}.conv.weight",
            f"params/{layer.name}/bn/scale": f"{name}.bn.weight",
            f"params/{layer.name}/bn/bias": f"{name}.bn.bias",
            f"batch_stats/{layer.name}/bn/mean": f"{name}.bn.running_mean",
            f"batch_stats/{layer.name}/bn/var": f"{name}.bn.running_var",
        }

    def kernel_shape(self, layer: Layer) -> tuple[int, ...]:
        """Returns a kernel's shape: outputs first; dense layers see a map as C, H, W."""
        if layer.dense:
            return layer.outputs, layer.inputs * layer.side**2
        return layer.outputs, layer.inputs, layer.side, layer.side

    def our_kernel(self, kernel: np.ndarray, layer: Layer) -> np.ndarray:
        """Returns a kernel `[H, W, in, out]`, or `[H * W * in, out]` of a dense layer."""
        kernel = kernel.reshape(layer.outputs, layer.inputs, layer.side, layer.side)
        kernel = kernel.transpose(2, 3, 1, 0)
        return kernel.reshape(-1, layer.outputs) if layer.dense else kernel

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Subtracts ImageNet's mean and divides by its deviation."""
        mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        return (pixels / 255 - mean) / deviation


class Caffe(Torchvision):
    """Caffe's layers with the endings of the ONNX model zoo."""

    kernel_5x5 = 5
    bias_range = (-10.0, 30.0)
    LAYERS: ClassVar = {
        **{"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce"},
        **{"conv2": "conv2/3x3", "classifier": "loss3/classifier"},
    }

    def aux_side(self, image_size: int) -> int:
        """Returns the side of a head's map: one stride rounds down, four pools round up."""
        side = (image_size + 2 * 3 - 7) // 2 + 1
        for window, stride in ((3, 2), (3, 2), (3, 2), (5, 3)):
            side = -(-(side - window) // stride) + 1
        return side

    def names(self, layer: Layer) -> dict[str, str]:
        name = self.LAYERS.get(layer.name, layer.name)
        name = name.replace("aux_4a", "loss1").replace("aux_4d", "loss2")
        name = name.replace("proj", "conv") if name.startswith("loss") else name
        return {f"{layer.path}/kernel": f"{name}_w_0", f"{layer.path}/bias": f"{name}_b_0"}

    def kernel_shape(self, layer: Layer) -> tuple[int, ...]:
        """Returns torchvision's shape and two axes, which the zoo's graph removes again."""
        shape = super().kernel_shape(layer)
        return (1, 1, *shape) if layer.dense else shape

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Reverses the channels and subtracts the mean."""
        return pixels[..., ::-1] - np.array([104, 117, 123])


ORIGINALS = {"seed": Keras(), "paper": Caffe(), "torchvision": Torchvision()}


def draw_weights(variant: str, image_size: int) -> Weights:
    """Draws weights by the original's names, each from its name alone.

    Their ranges let every layer affect the outputs: no value is zero or a default.
    """
    original = ORIGINALS[variant]
    return {
        name: _draw(name, path.split("/")[-1], layer, original)
        for layer in original.layers(image_size)
        for path, name in original.names(layer).items()
    }


def _draw(name: str, leaf: str, layer: Layer, original: Keras) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(name.encode()))  # It never changes.
    if leaf == "kernel":
        he = np.sqrt(2 / (layer.side**2 * layer.inputs))
        values = rng.normal(0, he, original.kernel_shape(layer))
    elif leaf == "mean":
        values = rng.normal(0, 0.2, layer.outputs)
    else:
        ranges = {"bias": original.bias_range, "scale": (0.5, 1.5), "var": (0.5, 2.0)}
        values = rng.uniform(*ranges[leaf], layer.outputs)
    return values.astype(np.float32)


def to_flax(variant: str, image_size: int, weights: Weights) -> dict[str, np.ndarray]:
    """Converts weights to our variables: `{"params/conv1/conv/kernel": ...}`."""
    original = ORIGINALS[variant]
    return {
        path: original.our_kernel(weights[name], layer)
        if path.endswith("/kernel")
        else weights[name]
        for layer in original.layers(image_size)
        for path, name in original.names(layer).items()
    }


def draw_images(variant: str, image_size: int) -> np.ndarray:
    """Draws float32 images `[B, H, W, 3]` in the range that the original was trained on.

    They have blocks of one color: white noise averages out and hardly affects LRN.
    """
    colours = np.random.RandomState(0).randint(0, 256, (BATCH_SIZE, 7, 7, 3))
    block = np.arange(image_size) * 7 // image_size
    pixels = colours[:, block][:, :, block].astype(np.float64)
    return ORIGINALS[variant].preprocess(pixels).astype(np.float32)
