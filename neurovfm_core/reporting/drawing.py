"""What all figures share: style, palette, and bytes that are the same on every run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

# Okabe and Ito: told apart with any colour vision, and in grey print by marker and order.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, MUTED, FAINT = "#1b1f24", "#667080", "#d8dde3"
ENCODER_COLOURS = (BLUE, ORANGE, "#7f7f7f", GREEN, PURPLE)
ENCODER_MARKERS = ("o", "s", "D", "^", "v")
SPLIT_COLOURS = {"train": BLUE, "val": SKY, "test": ORANGE}

WIDTH_IN = 7.2
"""Two columns of a journal page, 183 mm."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
}
FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and its words. `id` names the file and the anchor, `image` is SVG or PNG.

    `section` is where the page shows it: cohort, labels, pretraining, evaluation or evidence.
    """

    id: str
    title: str
    image: bytes
    alt: str
    caption: str
    section: str = "evidence"

    @property
    def suffix(self) -> str:
        return ".png" if self.image.startswith(b"\x89PNG") else ".svg"


@contextmanager
def canvas(
    width_in: float, height_in: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Canvas]:
    """Yield an empty figure in the house style; nothing global is left changed."""
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(width_in, height_in), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def svg_bytes(figure: Canvas, salt: str) -> bytes:
    """Return the figure as SVG. The same figure gives the same bytes; text stays text."""
    buffer = BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue().decode()
    return re.sub(r"'DejaVu Sans'(, sans-serif)?", FONTS, text).encode()


def png_bytes(figure: Canvas, dots_per_inch: int = 170) -> bytes:
    """Return the figure as PNG without the name of the program that drew it."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(image: bytes, prefix: str) -> str:
    """Return an SVG fit to stand inside HTML: no prolog, no namespaces, ids that no other figure has."""
    text = image.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    if re.search(r"<script|\son\w+=", text):
        raise ValueError("a figure must not carry scripts")
    return text


def readable(label: str) -> str:
    """Turn a label's code into words: acute_ischemic_stroke, Acute ischemic stroke."""
    words = label.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def quiet_grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draw faint lines across one axis, behind the data."""
    axes.grid(axis=axis, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def plural(unit: str) -> str:
    """Return the plural of a unit that is counted: studies, patients."""
    return unit[:-1] + "ies" if unit.endswith("y") else unit + "s"
