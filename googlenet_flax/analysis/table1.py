"""Table 1 of the paper for any network, with exact counts beside the printed ones.

The paper is Szegedy et al. 2015, arXiv 1409.4842. Some of its figures are misprints; a mark
shows where the exact counts give something else.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from googlenet_flax.analysis.cost import multiply_adds
from googlenet_flax.analysis.endpoints import ENDPOINTS, activations
from googlenet_flax.model.googlenet import AUX_TAPS, INCEPTIONS, GoogLeNet


class Printed(NamedTuple):
    """Figures that the paper prints for one row."""

    params: float  # Number of parameters in K, which is 1024 in the paper.
    ops: float  # Multiply-adds in millions.


# Both columns of the paper, which counts no biases.
PAPER: Mapping[str, Printed] = {
    "conv1": Printed(2.7, 34),
    "conv2": Printed(112, 360),
    "inception_3a": Printed(159, 128),
    "inception_3b": Printed(380, 304),
    "inception_4a": Printed(364, 73),
    "inception_4b": Printed(437, 88),
    "inception_4c": Printed(463, 100),
    "inception_4d": Printed(580, 119),
    "inception_4e": Printed(840, 170),
    "inception_5a": Printed(1072, 54),
    "inception_5b": Printed(1388, 71),
    "classifier": Printed(1000, 1),
}
PAPER_IMAGE_SIZE, PAPER_CLASSES = 224, 1000

HEADER = (
    *("type", "patch/stride", "output size", "depth"),
    *("#1x1", "#3x3 reduce", "#3x3", "#5x5 reduce", "#5x5", "pool proj"),
    *("params", "paper", "ops", "paper"),
)
BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
NUM_WIDTHS = len(BRANCHES)
ALIGNMENTS = "<<" + ">" * (len(HEADER) - 2)
HEADS = tuple(AUX_TAPS.values())
MARK = "*"


class Row(NamedTuple):
    """A line of the table; an empty cell is an empty string or None."""

    name: str  # Name of the part of the network; "" for a part without weights.
    type: str
    patch: str = ""
    output: tuple[int, ...] = ()
    depth: int | None = None
    widths: tuple[int | None, ...] = (None,) * NUM_WIDTHS
    params: int = 0
    weights: int = 0  # Parameters without biases and norms, as the paper counts them.
    ops: int = 0  # Multiply-adds of one image.

    @property
    def printed(self) -> Printed | None:
        """Figures of the paper for this row, if it prints any."""
        return PAPER.get(self.name)

    def params_differ(self) -> bool:
        """Tells if neither count, with or without biases, rounds to the printed one."""
        low, high = self.weights / 1024, self.params / 1024
        return self.printed is not None and not _between(low, self.printed.params, high)

    def ops_differ(self) -> bool:
        """Tells if the count does not round to the printed one."""
        ops = self.ops / 1e6
        return self.printed is not None and not _between(ops, self.printed.ops, ops)


def _between(low: float, value: float, high: float) -> bool:
    return math.floor(low) <= value <= math.ceil(high)


class _Network(NamedTuple):
    """Shapes and counts of a network, from which the rows are made."""

    params: Mapping[str, Any]  # Shapes of the parameters.
    outputs: Mapping[str, tuple[int, ...]]  # [H, W, C] of one image, by endpoint.
    ops: Mapping[str, int]  # Multiply-adds by layer.

    def layer(self, name: str, type_: str, *parts: str, **cells: Any) -> Row:
        """Returns the row of a part of the network; its counts include `parts`."""
        parts = (name, *parts)
        leaves = jax.tree_util.tree_leaves_with_path([self.params[part] for part in parts])
        sizes = [(path[-1].key, math.prod(leaf.shape)) for path, leaf in leaves]
        return Row(
            name,
            type_,
            output=self.outputs[name],
            params=sum(size for _, size in sizes),
            weights=sum(size for leaf, size in sizes if leaf == "kernel"),
            ops=sum(n for path, n in self.ops.items() if path.partition("/")[0] in parts),
            **cells,
        )

    def inception(self, name: str) -> Row:
        """Returns the row of an inception block."""
        branches = [self.params[name][branch]["conv"]["kernel"] for branch in BRANCHES]
        label = name.replace("inception_", "inception (") + ")"
        return self.layer(
            name, label, depth=2, widths=tuple(kernel.shape[-1] for kernel in branches)
        )

    def pool(self, window: int, before: str, after: str) -> Row:
        """Returns the row of the pool between two parts of the network."""
        output = (*self.outputs[after][:2], self.outputs[before][-1])
        return Row("", "max pool", f"{window}x{window}/2", output, 0)


def table_1(model: GoogLeNet, image_size: int) -> list[Row]:
    """Computes the rows of Table 1 for a network, then those of its auxiliary classifiers.

    Args:
      model: A network of any variant, width and number of classes.
      image_size: Side of the input in pixels.
    """
    params, outputs = _shapes(model, image_size)
    network = _Network(params, outputs, multiply_adds(model, image_size))
    widths = (None, outputs["conv2_reduce"][-1], outputs["conv2"][-1], None, None, None)
    conv2 = {"patch": "3x3/1", "depth": 2, "widths": widths}
    rows = [
        network.layer("conv1", "convolution", patch="7x7/2", depth=1),
        network.pool(3, "conv1", "conv2_reduce"),
        network.layer("conv2", "convolution", "conv2_reduce", **conv2),
        network.pool(3, "conv2", "inception_3a"),
    ]
    pools = {"inception_4a": 3, "inception_5a": model.variant.pool_5a_window}
    for before, name in itertools.pairwise(("conv2", *INCEPTIONS)):
        if name in pools:
            rows.append(network.pool(pools[name], before, name))
        rows.append(network.inception(name))
    side, _, depth = outputs["inception_5b"]
    dropout = f"dropout ({model.variant.dropout_rate:.0%})"
    rows += [
        Row("", "avg pool", f"{side}x{side}/1", (1, 1, depth), 0),
        Row("", dropout, output=(1, 1, depth), depth=0),
        network.layer("classifier", "linear", depth=1),
        Row("", "softmax", output=outputs["classifier"], depth=0),
    ]
    heads = HEADS if model.aux_heads else ()
    return rows + [network.layer(name, name, depth=3) for name in heads]


def format_table_1(model: GoogLeNet, image_size: int) -> str:
    """Formats the table as text, with sums and an explanation of its marks."""
    rows = table_1(model, image_size)
    main = [row for row in rows if row.name not in HEADS]
    heads = [row for row in rows if row.name in HEADS]
    paper = [row.printed for row in main if row.printed is not None]
    sums = _sums("sum", main, paper), _sums("with heads", rows, ())
    blocks = [HEADER], [*map(_cells, main)], [sums[0], *map(_cells, heads), sums[1]]
    cells = itertools.chain(*blocks)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = "  ".join(map("{{:{}{}}}".format, ALIGNMENTS, widths))
    text = [[line.format(*cells).rstrip() for cells in block] for block in blocks]
    rule = "-" * max(map(len, itertools.chain(*text)))
    table = f"\n{rule}\n".join("\n".join(lines) for lines in text)
    notes = "\n".join(_notes(model, image_size))
    return f"{table}\n\n{notes}"


def _notes(model: GoogLeNet, image_size: int) -> Iterator[str]:
    yield (
        f"params are exact, biases and norms included; ops are multiply-adds of one image. "
        f"{MARK} the exact count does not round to the paper's (its K is 1024, without "
        "biases)."
    )
    classes = model.num_classes
    own = [
        text
        for differs, text in [
            (image_size != PAPER_IMAGE_SIZE, f"{image_size} px"),
            (classes != PAPER_CLASSES, f"{classes} classes"),
            (model.width_multiplier != 1, f"widths times {model.width_multiplier}"),
            (model.variant.kernel_5x5 != 5, "3x3 in place of 5x5"),
        ]
        if differs
    ]
    if own:
        yield f"This network has {', '.join(own)}; the paper's has 224 px and 1000 classes."


def _cells(row: Row) -> tuple[str, ...]:
    params, ops = (f"{row.params:,}", f"{row.ops / 1e6:,.1f}M") if row.params else ("", "")
    printed = ("", "")
    if row.printed is not None:
        printed = (
            f"{row.printed.params:g}K{MARK if row.params_differ() else ' '}",
            f"{row.printed.ops:g}M{MARK if row.ops_differ() else ' '}",
        )
    numbers = (row.depth, *row.widths)
    return (
        row.type,
        row.patch,
        "x".join(map(str, row.output)),
        *("" if number is None else str(number) for number in numbers),
        *(params, printed[0], ops, printed[1]),
    )


def _sums(label: str, rows: Sequence[Row], printed: Sequence[Printed]) -> tuple[str, ...]:
    empty = ("",) * (2 + 1 + NUM_WIDTHS)
    return (
        *(label, *empty),
        f"{sum(row.params for row in rows):,}",
        f"{sum(p.params for p in printed):,.0f}K " if printed else "",
        f"{sum(row.ops for row in rows) / 1e6:,.1f}M",
        f"{sum(p.ops for p in printed):,.0f}M " if printed else "",
    )


def _shapes(model: GoogLeNet, size: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Computes the shapes of the parameters, and of each endpoint for one image."""
    names = [name for name in ENDPOINTS if model.aux_heads or not name.startswith("aux")]

    def run() -> Any:
        images = jnp.zeros((1, size, size, 3))
        variables = model.init(jax.random.key(0), images, train=False)
        return variables["params"], activations(model, variables, images, names)

    params, outputs = jax.eval_shape(run)
    shapes = {name: output.shape[1:] for name, output in outputs.items()}
    flat = {name: (1, 1, *shape) for name, shape in shapes.items() if len(shape) == 1}
    return params, {**shapes, **flat}
