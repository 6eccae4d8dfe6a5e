"""Caffe's bvlc_googlenet as an ONNX graph, with the weight names of the ONNX model zoo.

Unlike the zoo's own graph it rounds pools up, as Caffe does, and has both heads of
train_val.prototxt; dropout and softmax are left out.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from originals.weights import INCEPTIONS, NUM_CLASSES, Weights

LOSSES = {"inception_4a": "loss1", "inception_4d": "loss2"}


class _Graph:
    """A graph to which nodes are added in their order."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.nodes = []

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes) -> str:
        """Appends a node and returns the name of its output."""
        output = output or f"r{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def conv(self, x: str, name: str, stride: int = 1) -> str:
        padding = self.weights[f"{name}_w_0"].shape[-1] // 2
        x = self.add(
            "Conv",
            *(x, f"{name}_w_0", f"{name}_b_0"),
            strides=[stride] * 2,
            pads=[padding] * 4,
        )
        return self.add("Relu", x)

    def pool(self, x: str, stride: int) -> str:
        padding = {1: 1, 2: 0}[stride]
        return self.add(
            "MaxPool",
            x,
            kernel_shape=[3, 3],
            strides=[stride] * 2,
            pads=[padding] * 4,
            ceil_mode=1,
        )

    def lrn(self, x: str) -> str:
        return self.add("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def dense(self, x: str, name: str, output: str = "") -> str:
        kernel = self.add("Reshape", f"{name}_w_0", f"{name}_shape")
        inputs = (self.add("Flatten", x), kernel, f"{name}_b_0")
        return self.add("Gemm", *inputs, output=output, transB=1)

    def inception(self, x: str, name: str) -> str:
        branches = (
            self.conv(x, f"{name}/1x1"),
            self.conv(self.conv(x, f"{name}/3x3_reduce"), f"{name}/3x3"),
            self.conv(self.conv(x, f"{name}/5x5_reduce"), f"{name}/5x5"),
            self.conv(self.pool(x, stride=1), f"{name}/pool_proj"),
        )
        return self.add("Concat", *branches, axis=1)

    def head(self, x: str, loss: str) -> str:
        x = self.add("AveragePool", x, kernel_shape=[5, 5], strides=[3, 3], ceil_mode=1)
        x = self.add("Relu", self.dense(self.conv(x, f"{loss}/conv"), f"{loss}/fc"))
        return self.dense(x, f"{loss}/classifier", output=f"{loss}/classifier")

    def network(self, x: str) -> list[str]:
        """Adds all layers and returns the names of the logits, the main ones first."""
        x = self.lrn(self.pool(self.conv(x, "conv1/7x7_s2", stride=2), stride=2))
        x = self.lrn(self.conv(self.conv(x, "conv2/3x3_reduce"), "conv2/3x3"))
        x = self.pool(x, stride=2)
        heads = []
        for name in INCEPTIONS:
            if name in ("inception_4a", "inception_5a"):
                x = self.pool(x, stride=2)
            x = self.inception(x, name)
            if name in LOSSES:
                heads.append(self.head(x, LOSSES[name]))
        x = self.add("GlobalAveragePool", x)
        return [self.dense(x, "loss3/classifier", output="loss3/classifier"), *heads]


def create_model(weights: Weights, image_size: int) -> onnx.ModelProto:
    """Creates the network from `data_0` to the logits `loss3/classifier` and of both heads.

    Args:
      weights: By the zoo's names.
      image_size: Side of the images in pixels.
    """
    shapes = {
        name.replace("_w_0", "_shape"): np.array(kernel.shape[2:])
        for name, kernel in weights.items()
        if kernel.shape[:2] == (1, 1)
    }
    graph = _Graph(weights)
    logits = graph.network("data_0")

    def value(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    images = value("data_0", ("batch", 3, image_size, image_size))
    outputs = [value(name, ("batch", NUM_CLASSES)) for name in logits]
    initializers = [
        numpy_helper.from_array(array, name) for name, array in (weights | shapes).items()
    ]
    onnx_graph = helper.make_graph(
        graph.nodes, "bvlc_googlenet", [images], outputs, initializers
    )
    opset = helper.make_opsetid("", 13)
    return helper.make_model(onnx_graph, opset_imports=[opset], ir_version=8)


def run(weights: Weights, images: np.ndarray) -> list[np.ndarray]:
    """Computes the logits of all three classifiers for images `[B, H, W, 3]`."""
    model = create_model(weights, images.shape[1])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"data_0": images.transpose(0, 3, 1, 2)})
