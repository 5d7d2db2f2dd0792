"""A figure as inline SVG, in two shapes: one for a desk and paper, one for a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from evaluation.plot_style import STYLE


@dataclass(frozen=True)
class Picture:
    """A plot in both shapes, as `<svg>` elements."""

    wide: str
    narrow: str

    def __html__(self) -> str:
        """Both, of which the page's style shows the one that fits."""
        return f'<div class="wide">{self.wide}</div><div class="narrow">{self.narrow}</div>'


def picture(name: str, draw: Callable[[bool], Figure | None]) -> Picture | None:
    """Both shapes of a plot; None if there is nothing to draw.

    Args:
        name: Keeps the ids of one plot apart from another's.
        draw: Makes the figure; its argument is True for the wide one.
    """
    wide = one_svg(f"{name}-wide", lambda: draw(True))
    narrow = one_svg(f"{name}-narrow", lambda: draw(False))
    return Picture(wide, narrow) if wide is not None and narrow is not None else None


def one_svg(name: str, draw: Callable[[], Figure | None]) -> str | None:
    """The figure as an `<svg>` element whose ids begin with `name`."""
    with matplotlib.rc_context(STYLE):
        figure = draw()
        if figure is None:
            return None
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Nothing refers to an image's id, and equal images would share it.
    svg = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
