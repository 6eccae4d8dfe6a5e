"""Export of the network as an ONNX graph.

Tensors inside the graph have the layout `[B, C, H, W]`. Nodes and weights have the paths of
our parameter tree, such as `inception_3a/1x1/conv/kernel`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from googlenet_flax.exporters.network import IMAGES, Network, as_text
from googlenet_flax.model import ops
from googlenet_flax.model.convolution import Padding2D
from googlenet_flax.model.googlenet import AUX_TAPS, BATCH_NORM_EPSILON, Variant
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runtime.errors import UserError, optional_package

OPSET = 17  # This version and `IR_VERSION` are from 2022, so that old runtimes read them.
IR_VERSION = 8
MAX_BYTES = 2**31  # Largest protobuf message.
BATCH = "batch"  # Name of the dimension of variable size.


class Map(NamedTuple):
    """A tensor float32 `[B, C, side, side]`."""

    name: str
    side: int  # Height and width in pixels.


class Graph:
    """Nodes and weights in the order of the computation."""

    def __init__(self, onnx: Any, leaves: Mapping[str, np.ndarray]):
        self._onnx = onnx  # The package, which is optional.
        self.leaves = leaves  # Leaves of the network by path.
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(
        self, op: str, name: str, *inputs: str, output: str = "", **attributes: Any
    ) -> str:
        """Adds a node and returns the name of its output, by default that of the node."""
        output = output or name
        node = self._onnx.helper.make_node(op, inputs, [output], name=name, **attributes)
        self.nodes.append(node)
        return output

    def weight(self, name: str, values: np.ndarray) -> str:
        """Adds an array that nodes take as input, and returns its name."""
        array = np.ascontiguousarray(values)
        self.weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def leaf(self, name: str) -> str:
        """Adds a leaf of the network in its own layout, and returns its name."""
        return self.weight(name, self.leaves[name])

    def conv_block(
        self, x: Map, path: str, *, stride: int = 1, padding: str | Padding2D = "SAME"
    ) -> Map:
        """Adds the nodes of `layers.ConvBlock`."""
        kernel = self.leaves[f"{path}/conv/kernel"]
        window = kernel.shape[0]
        if isinstance(padding, str):
            (pads,) = jax.lax.padtype_to_pads((x.side,), (window,), (stride,), padding)
        else:
            pads, _ = padding
        inputs = [self.weight(f"{path}/conv/kernel", kernel.transpose(3, 2, 0, 1))]  # OIHW
        has_norm = f"{path}/bn/scale" in self.leaves
        if not has_norm:
            inputs.append(self.leaf(f"{path}/conv/bias"))
        x = self._slide(
            "Conv", f"{path}/conv", x, *inputs, window=window, stride=stride, pads=pads
        )
        y = x.name
        if has_norm:
            norm = [self.leaf(f"{path}/bn/{n}") for n in ("scale", "bias", "mean", "var")]
            y = self.add(
                "BatchNormalization", f"{path}/bn", y, *norm, epsilon=BATCH_NORM_EPSILON
            )
        return Map(self.add("Relu", path, y), x.side)

    def max_pool(
        self, x: Map, name: str, *, window: int, stride: int, padding: ops.PoolPadding
    ) -> Map:
        """Adds the node of `ops.max_pool`; ONNX pads with values below all others."""
        pads = ops.pool_padding(x.side, window, stride, padding)
        return self._slide("MaxPool", name, x, window=window, stride=stride, pads=pads)

    def _slide(
        self,
        op: str,
        name: str,
        x: Map,
        *inputs: str,
        window: int,
        stride: int,
        pads: tuple[int, int],  # Before and after each axis.
    ) -> Map:
        y = self.add(
            op,
            name,
            x.name,
            *inputs,
            kernel_shape=[window] * 2,
            strides=[stride] * 2,
            pads=[pads[0]] * 2 + [pads[1]] * 2,
        )
        return Map(y, (x.side + sum(pads) - window) // stride + 1)

    def average_pool(self, x: Map, name: str, windows: ops.Windows) -> Map:
        """Adds `ops.average_windows` as matrix products.

        The windows differ in width, which no pool of ONNX supports.
        """
        matrix = np.zeros((len(windows), x.side), np.float32)
        for row, (start, stop) in zip(matrix, windows, strict=True):
            row[start:stop] = 1 / (stop - start)
        rows = self.weight(f"{name}/rows", matrix)
        columns = self.weight(f"{name}/columns", matrix.T)
        y = self.add("MatMul", f"{name}/over_rows", rows, x.name)
        return Map(self.add("MatMul", name, y, columns), len(windows))

    def dense(self, x: str, path: str, output: str = "") -> str:
        """Adds the node of `flax.linen.Dense`, from `[B, in]` to `[B, out]`."""
        kernel, bias = self.leaf(f"{path}/kernel"), self.leaf(f"{path}/bias")
        return self.add("Gemm", path, x, kernel, bias, output=output)


def _build(graph: Graph, network: Network) -> list[str]:
    """Adds all nodes; returns the names of the outputs."""
    variant = network.model.variant
    x = _stem(graph, _normalize(graph, network.preprocess), variant)
    pool = partial(graph.max_pool, stride=2, padding=variant.pool_padding)
    pool_names = {"inception_4a": "pool3", "inception_5a": "pool4"}
    outputs = ["logits"]
    for name in network.model.inceptions:
        if name in variant.pool_windows:
            x = pool(x, pool_names[name], window=variant.pool_windows[name])
        x = _inception(graph, x, name)
        if network.model.aux_heads and name in AUX_TAPS:
            head = AUX_TAPS[name]
            outputs.append(_aux_classifier(graph, x, head, variant.aux_windows(x.side)))
    pooled = graph.add("GlobalAveragePool", "pool5", x.name)
    flat = graph.add("Flatten", "pool5/flat", pooled)
    graph.dense(flat, "classifier", output="logits")
    return outputs


def _normalize(graph: Graph, preprocess: Preprocess) -> Map:
    """Adds `Preprocess.normalize`, and moves the channels to the front."""
    x = graph.add("Transpose", "preprocess/channels_first", IMAGES, perm=[0, 3, 1, 2])
    if preprocess.channel_order == "BGR":
        order = graph.weight("preprocess/channel_order", np.array([2, 1, 0]))
        x = graph.add("Gather", "preprocess/reordered", x, order, axis=1)
    for op, name, field in (
        ("Mul", "preprocess/scaled", "input_scale"),
        ("Sub", "preprocess/centered", "input_mean"),
        ("Div", "preprocess", "input_std"),
    ):
        values = np.asarray(getattr(preprocess, field), np.float32).reshape(-1, 1, 1)
        x = graph.add(op, name, x, graph.weight(f"preprocess/{field}", values))
    return Map(x, preprocess.image_size)


def _stem(graph: Graph, x: Map, variant: Variant) -> Map:
    """Adds the rows of Table 1 before the first block."""

    def norm(x: Map, name: str) -> Map:
        if not variant.local_response_norm:
            return x
        # ONNX divides alpha by the size, as our LRN does.
        fields = {"alpha": ops.LRN_ALPHA, "beta": ops.LRN_BETA, "bias": ops.LRN_K}
        return Map(graph.add("LRN", name, x.name, size=ops.LRN_SIZE, **fields), x.side)

    pool = partial(graph.max_pool, window=3, stride=2, padding=variant.pool_padding)
    x = graph.conv_block(x, "conv1", stride=2, padding=variant.conv1_padding)
    x = norm(pool(x, "pool1"), "norm1")
    x = graph.conv_block(x, "conv2_reduce")
    x = graph.conv_block(x, "conv2")
    return pool(norm(x, "norm2"), "pool2")


def _inception(graph: Graph, x: Map, path: str) -> Map:
    """Adds the nodes of `layers.Inception`."""
    reduced_3x3 = graph.conv_block(x, f"{path}/3x3_reduce")
    reduced_5x5 = graph.conv_block(x, f"{path}/5x5_reduce")
    pooled = graph.max_pool(x, f"{path}/pool", window=3, stride=1, padding="SAME")
    branches = [
        graph.conv_block(x, f"{path}/1x1"),
        graph.conv_block(reduced_3x3, f"{path}/3x3"),
        graph.conv_block(reduced_5x5, f"{path}/5x5"),
        graph.conv_block(pooled, f"{path}/pool_proj"),
    ]
    names = (branch.name for branch in branches)
    return Map(graph.add("Concat", path, *names, axis=1), x.side)


def _aux_classifier(graph: Graph, x: Map, path: str, windows: ops.Windows) -> str:
    """Adds the nodes of `layers.AuxClassifier`, whose output has the name of the head."""
    x = graph.conv_block(graph.average_pool(x, f"{path}/pool", windows), f"{path}/proj")
    channels_last = graph.add("Transpose", f"{path}/hwc", x.name, perm=[0, 2, 3, 1])
    flat = graph.add("Flatten", f"{path}/flat", channels_last)
    hidden = graph.add("Relu", f"{path}/relu", graph.dense(flat, f"{path}/fc"))
    return graph.dense(hidden, f"{path}/classifier", output=path)


def write(network: Network, metadata: Mapping[str, Any]) -> bytes:
    """Serializes the network as an ONNX file.

    The input is `images`, float32 `[batch, S, S, C]`, 0 to 255. The outputs are `logits`
    and, if the model has heads, `aux_4a` and `aux_4d`, each float32 `[batch, num_classes]`.

    Raises:
      UserError: The package onnx is missing, or the network is too large for a file.
    """
    with optional_package("onnx", "--format=onnx", "export"):
        import onnx
    leaves = network.leaves()
    num_bytes = sum(leaf.nbytes for leaf in leaves.values())
    if num_bytes >= MAX_BYTES:
        raise UserError(
            f"the network has {num_bytes / 2**30:.1f} GiB of weights but an ONNX file has "
            "less than 2 GiB: export it with --format=safetensors or stablehlo"
        )
    graph = Graph(onnx, leaves)
    outputs = _build(graph, network)
    size, num_classes = network.preprocess.image_size, network.model.num_classes
    channels = network.preprocess.input_channels
    tensor = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "googlenet",
            [tensor(IMAGES, shape=[BATCH, size, size, channels])],
            [tensor(name, shape=[BATCH, num_classes]) for name in outputs],
            graph.weights,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(proto, as_text(metadata))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def run(data: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the outputs of an ONNX file, by name, with onnxruntime.

    The images are float32 `[B, S, S, C]`, 0 to 255, and the logits `[B, num_classes]`.

    Raises:
      ImportError: The package onnxruntime is missing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Logs errors only.
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs: Any = session.run(names, {IMAGES: images})
    return dict(zip(names, outputs, strict=True))
