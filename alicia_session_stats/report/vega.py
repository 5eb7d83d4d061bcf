"""The common style of the charts: Vega-Lite specifications, drawn to SVG in the colours of page.css."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import vl_convert

from alicia_session_stats.report.words import Rows

Answers = Mapping[str, Rows]  # By the name of the query.
Spec = dict[str, Any]
Key = tuple[tuple[str, str], ...]
WIDTHS = {"wide": 780, "narrow": 350, "half": 370}
WIDE, HALF = ("wide", "narrow"), ("half",)
FRAME: Spec = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "autosize": {"type": "fit", "contains": "padding"},
    "padding": {"left": 0, "top": 4, "right": 8, "bottom": 4},
    "background": None,
    "config": {
        "aria": False,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "bar": {"color": "var(--bar)"},
        "text": {"color": "var(--ink)", "fontSize": 11.5},
        "axis": {
            "labelColor": "var(--muted)",
            "labelFontSize": 11.5,
            "titleColor": "var(--muted)",
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": "var(--line)",
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "axisX": {"grid": False},
        "axisY": {"minExtent": 44},  # Room for a reader's wider font.
    },
}


@dataclass(frozen=True)
class Chart:
    """A chart. A wide one is drawn twice, since text that shrinks with its picture cannot be read on a phone."""

    title: str
    label: str  # What the chart shows, in words, for a screen reader.
    spec: Spec
    key: Key = ()  # The name and the CSS background of each kind of mark.
    sizes: tuple[str, ...] = WIDE
    narrow: Spec = field(default_factory=dict)  # What is different in the narrow drawing.

    def svg(self, size: str) -> str:
        """Draw the chart as inline SVG. The page's style sheet gives the colours and the font."""
        spec = {**FRAME, "width": WIDTHS[size], **self.spec, **(self.narrow if size == "narrow" else {})}
        # Two decimals of a pixel are enough. The label describes the whole, so its parts need no roles.
        return re.sub(r"(?<=\.\d\d)\d+| (?:role|aria-\w+)=\"[^\"]*\"", "", vl_convert.vegalite_to_svg(spec))


def number_axis(maximum: float) -> Spec:
    """Return an axis from 0 to a maximum, in whole numbers where the maximum is small, and short where it is large."""
    short = "replace(format(datum.value, '~s'), 'G', 'B')"
    text = {"labelExpr": short} if maximum >= 100_000 else {"format": ",~f"}
    return {"tickCount": min(4, math.ceil(maximum)), **text}


def categories(field: str, title: str | None = None, **axis: Any) -> Spec:
    """Return the encoding of categories, in the order of the data and with horizontal labels."""
    return {"field": field, "type": "ordinal", "sort": None, "title": title, "axis": {"labelAngle": 0, **axis}}
