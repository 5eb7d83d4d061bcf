"""Numbers, dates, units and names, written for people."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from typing import Any

Rows = list[dict[str, Any]]

NAMES = {
    r"^period_start$": "day",
    r"^per_session_": "",
    r"_pct$": ", %",
    r"_": " ",
    r"\bavg\b": "mean",
    r"\bp50\b": "median",
    r"\bp(\d\d)\b": r"\1th percentile",
    r"\b7d mean\b": "7-day mean",
    r"\b(low|high)\b": r"95 percent \1",
    r"\bmax\b": "maximum",
    r"\bnonzero sessions\b": "1 second or more",
    r"\b(message|tool call) count\b": r"\1s",
    r"^one message, ": "one-message sessions, ",
    r"^(.*) (minutes|hours|MB)$": r"\1, \2",
}


def name(column: str) -> str:
    """Return the name for people of a column or a metric: p95_seconds is 95th percentile seconds."""
    for pattern, words in NAMES.items():
        column = re.sub(pattern, words, column)
    return column


def show(value: Any) -> str:
    """Return a value for people: thousands separated, one decimal, a true minus sign."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        is_whole = isinstance(value, int) or abs(value) >= 1000 or f"{value:f}".isdigit()
        return f"{value:,.{0 if is_whole else 1}f}".replace("-", "\N{MINUS SIGN}")
    return value.isoformat(" ", "minutes") if isinstance(value, datetime) else str(value)


def mark(row: dict[str, Any]) -> str:
    """Return what follows the first cell of a row that is not whole: a period that is not over, or that lost sessions."""
    return " (so far)" if row.get("is_partial") else " *" if row.get("is_truncated") else ""


def rounded(value: Any) -> str:
    """Return a number for a headline: 12.3 million."""
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:,.1f} {word}"
    return show(round(value) if value >= 100 else value)


def is_number(value: Any) -> bool:
    """Whether a value belongs in a column that is aligned right."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def day(of: date) -> str:
    """Return a day as 5 March."""
    return f"{of.day} {of:%B}"


def span(first: date, last: date) -> str:
    """Return two days as 5 to 9 March, with the years where they differ."""
    if first.year != last.year:
        return f"{day(first)} {first.year} to {day(last)} {last.year}"
    return f"{first.day if first.month == last.month else day(first)} to {day(last)}"


def in_unit(rows: Rows, old: str, new: str, divisor: int) -> Rows:
    """Return rows with another unit, in the columns that name the old one, or else in the rows whose first cell does."""
    converted: Rows = []
    for row in rows:
        is_in_title = old in str(next(iter(row.values())))
        kept = ("sessions", "change_pct") if is_in_title else [column for column in row if old not in column]
        converted.append(
            {
                column.replace(old, new): value.replace(old, new)
                if isinstance(value, str)
                else float(value) / divisor
                if is_number(value) and column not in kept
                else value
                for column, value in row.items()
            }
        )
    return converted
