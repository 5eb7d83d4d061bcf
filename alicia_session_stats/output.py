"""Rows as a table for people, as CSV or as JSON. Each value is the text that the server wrote, which psql shows too."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TextIO

Format = Literal["table", "csv", "json", "prometheus"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json")
# Types, by the numbers that PostgreSQL gives them.
BOOLEAN, TEXT, JSON, TIMESTAMP = 16, 25, 114, 1114
NUMBERS = (20, 21, 23, 700, 701, 1700)  # BIGINT, SMALLINT, INTEGER, REAL, DOUBLE PRECISION, NUMERIC
Row = Sequence[str | None]


class Column(NamedTuple):
    """A column's name and its type."""

    name: str
    type: int = TEXT


def write_rows(stream: TextIO, columns: Sequence[Column], rows: Sequence[Row], style: Format = "table") -> None:
    """Write rows to a stream.

    Args:
        stream: where to write.
        columns: the columns. One named bar is drawn for people: CSV and JSON leave it out.
        rows: the values of each row, in the order of the columns, as the server writes them; None is NULL.
        style: "table"; "csv", which follows RFC 4180, with NULL as an empty field; "json", an array of objects, with
            times in ISO 8601.
    """
    if style == "table":
        _write_table(stream, columns, rows)
        return
    kept = [position for position, column in enumerate(columns) if column.name != "bar"]
    columns = [columns[position] for position in kept]
    rows = [[row[position] for position in kept] for row in rows]
    if style == "csv":
        writer = csv.writer(stream)
        writer.writerow(column.name for column in columns)
        writer.writerows(rows)
    else:
        objects = [",\n".join(map(_json_pair, columns, row)) for row in rows]
        body = ",\n".join(f"  {{\n{text}\n  }}" for text in objects)
        stream.write(f"[\n{body}\n]\n" if rows else "[]\n")


def is_number(text: str) -> bool:
    """Whether a number's text is finite: JSON has no infinity and no NaN."""
    return text.lower() not in ("nan", "infinity", "-infinity")


def _write_table(stream: TextIO, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    import tabulate  # Only a table needs it.

    tabulate.MIN_PADDING = 0
    table = tabulate.tabulate(
        [[_shown(value or "") for value in row] for row in rows],
        [column.name for column in columns],
        "presto",
        colalign=["right" if column.type in NUMBERS else "left" for column in columns] if rows else None,
        disable_numparse=True,
        preserve_whitespace=True,
    )
    stream.write(f"{table}\n")


def _shown(text: str) -> str:
    """A control character could change what the terminal shows. Written as psql writes it; a line break stays one."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", _escaped, text)


def _escaped(control: re.Match[str]) -> str:
    code = ord(control[0])
    return r"\r" if code == ord("\r") else f"\\x{code:02X}" if code < 0x80 else f"\\u{code:04X}"


def _json_pair(column: Column, text: str | None) -> str:
    return f"    {_json_text(column.name)}: {_json_value(column.type, text)}"


def _json_value(kind: int, text: str | None) -> str:
    if text is None:
        return "null"
    if kind == JSON or (kind in NUMBERS and is_number(text)):
        return text
    if kind == BOOLEAN:
        return "true" if text == "t" else "false"
    return _json_text(text.replace(" ", "T") if kind == TIMESTAMP else text)


def _json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
