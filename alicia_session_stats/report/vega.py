"""The common style of the charts: Vega-Lite specifications, drawn to SVG in the colours of page.css."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import vl_convert

Rows = list[dict[str, Any]]
Answers = Mapping[str, Rows]  # By the name of the query.
Spec = dict[str, Any]
Key = tuple[tuple[str, str], ...]

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
        # The title stands above the axis, unrotated. minExtent leaves room for a reader's wider font.
        "axisY": {"titleAngle": 0, "titleAlign": "left", "titleX": -44, "titleY": -20, "minExtent": 44},
    },
}


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn twice, since text that shrinks with its picture cannot be read on a phone."""

    title: str
    label: str  # What the chart shows, in words, for a screen reader.
    spec: Callable[[bool], Spec]  # Called with True for the narrow drawing.
    key: Key = ()  # The name and the CSS colour of each kind of mark.

    def svg(self, *, narrow: bool) -> str:
        """Draw the chart as inline SVG. The page's style sheet gives the colours and the font."""
        svg = vl_convert.vegalite_to_svg({**FRAME, **self.spec(narrow), "width": 350 if narrow else 760})
        # Two decimals of a pixel are enough. The label describes the whole, so its parts need no roles.
        return re.sub(r"(?<=\.\d\d)\d+| (?:role|aria-\w+)=\"[^\"]*\"", "", svg)


def count_axis(maximum: float) -> Spec:
    """Return an axis with whole numbers only; with Vega's own tickMinStep, 2 is labelled 0, 1, 1, 2, 2."""
    return {"tickCount": min(5, int(maximum)), "format": ",d"}


def categories(field: str, title: str, **axis: Any) -> Spec:
    """Return the encoding of categories, in the order of the data and with horizontal labels."""
    return {"field": field, "type": "ordinal", "sort": None, "title": title, "axis": {"labelAngle": 0, **axis}}


def span(rows: Rows) -> str:
    """Return the days of the first and the last row in words."""
    return f"from {date(rows[0])} to {date(rows[-1])}"


def date(row: dict[str, Any], column: str = "day") -> str:
    """Return a row's day as 5 Mar."""
    return f"{row[column].day} {row[column]:%b}"
