"""torchvision's `googlenet` in evaluation, with its names and its heads switched on."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from originals.weights import HEADS, INCEPTIONS, NUM_CLASSES, Weights


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, outputs, H', W']`."""
        return functional.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches; the third has 3x3 where the paper has 5x5."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = widths
        self.branch1 = ConvBlock(inputs, conv_1x1, 1)
        self.branch2 = nn.Sequential(
            ConvBlock(inputs, reduce_3x3, 1), ConvBlock(reduce_3x3, conv_3x3, 3)
        )
        self.branch3 = nn.Sequential(
            ConvBlock(inputs, reduce_5x5, 1), ConvBlock(reduce_5x5, conv_5x5, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), ConvBlock(inputs, pool_proj, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H, W]`."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], dim=1)


class Head(nn.Module):
    """An auxiliary classifier."""

    def __init__(self, inputs: int, num_classes: int):
        super().__init__()
        self.conv = ConvBlock(inputs, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.conv(functional.adaptive_avg_pool2d(x, 4))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class GoogLeNet(nn.Module):
    """torchvision 0.28's network with `aux_logits=True`."""

    def __init__(self, num_classes: int = NUM_CLASSES):
        super().__init__()
        self.conv1 = ConvBlock(3, 64, 7, stride=2)
        self.conv2 = ConvBlock(64, 64, 1)
        self.conv3 = ConvBlock(64, 192, 3)
        for name, (inputs, *widths) in INCEPTIONS.items():
            self.add_module(name.replace("_", ""), Inception(inputs, widths))
        self.aux1 = Head(HEADS["aux_4a"], num_classes)
        self.aux2 = Head(HEADS["aux_4d"], num_classes)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps `[B, 3, H, W]` to the logits of the main classifier and both heads."""
        x = _pool(self.conv1(images), 3)
        x = _pool(self.conv3(self.conv2(x)), 3)
        x = _pool(self.inception3b(self.inception3a(x)), 3)
        x_4a = self.inception4a(x)
        x_4d = self.inception4d(self.inception4c(self.inception4b(x_4a)))
        x = _pool(self.inception4e(x_4d), 2)
        x = self.inception5b(self.inception5a(x))
        return self.fc(x.mean((2, 3))), self.aux1(x_4a), self.aux2(x_4d)


def _pool(x: torch.Tensor, window: int) -> torch.Tensor:
    return functional.max_pool2d(x, window, stride=2, ceil_mode=True)


def create_model(weights: Weights) -> GoogLeNet:
    """Creates the network with the given weights, in evaluation mode."""
    model = GoogLeNet().eval()
    state = model.state_dict()
    counters = {key: state[key] for key in state if key.endswith("num_batches_tracked")}
    model.load_state_dict({key: torch.tensor(weights[key]) for key in weights} | counters)
    return model


def run(weights: Weights, images: np.ndarray) -> list[np.ndarray]:
    """Computes the logits of all three classifiers for images `[B, H, W, 3]`."""
    with torch.inference_mode():
        outputs = create_model(weights)(torch.tensor(images).permute(0, 3, 1, 2))
    return [output.numpy() for output in outputs]
