"""The command line: parse, call, print."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import psycopg

from alicia_session_stats import SessionStatsError, migrate, plan, queries, rollback, status, verify
from alicia_session_stats.arguments import describe_type, parse
from alicia_session_stats.database import PROGRAM, libpq_environment, one_line, start_embedded_server
from alicia_session_stats.embedded import stop, wheel_programs
from alicia_session_stats.named_queries import fetch
from alicia_session_stats.output import Format, write_rows
from alicia_session_stats.purge import purge
from alicia_session_stats.query_files import Query, find_query
from alicia_session_stats.report import write_report
from alicia_session_stats.verification import check_objects
from alicia_session_stats.wording import counted

log = logging.getLogger("alicia_session_stats")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None is those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 migrations pending, 4 another migrator holds the lock.
    """
    handler = logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - None when the shell closed it: >&-
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    command = ""
    try:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            command = arguments.command
            return COMMANDS[command](arguments) or 0
        finally:
            sys.stdout.flush()
    except SessionStatsError as error:
        return fail(str(error), error.exit_code)
    except psycopg.Error as error:
        return fail(one_line(error))
    except KeyboardInterrupt:
        advice = ". Every completed step is recorded; run migrate again to continue" if command == "migrate" else ""
        return fail(f"interrupted{advice}", 130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more when it exits.
        if isinstance(error, BrokenPipeError):
            return 0  # The reader has seen enough.
        return fail(str(error.strerror))
    finally:
        log.removeHandler(handler)


def fail(message: str, exit_code: int = 1) -> int:
    """Say what went wrong on stderr, and return the exit code. What may be a URL with a password is not shown."""
    safe = re.sub(r"\S*(://|password=).*", "(hidden, it may hold a password; --database takes a URL)", message, flags=re.S)
    print(f"{PROGRAM}: {safe}", file=sys.stderr)
    return exit_code


# The commands. Each returns its exit code; None is 0.


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
    return 0


def run_verify(a: Namespace) -> int:
    rows = verify(a.database)
    if rows or a.format != "table":
        print_dicts(["object", "found", "expected", "fix"], rows, a.format)
    log.info("%s", counted(len(rows), "difference") if rows else "no differences")
    return 1 if rows else 0


def print_dicts(columns: Sequence[str], rows: Sequence[dict[str, Any]], style: Format) -> None:
    write_rows(sys.stdout, columns, [[row[column] for column in columns] for row in rows], style)


def run_queries(a: Namespace) -> None:
    listed = queries().values()
    if a.format != "table":
        rows = [(query.purpose, query.name, query.summary, parameters(query)) for query in listed]
        write_rows(sys.stdout, ["purpose", "query", "answers", "parameters"], rows, a.format)
        return
    for purpose, of_purpose in groupby(listed, lambda query: query.purpose):
        print(purpose.capitalize())
        for query in of_purpose:
            print(f"  {query.name}  {parameters(query)}".rstrip(), f"      {query.summary}", sep="\n")


def parameters(query: Query) -> str:
    return ", ".join(f"{param.name} ({describe_type(param)})" for param in query.params)


def run_query(a: Namespace) -> None:
    query = find_query(a.query)
    params = {param.name: getattr(a, f"param:{param.name}") for param in query.params}
    explain = ""
    if a.explain:
        # ANALYZE would run a statement that writes.
        analyze = "" if query.writes else "ANALYZE, BUFFERS, "
        explain = f"EXPLAIN ({analyze}FORMAT {'JSON' if a.format == 'json' else 'TEXT'}) "
    columns, rows = fetch(a.database, query, params, timeout=a.timeout, explain=explain)
    write_rows(sys.stdout, columns, rows, a.format)


def run_report(a: Namespace) -> None:
    write_report(a.output, a.database, timeout=a.timeout)
    log.info("wrote %s", a.output)


def run_purge(a: Namespace) -> None:
    purge(a.database, days=a.days, batch=a.batch)


def run_psql(a: Namespace) -> None:
    environment = libpq_environment(a.database)
    programs = wheel_programs()
    program = shutil.which("psql") or (programs and shutil.which("psql", path=str(programs)))
    if program is None:
        raise SessionStatsError("psql is not installed: install PostgreSQL's client programs")
    os.execve(program, ["psql", *a.for_psql], {**os.environ, **environment})


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
    "psql": run_psql,
    "embedded": run_embedded,
}

if __name__ == "__main__":
    sys.exit(main())
