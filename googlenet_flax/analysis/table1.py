"""Table 1 of the paper for any network, with exact counts beside the printed ones.

The paper is Szegedy et al. 2015, arXiv 1409.4842. Some of its figures are misprints; a mark
shows where the exact counts give something else.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from googlenet_flax.analysis.cost import layer_shapes, multiply_adds
from googlenet_flax.model.googlenet import HEADS, GoogLeNet
from googlenet_flax.model.layers import BRANCHES


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

HEADER = (
    *("type", "patch/stride", "output size", "depth"),
    *("#1x1", "#3x3 reduce", "#3x3", "#5x5 reduce", "#5x5", "pool proj"),
    *("params", "paper", "ops", "paper"),
)
NO_WIDTHS = (None,) * len(BRANCHES)
ALIGNMENTS = "<<" + ">" * (len(HEADER) - 2)
MARK = "*"


class Row(NamedTuple):
    """A line of the table; an empty cell is an empty string or None."""

    name: str  # Name of the part of the network; "" for a part without weights.
    type: str
    patch: str = ""
    output: tuple[int, ...] = ()
    depth: int | None = None
    widths: tuple[int | None, ...] = NO_WIDTHS
    params: int = 0
    weights: int = 0  # Parameters without biases and norms, as the paper counts them.
    ops: int = 0  # Multiply-adds of one image.

    @property
    def printed(self) -> Printed | None:
        """Figures of the paper for this row, if it prints any."""
        return PAPER.get(self.name)

    def params_differ(self) -> bool:
        """Tells if the printed number is not between our counts without and with biases."""
        low, high = math.floor(self.weights / 1024), math.ceil(self.params / 1024)
        return self.printed is not None and not low <= self.printed.params <= high

    def ops_differ(self) -> bool:
        """Tells if the count differs from the printed one by a million or more."""
        return self.printed is not None and abs(self.ops / 1e6 - self.printed.ops) >= 1


def table_1(model: GoogLeNet, image_size: int) -> list[Row]:
    """Computes the rows of Table 1 for any network, then those of its heads.

    The counts are those of one image with sides of `image_size` pixels. If you replace the
    blocks, `Variant.pool_windows` must have no pool before the first one.
    """
    params, outputs = layer_shapes(model, image_size)
    ops = multiply_adds(params, outputs)

    def layer(name: str, type_: str, *more: str, **cells: Any) -> Row:
        """Returns the row of a part of the network; its counts include `more` parts."""
        parts = (name, *more)
        leaves = jax.tree_util.tree_leaves_with_path([params[part] for part in parts])
        sizes = [(path[-1].key, math.prod(leaf.shape)) for path, leaf in leaves]
        return Row(
            name,
            type_,
            output=(1, 1, *outputs[name])[-3:],
            params=sum(size for _, size in sizes),
            weights=sum(size for leaf, size in sizes if leaf == "kernel"),
            ops=sum(n for path, n in ops.items() if path.partition("/")[0] in parts),
            **cells,
        )

    def pool(window: int, before: str, after: str) -> Row:
        output = (*outputs[after][:2], outputs[before][-1])
        return Row("", "max pool", f"{window}x{window}/2", output, 0)

    blocks = list(model.inceptions)
    widths = (None, outputs["conv2_reduce"][-1], outputs["conv2"][-1], None, None, None)
    conv2 = {"patch": "3x3/1", "depth": 2, "widths": widths}
    rows = [
        layer("conv1", "convolution", patch="7x7/2", depth=1),
        pool(3, "conv1", "conv2_reduce"),
        layer("conv2", "convolution", "conv2_reduce", **conv2),
        pool(3, "conv2", blocks[0]),
    ]
    windows = model.variant.pool_windows
    for before, name in itertools.pairwise(("conv2", *blocks)):
        if name in windows:
            rows.append(pool(windows[name], before, name))
        kernels = [params[name][branch]["conv"]["kernel"] for branch in BRANCHES]
        widths = tuple(kernel.shape[-1] for kernel in kernels)
        label = name.replace("inception_", "inception (") + ")"
        rows.append(layer(name, label, depth=2, widths=widths))
    side, _, depth = outputs[blocks[-1]]
    dropout = f"dropout ({model.variant.dropout_rate:.0%})"
    rows += [
        Row("", "avg pool", f"{side}x{side}/1", (1, 1, depth), 0),
        Row("", dropout, output=(1, 1, depth), depth=0),
        layer("classifier", "linear", depth=1),
        Row("", "softmax", output=(1, 1, model.num_classes), depth=0),
    ]
    heads = HEADS if model.aux_heads else ()
    return rows + [layer(name, name, depth=3) for name in heads]


def format_table_1(model: GoogLeNet, image_size: int) -> str:
    """Formats the table as text, with sums and an explanation of its marks."""
    rows = table_1(model, image_size)
    main = [row for row in rows if row.name not in HEADS]
    heads = [row for row in rows if row.name in HEADS]
    params, ops = (sum(column) for column in zip(*PAPER.values(), strict=True))
    total = _sum_cells("sum", main, f"{params:,.0f}K ", f"{ops:,.0f}M ")
    with_heads = _sum_cells("with heads", rows, "", "")
    body = [*map(_cells, main), total, *map(_cells, heads), with_heads]
    columns = zip(ALIGNMENTS, HEADER, *body, strict=True)
    forms = [f"{align}{max(map(len, cells))}" for align, *cells in columns]
    lines = ["  ".join(map(format, cells, forms)).rstrip() for cells in [HEADER, *body]]
    rule = "-" * max(map(len, lines))
    lines.insert(1 + len(main), rule)
    lines.insert(1, rule)
    return "\n".join([*lines, "", *_notes(model, image_size)])


def _cells(row: Row) -> tuple[str, ...]:
    params = ops = printed_params = printed_ops = ""
    if row.params:
        params, ops = f"{row.params:,}", f"{row.ops / 1e6:,.1f}M"
    if row.printed is not None:
        printed_params = f"{row.printed.params:g}K{MARK if row.params_differ() else ' '}"
        printed_ops = f"{row.printed.ops:g}M{MARK if row.ops_differ() else ' '}"
    numbers = ["" if n is None else str(n) for n in (row.depth, *row.widths)]
    output = "x".join(map(str, row.output))
    counts = params, printed_params, ops, printed_ops
    return (row.type, row.patch, output, *numbers, *counts)


def _sum_cells(label: str, rows: list[Row], params: str, ops: str) -> tuple[str, ...]:
    """Returns the cells of a line of sums; `params` and `ops` are those of the paper."""
    total = Row("", label, params=sum(r.params for r in rows), ops=sum(r.ops for r in rows))
    *cells, own_params, _, own_ops, _ = _cells(total)
    return (*cells, own_params, params, own_ops, ops)


def _notes(model: GoogLeNet, image_size: int) -> Iterator[str]:
    yield (
        f"params are exact, biases and norms included; ops are multiply-adds of one image. "
        f"{MARK} marks a figure of the paper to which the exact count does not round (the "
        "paper's K is 1024, and it counts no biases)."
    )
    differences = {
        f"{image_size} px": image_size != 224,
        f"{model.num_classes} classes": model.num_classes != 1000,
        f"input depth {model.input_channels}": model.input_channels != 3,
        f"widths times {model.width_multiplier}": model.width_multiplier != 1,
        "3x3 in place of 5x5": model.variant.kernel_5x5 != 5,
    }
    own = [text for text, differs in differences.items() if differs]
    if own:
        yield f"This network has {', '.join(own)}; the paper's has 224 px and 1000 classes."
