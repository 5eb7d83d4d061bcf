"""The commands: each calls one function and prints what it returns. Each returns its exit code; None is 0."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from alicia_session_stats import SessionStatsError, UsageError, migrate, plan, queries, rollback, status, verify
from alicia_session_stats.database import start_embedded_server
from alicia_session_stats.embedded import stop
from alicia_session_stats.named_queries import fetch_text
from alicia_session_stats.output import TEXT, TIMESTAMP, Column, Format, write_rows
from alicia_session_stats.prometheus import write_gauge, write_metrics
from alicia_session_stats.psql import replace_by_psql
from alicia_session_stats.purge import purge
from alicia_session_stats.query_files import Query, find_query
from alicia_session_stats.recording import attach, attached_gap, detach
from alicia_session_stats.report import write_report
from alicia_session_stats.verification import check_objects
from alicia_session_stats.wording import counted

log = logging.getLogger(__name__)


def run_migrate(a: Namespace) -> None:
    if a.plan:
        print_plan(plan(a.database))
    else:
        migrate(a.database, wait=a.wait, lock_wait=a.lock_wait)


def run_rollback(a: Namespace) -> None:
    if a.plan:
        print_plan(plan(a.database, direction="rollback", steps=a.steps))
    else:
        rollback(a.database, steps=a.steps, allow_data_loss=a.allow_data_loss, wait=a.wait, lock_wait=a.lock_wait)


def print_plan(sql: str) -> None:
    sys.stdout.write(sql)
    if not sql:
        log.info("nothing to do")


def run_status(a: Namespace) -> int:
    rows = status(a.database)
    print_dicts(["migration", "state", "applied_at"], rows, a.format)
    states = [row["state"] for row in rows]
    if "edited" in states:
        raise SessionStatsError("a file was edited after it was applied. Run verify for the fix")
    if "pending" in states:
        return 3
    check_objects(a.database)
    gap = attached_gap(a.database)
    if gap is not None:
        log.info("sessions are recorded live, with a gap of %s minutes", gap)
    return 0


def run_verify(a: Namespace) -> int:
    rows = verify(a.database, days=a.days, until=a.until)
    if a.format == "prometheus":  # The number says it. A cron job that stops at an error would leave the old one.
        write_gauge(sys.stdout, "verify_differences", "Differences that the command verify has found.", len(rows))
        return 0
    if rows or a.format != "table":
        print_dicts(["object", "found", "expected", "fix"], rows, a.format)
    log.info("%s", counted(len(rows), "difference") if rows else "no differences")
    return 1 if rows else 0


def print_dicts(columns: Sequence[str], rows: Sequence[dict[str, Any]], style: Format) -> None:
    typed = [Column(name, TIMESTAMP if name.endswith("_at") else TEXT) for name in columns]
    write_rows(sys.stdout, typed, [[None if row[name] is None else str(row[name]) for name in columns] for row in rows], style)


def run_queries(a: Namespace) -> None:
    listed = queries().values()
    if a.format != "table":
        names = ("purpose", "query", "answers", "parameters")
        rows = [(query.purpose, query.name, query.summary, parameters(query)) for query in listed]
        write_rows(sys.stdout, [Column(name) for name in names], rows, a.format)
        return
    for purpose, of_purpose in groupby(listed, lambda query: query.purpose):
        print(purpose.capitalize())
        for query in of_purpose:
            print(f"  {query.name}  {parameters(query)}".rstrip(), f"      {query.summary}", sep="\n")


def parameters(query: Query) -> str:
    return ", ".join(f"{param.name} ({param.kind})" for param in query.params)


def run_query(a: Namespace) -> None:
    query = find_query(a.query)
    if a.sql:
        print(query.described_sql())
        return
    given = {param.name: getattr(a, f"param:{param.name}") for param in query.params}
    given = {name: value for name, value in given.items() if value is not None} | dict(a.variables)
    explain = ""
    if a.explain:
        if a.format == "prometheus":
            raise UsageError("a plan has no metrics: leave out --explain or --format")
        # ANALYZE would run a statement that writes.
        analyze = "" if query.writes else "ANALYZE, BUFFERS, "
        explain = f"EXPLAIN ({analyze}FORMAT {'JSON' if a.format == 'json' else 'TEXT'}) "
    columns, rows = fetch_text(a.database, query, given, timeout=a.timeout, explain=explain)
    if a.format == "prometheus":
        write_metrics(sys.stdout, query, given, columns, rows)
    else:
        write_rows(sys.stdout, columns, rows, a.format)


def run_report(a: Namespace) -> None:
    write_report(a.output, a.database, timeout=a.timeout, tz=a.tz)
    log.info("wrote %s", a.output)


def run_purge(a: Namespace) -> None:
    purge(a.database, days=a.days, batch=a.batch, dry_run=a.dry_run, yes=a.yes)


def run_attach(a: Namespace) -> None:
    attach(a.database, gap_minutes=a.gap_minutes)


def run_detach(a: Namespace) -> None:
    detach(a.database)


def run_psql(a: Namespace) -> None:
    replace_by_psql(a.database, a.for_psql)


def run_embedded(a: Namespace) -> None:
    if a.stop or a.remove:
        stop(remove=a.remove)
    else:
        print(start_embedded_server())


COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "migrate": run_migrate,
    "rollback": run_rollback,
    "status": run_status,
    "verify": run_verify,
    "queries": run_queries,
    "query": run_query,
    "report": run_report,
    "purge": run_purge,
    "attach": run_attach,
    "detach": run_detach,
    "psql": run_psql,
    "embedded": run_embedded,
}
