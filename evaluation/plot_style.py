"""Colours and style that all plots share.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series has a shape or a
text of its own too.
"""

from __future__ import annotations

from typing import Any

from evaluation.records import Verdict

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
SKY = "#56B4E9"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
GREY = "#999999"
INK = "#333333"

LENGTHS = {"short": (BLUE, "o"), "medium": (ORANGE, "s"), "long": (GREEN, "^")}
GRAPHS = {"context_encoding": (BLUE, "o"), "token_generation": (ORANGE, "s")}
LIMIT_COLOUR = VERMILLION
FILL: dict[Verdict, str] = {"pass": "full", "fail": "none"}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nki-assay",  # the same plot has the same ids
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
