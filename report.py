"""Write what the named queries answer as one HTML page, for people: python -m report --output report.html

The page needs no network. Its definitions are the headers of the query files; its charts are Vega-Lite
specifications, drawn here to SVG in the colours of the page's style sheet, report.html.j2. Drawn twice,
for a wide and for a narrow screen: a picture that is only scaled down cannot be read.
"""
# pyright: reportPrivateUsage=false - a page of runner.py, which lives apart because of what it imports.

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    import runner
else:
    runner = importlib.import_module(__package__ or "runner")

try:
    import jinja2
    import vl_convert
except ImportError as missing:
    raise SystemExit(f"{runner.PROGRAM}: the report needs {missing.name}: pip install '{runner.PROGRAM}[report]'") from None

HERE = Path(__file__).resolve().parent
LEFT_OUT = ("session_stats", "verify")  # One needs a conversation, the other judges the schema.
ASKED = {"daily_usage": {"days": "90"}}  # As many days as the forecast learns from.
WIDE, NARROW = 760, 350
Row = dict[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart as inline SVG, twice, with what a person who does not see it is told."""

    title: str
    label: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Section:
    """A query with its answer."""

    query: runner.Query
    params: dict[str, str]
    columns: list[str]
    rows: list[Row]
    chart: Chart | None = None

    @property
    def returns(self) -> str:
        """What the header says of the rows."""
        return self.query.field("Returns")


# Asking -----------------------------------------------------------------------------------------------


def report(conninfo: str | None = None, *, timeout: float = 30) -> str:
    """Ask every named query that only reads, and lay the answers out as one page.

    Args:
        conninfo: str, or None for the configured database.
        timeout: seconds after which the server gives a query up.

    Returns:
        str: an HTML document that needs nothing else.

    Raises:
        SessionStatsError: as for runner.query.
    """
