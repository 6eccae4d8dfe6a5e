"""Trained weights that others publish, with their addresses, licenses and claims."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from googlenet_flax.importers.formats import read_original
from googlenet_flax.model.googlenet import GoogLeNet
from googlenet_flax.runtime.downloads import RemoteFile, fetch
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import user_cache_folder
from googlenet_flax.training.description import ModelDescription


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of trained weights, and what its publisher says of it."""

    file: RemoteFile
    page: str
    license: str
    citation: str
    claims: str  # Accuracy on the 50,000 validation images of ILSVRC 2012.
    heads: str  # Whether the auxiliary heads are trained.


# The published weights of each format of `importers.formats.FORMATS` that has some.
PUBLISHED: Mapping[str, Published] = {
    "torchvision": Published(
        RemoteFile(
            name="googlenet-1378be20.pth",
            url="https://download.pytorch.org/models/googlenet-1378be20.pth",
            sha256="1378be20a8e875cf1568b8a71654e704449655e34711a959a38b04fb34905cef",
        ),
        page="https://docs.pytorch.org/vision/stable/models/googlenet.html",
        license="none stated for the weights; BSD-3-Clause for the code of torchvision",
        citation="TorchVision maintainers and contributors, TorchVision: PyTorch's "
        "Computer Vision library, 2016, https://github.com/pytorch/vision",
        claims="69.778 % top-1, 89.530 % top-5",
        heads="in the file, but not trained",
    ),
    "caffe": Published(
        RemoteFile(
            name="bvlc_googlenet.caffemodel",
            url="http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel",
            sha256="6f7101e3a2183738a7125a0c5021ba82a1feb4228c5ca0924d991b6daf6f6fad",
            size_bytes=53_533_754,
        ),
        page="https://github.com/BVLC/caffe/tree/master/models/bvlc_googlenet",
        license="unrestricted",
        citation="Jia et al., Caffe: Convolutional Architecture for Fast Feature "
        "Embedding, 2014, https://arxiv.org/abs/1408.5093",
        claims="68.7 % top-1, 88.9 % top-5",
        heads="trained",
    ),
    "onnx": Published(
        RemoteFile(
            name="googlenet-7.onnx",
            url="",  # The model zoo has moved.
            sha256="5725ccfd90845735ce5897faf7843c3f9b13acda3c4f3bff82cb21c9337c9de8",
            size_bytes=28_020_232,
        ),
        page="https://huggingface.co/onnxmodelzoo",
        license="BSD-3-Clause",
        citation="ONNX Model Zoo, https://github.com/onnx/models",
        claims="67.78 % top-1, 88.34 % top-5 (for googlenet-12 of the same zoo)",
        heads="not in the file, and therefore random",
    ),
}


class Pretrained(NamedTuple):
    """A network with trained weights."""

    model: GoogLeNet
    variables: dict[str, Any]  # Parameters and statistics, float32 JAX arrays.
    description: ModelDescription  # Class names, and the preprocessing of images.


def load_pretrained(name: str, *, image_size: int = 224) -> Pretrained:
    """Loads published weights, from the user's cache or else from the web.

    The description prepares images: `description.preprocess` maps uint8 RGB
    `[B, h, w, 3]` to the input of the network, float32 `[B, H, W, 3]`. `PUBLISHED` says
    which weights have trained heads, and under which license they may be used. The
    variables are placed on JAX's default device.

    Args:
      name: `"torchvision"`, `"caffe"` or `"onnx"`. The ONNX file has no download address:
        put it into the cache, by default `~/.cache/googlenet_flax/weights`.
      image_size: Height and width of the input in pixels; Caffe's network needs 224.

    Raises:
      UserError: There are no weights of this name, they cannot be downloaded, they do not
        fit the image size, or the package that reads them is missing.
    """
    imported = read_original(name, fetch_published(name), image_size=image_size)
    description = imported.description
    variables = jax.device_put(imported.variables)  # Otherwise each call would copy them.
    return Pretrained(description.create_model(), variables, description)


def fetch_published(name: str) -> pathlib.Path:
    """Returns the path of published weights in the user's cache; downloads them if needed.

    Raises:
      UserError: Nothing is published under this name, or it cannot be downloaded.
    """
    if name not in PUBLISHED:
        raise UserError(
            f"no trained weights are published for {name!r}, only for "
            f"{', '.join(PUBLISHED)}: import a file with `googlenet import-weights "
            "--from=FORMAT --weights=FILE`"
        )
    published = PUBLISHED[name]
    try:
        folder = user_cache_folder("weights")
    except RuntimeError as error:
        raise UserError(f"{error} Set XDG_CACHE_HOME to a folder for downloads") from error
    try:
        return fetch(published.file, folder)
    except UserError as error:
        raise UserError(
            f"{error}, or name it with `googlenet import-weights --weights=FILE`; see "
            f"{published.page}"
        ) from error


def describe_published(sha256: str) -> str:
    """Formats what the publisher says of a file, or returns "" for an unknown digest."""
    for published in PUBLISHED.values():
        if published.file.sha256 == sha256:
            return (
                f"{published.file.name} of {published.page}\n"
                f"license: {published.license}\n"
                f"cite as: {published.citation}\n"
                f"claimed on ImageNet, not measured here: {published.claims}\n"
                f"auxiliary heads: {published.heads}\n"
            )
    return ""
