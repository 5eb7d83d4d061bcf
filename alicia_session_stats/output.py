"""Rows as a table for people, as CSV or as JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TextIO

import simplejson
import tabulate

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json")
EXACT_DECIMALS = 6  # A number with more is the result of a division.


def write_rows(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[Any]], style: Format = "table") -> None:
    """Write rows to a stream.

    Args:
        stream: where to write.
        columns: the name of each column. A column named bar is drawn for people: CSV and JSON leave it out.
        rows: the values of each row, in the order of the columns.
        style: "table" has every number that is not whole with 2 decimals; "csv" follows RFC 4180, with NULL as an
            empty field; "json" is an array of objects, with times in ISO 8601. Both round a number of more than 6
            decimals to 2.
    """
    if style == "table":
        _write_table(stream, columns, rows)
        return
    kept = [position for position, column in enumerate(columns) if column != "bar"]
    names = [columns[position] for position in kept]
    values = [[_rounded(row[position]) for position in kept] for row in rows]
    if style == "csv":
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([_text(value) for value in row] for row in values)
    else:
        objects = [dict(zip(names, row, strict=True)) for row in values]
        text = simplejson.dumps(objects, use_decimal=True, indent=2, ensure_ascii=False, default=_json_text)
        stream.write(f"{text}\n")


def table_text(value: Any) -> str:
    """A value as the table shows it: times to the second, numbers that are not whole with 2 decimals."""
    if isinstance(value, Decimal | float) and _decimals(value) > 0:
        return f"{value:.2f}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    # A control character could change what the terminal shows. Written as psql writes it; a line break stays one.
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", _escaped, _text(value))


def _write_table(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    # Aligned by type, because tabulate would take a text of digits for a number.
    numbers = [any(isinstance(row[i], int | float | Decimal) for row in rows) for i in range(len(columns))]
    tabulate.MIN_PADDING = 0
    table = tabulate.tabulate(
        [[table_text(value) for value in row] for row in rows],
        columns,
        "presto",
        colalign=["right" if is_number else "left" for is_number in numbers] if rows else None,
        disable_numparse=True,
        preserve_whitespace=True,
    )
    stream.write(f"{table}\n")


def _escaped(control: re.Match[str]) -> str:
    code = ord(control[0])
    return r"\r" if code == ord("\r") else f"\\x{code:02X}" if code < 0x80 else f"\\u{code:04X}"


def _rounded(value: Any) -> Any:
    if isinstance(value, Decimal | float) and _decimals(value) > EXACT_DECIMALS:
        return Decimal(f"{value:.2f}")
    return value


def _decimals(value: Decimal | float) -> int:
    """How many decimals a number has; 0 for NaN and infinity."""
    exponent = Decimal(str(value)).as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, Decimal | float):
        return f"{Decimal(str(value)):f}"
    return value.isoformat(" ") if isinstance(value, datetime) else str(value)


def _json_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
