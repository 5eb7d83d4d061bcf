"""Rows as gauges in Prometheus' text format, as the node exporter's textfile collector and a push gateway take them.

A number, a boolean (0 or 1) or a time (seconds since 1970) is a gauge. A text is a label, and so is a parameter that was
given. An id is left out, since it would make a series for each session. Rows that differ in no label get their number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TextIO

from alicia_session_stats.output import BOOLEAN, NUMBERS, TIMESTAMP, Column, Row, is_number
from alicia_session_stats.query_files import Query

PREFIX = "alicia_session_stats"
TIMES = (TIMESTAMP, 1082, 1184)  # And DATE, TIMESTAMP WITH TIME ZONE.
# How a column's name ends: in the base unit, the factor, and what HELP adds.
UNITS = {
    "_minutes": ("_seconds", Decimal(60), "; here in seconds"),
    "_hours": ("_seconds", Decimal(3600), "; here in seconds"),
    "_days": ("_seconds", Decimal(86400), "; here in seconds"),
    "_pct": ("_ratio", Decimal("0.01"), "; here as a ratio, 1 for 100 percent"),
    "_count": ("s", Decimal(1), ""),  # message_count is the measure messages; _count is kept for histograms.
}


def write_metrics(
    stream: TextIO, query: Query, given: Mapping[str, object], columns: Sequence[Column], rows: Sequence[Row]
) -> None:
    """Write the answer of a query.

    Args:
        stream: where to write.
        query: the query. Its header documents the gauges.
        given: the parameters that were given, by name.
        columns: the columns of the answer.
        rows: the values of each row, as the server writes them.
    """
    is_local = given.get("tz", "UTC") != "UTC"  # A local time is no number of seconds since 1970.
    shown = [column for column in columns if not _is_id(column.name) and not (is_local and column.type in TIMES)]
    gauges = [column for column in shown if column.type in (*NUMBERS, BOOLEAN, *TIMES)]
    if not gauges:
        write_gauge(stream, f"{query.name}_rows", f"Rows of: {query.summary}", len(rows))
        return
    constant = {name: str(value) for name, value in given.items() if not _is_id(name) and name != "until"}
    texts = [column for column in shown if column not in gauges]
    labels = _labels(constant, texts, columns, rows)
    described = _described(query, [column.name for column in columns])
    for gauge in gauges:
        name, factor, unit = _base_unit(gauge)
        _write_head(stream, f"{query.name}_{name}", f"{described.get(gauge.name, query.summary)}{unit}")
        for row, label in zip(rows, labels, strict=True):
            text = row[columns.index(gauge)]
            if text is not None:
                stream.write(f"{PREFIX}_{query.name}_{name}{label} {_number(gauge, text, factor)}\n")


def write_gauge(stream: TextIO, name: str, description: str, value: int) -> None:
    """Write one gauge without labels."""
    _write_head(stream, name, description)
    stream.write(f"{PREFIX}_{name} {value}\n")


def _write_head(stream: TextIO, name: str, description: str) -> None:
    escaped = description.replace("\\", "\\\\").replace("\n", " ")
    stream.write(f"# HELP {PREFIX}_{name} {escaped}\n# TYPE {PREFIX}_{name} gauge\n")


def _is_id(name: str) -> bool:
    return name in ("id", "bar") or name.endswith("_id")


def _labels(constant: Mapping[str, str], texts: Sequence[Column], columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """The labels of each row, in braces."""
    found = [{**constant, **{column.name: row[columns.index(column)] or "" for column in texts}} for row in rows]
    if len({tuple(labels.values()) for labels in found}) < len(rows):
        found = [{**labels, "row": str(number)} for number, labels in enumerate(found, 1)]
    return [_braced(labels) for labels in found]


def _braced(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{_escaped(text)}"' for name, text in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _base_unit(gauge: Column) -> tuple[str, Decimal, str]:
    """The name in Prometheus' base unit, the factor to it, and what HELP says about it."""
    if gauge.type in TIMES:
        return f"{gauge.name}_timestamp_seconds", Decimal(1), "; here in seconds since 1970"
    for suffix, (base, factor, said) in UNITS.items():
        if gauge.name.endswith(suffix):
            return gauge.name.removesuffix(suffix) + base, factor, said
    return gauge.name, Decimal(1), ""


def _number(gauge: Column, text: str, factor: Decimal) -> str:
    if gauge.type == BOOLEAN:
        return "1" if text == "t" else "0"
    if gauge.type in TIMES:
        if text.endswith("infinity"):
            return "-Inf" if text.startswith("-") else "+Inf"
        time = datetime.fromisoformat(text)
        return f"{(time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp():f}"
    if not is_number(text):
        return text.replace("inity", "")
    return f"{Decimal(text) * factor:f}"


def _described(query: Query, columns: Sequence[str]) -> dict[str, str]:
    """What the header says of each column, under Returns. An item may name several: a, b; a, …, d; …_suffix."""
    text = query.documentation.partition("\nReturns: ")[2]
    text = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
    described: dict[str, str] = {}
    for names, meaning in re.findall(r"^ {4}(\S.*?) {2,}((?:.*)(?:\n {8,}.*)*)", text, re.M):
        listed = [name.strip() for name in names.split(",")]
        for position, name in enumerate(listed):
            if name == "…":
                around = [columns.index(near) for near in (listed[position - 1], *listed[position + 1 :]) if near in columns]
                matched = columns[min(around, default=0) : max(around, default=0)]
            else:
                matched = [column for column in columns if column == name or (name[0] == "…" and column.endswith(name[1:]))]
            described |= {column: " ".join(meaning.split()) for column in matched}
    return described
