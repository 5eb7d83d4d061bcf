"""The page: runs the named queries on one snapshot, and renders page.html.j2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import psycopg

from alicia_session_stats.database import PROGRAM, READING, SessionStatsError, UsageError, connect, server_errors
from alicia_session_stats.named_queries import query
from alicia_session_stats.query_files import Query, queries
from alicia_session_stats.report import words
from alicia_session_stats.report.sections import HOURS, MINUTES, SECTIONS, Section
from alicia_session_stats.report.words import Rows

HERE = Path(__file__).parent
# bar is for a terminal; what is not whole is marked in the first cell; the others are in the words or in another column.
HIDDEN = {"bar", "is_partial", "is_truncated", "history_days", "sessions_r2", "messages_r2", "…_r2", "from_seconds", "change"}
NOW = "SELECT NOW() AT TIME ZONE 'UTC', NOW() AT TIME ZONE name, name FROM pg_timezone_names WHERE LOWER(name) = LOWER(%s)"
# The Mondays at which the last twelve weeks began and ended: in the time zone, and the end in UTC.
WEEKS = """
    SELECT monday - INTERVAL '7 days', monday AT TIME ZONE %(tz)s AT TIME ZONE 'UTC'
    FROM GENERATE_SERIES(0, 11) AS n
    CROSS JOIN LATERAL (SELECT DATE_TRUNC('week', NOW() AT TIME ZONE %(tz)s) - n * INTERVAL '7 days' AS monday) AS m
    ORDER BY monday
"""


@dataclass(frozen=True)
class Answer:
    """A section with the rows of its query, or with the error that came instead."""

    section: Section
    query: Query
    given: dict[str, str]
    rows: Rows
    error: SessionStatsError | None

    @property
    def params(self) -> dict[str, str]:
        """The value of every parameter."""
        return {param.name: self.given.get(param.name, param.default or "") for param in self.query.params}

    @property
    def command(self) -> str:
        """The command that gives the same answer."""
        return " ".join([PROGRAM, "query", self.query.name, *(f"--{n} {v}" for n, v in self.given.items())])

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each column to show and whether it holds numbers."""
        names = [name for name in (self.rows or [{}])[0] if name not in HIDDEN]
        return [(name, all(row[name] is None or words.is_number(row[name]) for row in self.rows)) for name in names]

    @property
    def returns(self) -> list[tuple[str, str]]:
        """What the query file says of its rows: columns and their meaning, or a sentence and nothing."""
        text = self.query.documentation.partition("\nReturns: ")[2].partition("\nReads: ")[0]
        if self.section.unit:
            text = text.replace(*self.section.unit[:2])
        items: list[tuple[str, str]] = []
        for line in text.replace("\n    ", "\n").splitlines():
            left, _, right = line.partition("  ")
            if left:
                items.append((left, right.strip()))
            else:  # The rest of the meaning above.
                items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        return [item for item in items if item[0] not in HIDDEN]

    def window(self, now: datetime) -> str:
        """The window in words."""
        days = int(self.params.get("days") or 0)
        last = f"he last {days} days ({words.span(now - timedelta(days), now)})"
        calendar = f"{len(self.rows)} days ({words.span(now - timedelta(len(self.rows) - 1), now)})"
        return self.section.window.format(trailing="t" + last, Trailing="T" + last, days=days, calendar=calendar)


def render(conninfo: str | None, timeout: float, tz: str) -> str:
    """Run the queries on one snapshot of the database and render the page. See render_report()."""
    with connect(conninfo) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with server_errors(connection, READING), connection.transaction():
            found = connection.execute(NOW, [tz]).fetchone()
            if found is None:
                raise UsageError(f"--tz must be a time zone's name such as Europe/Berlin, not '{tz}'")
            utc, now, tz = found
            answers = [_answer(connection, section, timeout, tz) for section in SECTIONS if section.query in queries()]
            errors = [answer.error for answer in answers if answer.error]
            if len(errors) >= len(answers) - 1:  # table_health needs no privilege.
                raise errors[0]
            change, change_error = _ask(connection, "usage_change", timeout, {})
            weeks = list(weekly_percentiles(connection, timeout, tz))
        heading = {"database": connection.info.dbname, "utc": utc, "now": now, "tz": tz, "change_error": change_error}
        return _html(answers, words.in_unit(change, *HOURS), weeks, heading)


def _answer(connection: psycopg.Connection[Any], section: Section, timeout: float, tz: str) -> Answer:
    asked = queries()[section.query]
    given = {**section.given, **({"tz": tz} if tz != "UTC" and any(param.name == "tz" for param in asked.params) else {})}
    rows, error = _ask(connection, asked.name, timeout, given)
    if "period_start" in (rows or [{}])[0]:
        rows = [{"day": row.pop("period_start").date(), **row} for row in rows]
    # Leave out the days before the first session, but show two weeks.
    while len(rows) > 14 and not rows[0].get("sessions_7d_mean", 1):
        rows.pop(0)
    return Answer(section, asked, given, words.in_unit(rows, *section.unit) if section.unit else rows, error)


def _ask(
    connection: psycopg.Connection[Any], name: str, timeout: float, given: dict[str, Any]
) -> tuple[Rows, SessionStatsError | None]:
    """Run a query in a savepoint, so that one that fails does not end the others' transaction."""
    try:
        with connection.transaction():
            return query(connection, name, timeout=timeout, **given), None
    except SessionStatsError as error:
        if connection.broken:
            raise
        return [], error


def weekly_percentiles(connection: psycopg.Connection[Any], timeout: float, tz: str) -> Iterator[dict[str, Any]]:
    """Yield the percentiles of each of the last twelve whole weeks, with the Monday on which it began."""
    for monday, until in connection.execute(WEEKS, {"tz": tz}).fetchall():
        rows, error = _ask(connection, "session_percentiles", timeout, {"days": 7, "until": until})
        if error:
            return
        yield from ({"day": monday, **row} for row in words.in_unit(rows, *MINUTES))


def _html(answers: list[Answer], change: Rows, weeks: Rows, heading: dict[str, Any]) -> str:
    rows = {answer.query.name: answer.rows for answer in answers} | {"weekly_percentiles": weeks}
    shown = [answer for answer in answers if not (answer.section.optional and answer.error)]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    is_empty = any(one.query.name == "most_active_sessions" and not (one.rows or one.error) for one in answers)
    return environment.get_template("page.html.j2").render(
        heading,
        groups=[(purpose, list(group)) for purpose, group in groupby(shown, lambda one: one.query.purpose)],
        rows=rows,
        change=change,
        is_empty=is_empty,
        words=words,
        week=words.span(heading["now"] - timedelta(7), heading["now"]),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        # The Content-Security-Policy allows the script with this hash and no other.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
