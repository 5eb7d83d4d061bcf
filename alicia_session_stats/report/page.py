"""The page: runs the named queries, pairs each answer with its chart, and renders page.html.j2."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import psycopg

from alicia_session_stats.database import PROGRAM, READING, connect, server_errors
from alicia_session_stats.named_queries import query
from alicia_session_stats.query_files import Query, queries
from alicia_session_stats.report.charts import CHARTS
from alicia_session_stats.report.vega import Rows

HERE = Path(__file__).parent
# session_stats needs a conversation, list_sessions is an export, active_users needs users; the others check the database.
LEFT_OUT = ("session_stats", "list_sessions", "active_users", "verify", "verify_rollup")
# The parameters that are not the default. A query that is listed twice has two sections.
GIVEN: dict[str, tuple[dict[str, str], ...]] = {
    "usage_over_time": ({"days": "90"},),  # As many days as the forecast beside it learns from.
    "metric_usage": ({"metric": "tool_calls"}, {"metric": "memories"}),
}


@dataclass(frozen=True)
class Section:
    """A named query with its answer. Its column bar, a bar of characters for a terminal, is not shown."""

    query: Query
    given: dict[str, str]
    rows: Rows

    @property
    def names(self) -> list[str]:
        """The name of the query, and the metric where the query has a section for each."""
        return [self.query.name, self.given["metric"]] if "metric" in self.given else [self.query.name]

    @property
    def id(self) -> str:
        """The address on the page: metric_usage_tool_calls."""
        return "_".join(self.names)

    @property
    def title(self) -> str:
        """The name for people: Metric usage: tool calls."""
        return ": ".join(self.names).replace("_", " ").capitalize()

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
        names = [name for name in (self.rows or [{}])[0] if name != "bar"]
        return [(name, any(_is_number(row[name]) for row in self.rows)) for name in names]

    @property
    def returns(self) -> list[tuple[str, str]]:
        """What the query file says of its rows: columns and their meaning, or a sentence and nothing."""
        text = self.query.documentation.partition("\nReturns: ")[2].partition("\nReads: ")[0]
        items: list[tuple[str, str]] = []
        for line in text.replace("\n    ", "\n").splitlines():
            left, _, right = line.partition("  ")
            if left:
                items.append((left, right.strip()))
            else:  # The rest of the meaning above.
                items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        return [item for item in items if item[0] != "bar"]


def render(conninfo: str | None, timeout: float) -> str:
    """Run the queries on one snapshot of the database and render the page.

    Args:
        conninfo: the database, or None for the configured one.
        timeout: the seconds that each query may take; 0 is no limit.

    Raises:
        SessionStatsError: the database cannot be read.
    """
    with connect(conninfo) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with server_errors(connection, READING), connection.transaction():
            [[now]] = connection.execute("SELECT NOW() AT TIME ZONE 'UTC'").fetchall()
            sections = _sections(connection, timeout)
        return _html(sections, connection.info.dbname, now)


def _sections(connection: psycopg.Connection[Any], timeout: float) -> list[Section]:
    return [
        Section(asked, given, query(connection, asked.name, timeout=timeout, **given))
        for asked in queries().values()
        if not asked.writes and asked.name not in LEFT_OUT
        for given in GIVEN.get(asked.name, ({},))
    ]


def _html(sections: list[Section], database: str, now: datetime) -> str:
    by_name = {section.query.name: section for section in sections}
    answers = {name: section.rows for name, section in by_name.items()}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        purposes=[(purpose, list(group)) for purpose, group in groupby(sections, lambda section: section.query.purpose)],
        charts={name: chart(answers) for name, chart in CHARTS.items()},
        change=by_name["usage_change"],
        empty=not answers["most_active_sessions"],
        database=database,
        now=now,
        show=_show,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        # The Content-Security-Policy allows the script with this hash and no other.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _show(value: Any) -> str:
    """Return a value for people: thousands separated, two decimals at most."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal | float):
        return min(f"{value:,f}", f"{value:,.2f}", key=len)
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
