"""The network in torch: channels_last, autocast and, with --compile, torch.compile."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable

import peer
import torch
from torch import nn
from torch.nn import functional


class Conv(nn.Conv2d):
    """Convolution with padding that keeps the size, then ReLU."""

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__(inputs, outputs, side, padding=side // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, outputs, H, W]`."""
        return functional.relu(super().forward(x))


def _halve(x: torch.Tensor) -> torch.Tensor:
    """Applies a 3x3 max pool with stride 2 and TensorFlow's padding.

    For even sizes that pads only at the end.
    """
    return functional.max_pool2d(x, 3, 2, padding=x.shape[-1] % 2, ceil_mode=True)


class Inception(nn.ModuleDict):
    """Four branches, concatenated along the channels."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        conv_1x1, reduce_3x3, conv_3x3, reduce_5x5, conv_5x5, pool_proj = widths
        super().__init__(
            {
                "1x1": Conv(inputs, conv_1x1, 1),
                "3x3_reduce": Conv(inputs, reduce_3x3, 1),
                "3x3": Conv(reduce_3x3, conv_3x3, 3),
                "5x5_reduce": Conv(inputs, reduce_5x5, 1),
                "5x5": Conv(reduce_5x5, conv_5x5, 5),
                "pool_proj": Conv(inputs, pool_proj, 1),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H, W]`."""
        branches = [
            self["1x1"](x),
            self["3x3"](self["3x3_reduce"](x)),
            self["5x5"](self["5x5_reduce"](x)),
            self["pool_proj"](functional.max_pool2d(x, 3, 1, padding=1)),
        ]
        return torch.cat(branches, dim=1)


class Head(nn.ModuleDict):
    """An auxiliary classifier."""

    def __init__(self, inputs: int, image_size: int):
        super().__init__(
            {
                "proj": Conv(inputs, 128, 1),
                "fc": nn.Linear(128 * peer.aux_side(image_size) ** 2, 1024),
                "classifier": nn.Linear(1024, peer.NUM_CLASSES),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self["proj"](functional.avg_pool2d(x, 5, 3))
        x = x.permute(0, 2, 3, 1).flatten(1)  # No copy: channels_last has this order.
        x = functional.relu(self["fc"](x))
        return self["classifier"](functional.dropout(x, peer.AUX_DROPOUT, self.training))


class GoogLeNet(nn.ModuleDict):
    """The network; in evaluation it leaves out the heads."""

    def __init__(self, image_size: int):
        super().__init__({"conv1": nn.Conv2d(3, 64, 7, stride=2)})
        self["conv2_reduce"] = Conv(64, 64, 1)
        self["conv2"] = Conv(64, 192, 3)
        channels = 192
        for name, widths in peer.INCEPTIONS.items():
            self[name] = Inception(channels, widths)
            channels = sum(widths) - widths[1] - widths[3]  # Without the reductions.
            if name in peer.HEAD_AFTER:
                self[peer.HEAD_AFTER[name]] = Head(channels, image_size)
        self["classifier"] = nn.Linear(channels, peer.NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps `[B, 3, H, W]` to the logits of the main classifier and the heads."""
        before = 2 + images.shape[-1] % 2  # TensorFlow's padding.
        x = functional.pad(images, (before, 3, before, 3))
        x = _halve(functional.relu(self["conv1"](x)))
        x = _halve(self["conv2"](self["conv2_reduce"](x)))
        heads = []
        for name in peer.INCEPTIONS:
            if name in peer.POOL_BEFORE:
                x = _halve(x)
            x = self[name](x)
            if self.training and name in peer.HEAD_AFTER:
                heads.append(self[peer.HEAD_AFTER[name]](x))
        x = functional.dropout(x.mean((2, 3)), peer.DROPOUT, self.training)
        return [self["classifier"](x), *heads]


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """Creates a context in which torch computes in that dtype if it is safe."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


def make_train_step(model: nn.Module, *, dtype: str, compiled: bool) -> Callable:
    """Creates a function `(images, labels) -> loss` that updates the model."""
    optimizer = torch.optim.SGD(
        model.parameters(), peer.LEARNING_RATE, momentum=peer.MOMENTUM, fused=True
    )

    def loss_fn(images, labels):
        with autocast(images.device, dtype):
            outputs = model(images)
            losses = [functional.cross_entropy(logits, labels) for logits in outputs]
        main, *heads = losses
        return main + peer.AUX_WEIGHT * sum(heads)

    if compiled:
        loss_fn = torch.compile(loss_fn)

    def train_step(images, labels):
        model.train()
        optimizer.zero_grad()
        loss = loss_fn(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train_step


def make_eval_step(model: nn.Module, *, dtype: str, compiled: bool) -> Callable:
    """Creates a function from images to the logits of the main classifier."""

    def forward(images):
        with autocast(images.device, dtype):
            return model(images)[0]

    if compiled:
        forward = torch.compile(forward)

    @torch.inference_mode()
    def eval_step(images):
        model.eval()
        return forward(images)

    return eval_step


def main() -> None:
    """Measures the network and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--gpu", action="store_true", help="fail if there is no GPU")
    work, flags = peer.parse_flags(parser)
    on_gpu = torch.cuda.is_available()
    if flags.gpu and not on_gpu:
        sys.exit("torch finds no GPU")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # As XLA does.
    torch.backends.cudnn.benchmark = True
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32, as in JAX.
    device = torch.device("cuda" if on_gpu else "cpu")
    images, labels = (torch.from_numpy(array) for array in peer.draw_batch(work))
    images = images.permute(0, 3, 1, 2).to(device)  # The layout stays channels_last.
    labels = labels.long().to(device)
    model = GoogLeNet(work.image_size).to(device, memory_format=torch.channels_last)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    peer.check_parameters(num_parameters, work.image_size)
    options = {"dtype": work.dtype, "compiled": flags.compile}
    train_step = make_train_step(model, **options)
    eval_step = make_eval_step(model, **options)

    def facts():
        peak = {"peak_memory_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}
        return {"version": f"torch {torch.__version__}", **peak}

    peer.measure_and_print(
        work,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        train_step=lambda: train_step(images, labels),
        eval_step=lambda: eval_step(images),
        wait=lambda _: torch.cuda.synchronize() if on_gpu else None,
        facts=facts,
    )


if __name__ == "__main__":
    main()
