"""The network printed as the paper prints it: its Table 1, our counts beside the printed.

Szegedy et al. 2015, arXiv 1409.4842. The paper's figures have misprints; a mark tells where
the arithmetic of the table gives something else.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from googlenet_flax.analysis.cost import multiply_adds
from googlenet_flax.analysis.endpoints import ENDPOINTS, activations
from googlenet_flax.model.googlenet import AUX_TAPS, INCEPTIONS, GoogLeNet


class Printed(NamedTuple):
    """Two columns of the paper."""

    params: float  # In K, which is 1024 there.
    ops: float  # In M, a million multiply-adds.


# The whole of both columns; the paper counts no biases.
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
NUM_WIDTHS = 6  # Columns from #1x1 to pool proj.
MARK = "*"


class Row(NamedTuple):
    """A line of the table; an empty cell is an empty string or None."""

    type: str
    patch: str = ""
    output: tuple[int, ...] = ()
    depth: int | None = None
    widths: tuple[int | None, ...] = (None,) * NUM_WIDTHS
    params: int = 0
    weights: int = 0  # The same without biases and norms, as the paper counts.
    ops: int = 0  # Multiply-adds of one image.
    printed: Printed | None = None

    def params_differ(self) -> bool:
        """Whether neither count, with or without biases, can be rounded to the printed."""
        if self.printed is None:
            return False
        low, high = math.floor(self.weights / 1024), math.ceil(self.params / 1024)
        return not low <= self.printed.params <= high

    def ops_differ(self) -> bool:
        """Whether the count cannot be rounded to the printed."""
        if self.printed is None:
            return False
        low, high = math.floor(self.ops / 1e6), math.ceil(self.ops / 1e6)
        return not low <= self.printed.ops <= high


def table_1(model: GoogLeNet, image_size: int) -> list[Row]:
    """The rows of Table 1 for a network, then those of its auxiliary classifiers.

    Args:
      model: Of any variant, width and number of classes.
      image_size: Side of its input in pixels.
    """
    params, shapes = _shapes(model, image_size)
    ops = multiply_adds(model, image_size)

    def layer(name: str, *parts: str, **cells: Any) -> Row:
        leaves = [leaf for part in (name, *parts) for leaf in _leaves(params[part])]
        return Row(
            output=shapes[name],
            params=sum(math.prod(leaf.shape) for _, leaf in leaves),
            weights=sum(math.prod(leaf.shape) for key, leaf in leaves if key == "kernel"),
            ops=sum(
                count for path, count in ops.items() if path.split("/")[0] in (name, *parts)
            ),
            printed=PAPER.get(name),
            **cells,
        )

    def width(*path: str) -> int:
        return _kernel(params, *path).shape[-1]

    rows = [
        layer("conv1", type="convolution", patch="7x7/2", depth=1),
        _pool(3, (*shapes["conv2_reduce"][:2], width("conv1"))),
        layer(
            *("conv2", "conv2_reduce"),
            type="convolution",
            patch="3x3/1",
            depth=2,
            widths=(None, width("conv2_reduce"), width("conv2"), None, None, None),
        ),
        _pool(3, (*shapes["inception_3a"][:2], width("conv2"))),
    ]
    pools = {"inception_4a": 3, "inception_5a": model.variant.pool_5a_window}
    for name in INCEPTIONS:
        if name in pools:
            rows.append(_pool(pools[name], (*shapes[name][:2], rows[-1].output[-1])))
        branches = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
        widths = tuple(width(name, branch) for branch in branches)
        label = name.replace("inception_", "inception (") + ")"
        rows.append(layer(name, type=label, depth=2, widths=widths))
    side, _, depth = shapes["inception_5b"]
    rows += [
        Row("avg pool", f"{side}x{side}/1", (1, 1, depth), 0),
        Row(f"dropout ({model.variant.dropout_rate:.0%})", "", (1, 1, depth), 0),
        layer("classifier", type="linear", depth=1),
        Row("softmax", "", shapes["classifier"], 0),
    ]
    heads = AUX_TAPS.values() if model.aux_heads else ()
    return rows + [layer(name, type=name, depth=3) for name in heads]


def format_table_1(model: GoogLeNet, image_size: int) -> str:
    """The table as text, its sums, and what its marks mean."""
    rows = table_1(model, image_size)
    heads = [row for row in rows if row.type in AUX_TAPS.values()]
    main = [row for row in rows if row not in heads]
    cells = [
        HEADER,
        *map(_cells, main),
        _sums("sum", main),
        *map(_cells, heads),
        _sums("with heads", rows),
    ]
    columns = list(zip(*cells, strict=True))
    sides = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(side) if number < 2 else cell.rjust(side)
            for number, (cell, side) in enumerate(zip(line, sides, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(map(len, lines))
    notes = "\n".join(_notes(model, image_size))
    return (
        "\n".join([lines[0], rule, *lines[1 : len(main) + 1], rule])
        + "\n"
        + ("\n".join(lines[len(main) + 1 :]) + f"\n\n{notes}")
    )


def _notes(model: GoogLeNet, image_size: int) -> Iterator[str]:
    yield (
        f"params are exact, biases and norms included; ops are multiply-adds of one image. "
        f"{MARK} no rounding of ours gives what the paper prints (its K is 1024, without "
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


def _sums(label: str, rows: list[Row]) -> tuple[str, ...]:
    empty = ("",) * (2 + 1 + NUM_WIDTHS)
    printed = [row.printed for row in rows if row.printed is not None]
    return (
        *(label, *empty),
        f"{sum(row.params for row in rows):,}",
        f"{sum(p.params for p in printed):,.0f}K " if label == "sum" else "",
        f"{sum(row.ops for row in rows) / 1e6:,.1f}M",
        f"{sum(p.ops for p in printed):,.0f}M " if label == "sum" else "",
    )


def _pool(window: int, output: tuple[int, ...]) -> Row:
    return Row("max pool", f"{window}x{window}/2", output, 0)


def _shapes(model: GoogLeNet, size: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters, and of what each endpoint gives for one image."""
    names = [name for name in ENDPOINTS if model.aux_heads or not name.startswith("aux")]

    def run() -> Any:
        images = jnp.zeros((1, size, size, 3))
        variables = model.init(jax.random.key(0), images, train=False)
        return variables["params"], activations(model, variables, images, names)

    params, outputs = jax.eval_shape(run)
    shapes = {name: output.shape[1:] for name, output in outputs.items()}
    flat = {name: (1, 1, *shape) for name, shape in shapes.items() if len(shape) == 1}
    return params, {**shapes, **flat}


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(path[-1].key, leaf) for path, leaf in pairs]


def _kernel(params: Any, *path: str) -> Any:
    for name in path:
        params = params[name]
    return params["conv"]["kernel"]
