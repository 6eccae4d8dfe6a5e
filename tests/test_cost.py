import functools

import pytest
from helpers.networks import small_googlenet

from googlenet_flax.analysis import cost
from googlenet_flax.analysis.cost import image_cost, layer_shapes, multiply_adds
from googlenet_flax.model.googlenet import create_model


def googlenet(variant="seed", **fields):
    return create_model(variant, **{"num_classes": 1000, **fields})


@functools.cache
def layers_of(variant):
    return multiply_adds(*layer_shapes(googlenet(variant), 224))


def test_batch_norm_is_not_counted():
    seed, bn = (layer_shapes(small_googlenet(variant), 224) for variant in ("seed", "bn"))
    assert multiply_adds(*bn) == multiply_adds(*seed)


def test_operations_are_those_that_torchvision_states():
    layers = layers_of("torchvision")
    main = sum(n for name, n in layers.items() if not name.startswith("aux"))
    assert main / 1e9 == pytest.approx(1.50, abs=0.005)  # From torchvision's docs.


def test_flops_of_forward_and_of_training(monkeypatch):
    monkeypatch.setattr(cost, "multiply_adds", lambda *_: layers_of("seed"))
    monkeypatch.setattr(cost, "layer_shapes", lambda *_: ())  # Tracing takes a second.
    whole = image_cost(googlenet(), 224)
    assert whole.forward_flops / 1e9 == pytest.approx(3.165, abs=0.0005)
    assert whole.training_flops / 1e9 == pytest.approx(9.31, abs=0.005)
    # Training only the last layers needs one forward pass and their gradients.
    head = image_cost(googlenet(), 224, last_layers_only=True)
    classifiers = 3 * 1024 * 1000
    assert head.training_flops == 2 * (sum(layers_of("seed").values()) + classifiers)
    # The lower bound of inference is 20.6 MB in bfloat16; this network is in float32.
    assert head.training_bytes / 1e6 == pytest.approx(2 * 20.6, abs=0.2)


# Lower bounds for an image follow from the map sizes of Table 1, with merged 1x1
# convolutions, five passes of LRN, and five of batch norm over each convolution's output.
@pytest.mark.parametrize(
    ("variant", "bfloat16", "float32"),
    [("seed", 62.4, 121.9), ("paper", 70.4, 137.9), ("bn", 62.4 + 32.3, 121.9 + 64.6)],
)
def test_bytes_of_training(monkeypatch, variant, bfloat16, float32):
    monkeypatch.setattr(cost, "multiply_adds", lambda *_: {"conv1": 1})
    monkeypatch.setattr(cost, "layer_shapes", lambda *_: ())
    for dtype, megabytes in [("bfloat16", bfloat16), ("float32", float32)]:
        whole = image_cost(googlenet(variant, dtype=dtype), 224)
        assert whole.training_bytes / 1e6 == pytest.approx(megabytes, abs=0.1)
        half = image_cost(googlenet(variant, dtype=dtype, width_multiplier=0.5), 112)
        assert whole.training_bytes == 8 * half.training_bytes
