"""A figure as inline SVG, in two shapes: one for a desk and paper, one for a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from evaluation.plot_style import STYLE


def picture(name: str, draw: Callable[[bool], Figure | None]) -> Markup | None:
    """Both shapes of a plot, of which the page shows the one that fits; None if there is none.

    Args:
        name: Keeps the ids of one plot apart from another's.
        draw: Makes the figure; its argument is True for the wide one.
    """
    shapes = []
    for kind, wide in (("wide", True), ("narrow", False)):
        text = one_svg(f"{name}-{kind}", lambda wide=wide: draw(wide))  # type: ignore[misc]
        if text is None:
            return None
        shapes.append(f'<div class="{kind}">{text}</div>')
    return Markup("".join(shapes))


def one_svg(name: str, draw: Callable[[], Figure | None], *, inline: bool = True) -> str | None:
    """The figure as an `<svg>` element; as a whole file if not `inline`."""
    with matplotlib.rc_context(STYLE):
        figure = draw()
        if figure is None:
            return None
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing, transparent=inline)
    svg = text.getvalue()
    if not inline:
        return svg
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Nothing refers to an image's id, and equal images would share it.
    svg = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
