"""Style of all figures, and their conversion to PNGs."""

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np
from cycler import cycler
from matplotlib import style
from matplotlib.figure import Figure

Params = ParamSpec("Params")

# Okabe and Ito, "Color Universal Design": colors that color-blind people can tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)

WIDTH_INCHES = 6.0
SHOWN_WIDTH_PIXELS = 600  # Width on the page, on which text of 9 pt has 12.5 px.
STORED_PIXELS_PER_INCH = 150  # The file has more pixels, for screens of high resolution.
MAX_LABEL_LENGTH = 18  # Longest class name in a figure, in characters.

STYLE: dict[str, Any] = {
    "figure.dpi": STORED_PIXELS_PER_INCH,
    "figure.constrained_layout.use": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "image.cmap": "cividis",
    "text.parse_math": False,  # The name of a class may contain "$".
}


def styled(draw: Callable[Params, Figure]) -> Callable[Params, bytes]:
    """Decorates a function that draws a figure, so that it returns a PNG.

    The figure does not depend on the user's matplotlib settings, and they do not change.
    """

    @functools.wraps(draw)
    def draw_png(*args: Params.args, **kwargs: Params.kwargs) -> bytes:
        with style.context(STYLE, after_reset=True), warnings.catch_warnings():
            # The name of a class may have letters that the font lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            png = io.BytesIO()
            draw(*args, **kwargs).savefig(png, format="png", metadata={"Software": None})
        return png.getvalue()

    return draw_png


def new_figure(height_inches: float) -> Figure:
    """Creates an empty figure of the common width."""
    return Figure(figsize=(WIDTH_INCHES, height_inches))


@styled
def pictures_figure(
    pictures: Sequence[tuple[np.ndarray, str]],
    columns: int,
    *,
    title_height_inches: float,
    interpolation: str = "nearest",
) -> Figure:
    """Draws pictures, each with a title above it, in the rows of a grid without axes."""
    rows = -(-len(pictures) // columns)
    figure = new_figure(rows * (WIDTH_INCHES / columns + title_height_inches))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, (pixels, title) in zip(axes, pictures, strict=False):
        ax.imshow(pixels, interpolation=interpolation)
        ax.set_title(title, fontsize=9)
    return figure


def plain_text(text: str) -> str:
    """Escapes characters that are not valid Unicode, such as raw bytes of a file name."""
    return text.encode("utf-8", "backslashreplace").decode()


def name_label(name: str) -> str:
    """Shortens a name to a label of one line."""
    line = " ".join(plain_text(name).split())
    return line if len(line) <= MAX_LABEL_LENGTH else f"{line[: MAX_LABEL_LENGTH - 1]}…"
