"""A small network in the place of that which a description names."""

import contextlib
from collections.abc import Iterator

import pytest
from helpers.networks import small_googlenet

from googlenet_flax.model.googlenet import GoogLeNet
from googlenet_flax.training.description import ModelDescription


def create_small(description: ModelDescription, devices=(), **fields) -> GoogLeNet:
    """Creates three narrow blocks with the variant and the classes of the description."""
    return small_googlenet(
        description.variant,
        num_classes=len(description.class_names),
        dtype=description.dtype,
        width_multiplier=description.width_multiplier,
        input_channels=description.preprocess.input_channels,
        **fields,
    )


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """Lets every description create a network that compiles in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelDescription, "create_model", create_small)
        yield
