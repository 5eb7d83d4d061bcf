"""The command purge says what it would delete, asks, and refuses what looks like a mistake."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import ROOT, cli, conninfo_of, scalar

Database = psycopg.Connection[Any]
COUNT = "SELECT COUNT(*) FROM alicia_session_stats"
FOUND = "3 sessions, 30.00 percent of all, began more than 100 days ago: from 2020-01-01 to 2020-01-03"


@pytest.fixture
def old(db: Database, insert: Callable[..., str]) -> Database:
    """A database in which three of ten sessions are old."""
    for day in (1, 2, 3):
        insert(created_at=f"2020-01-0{day}")
    for _ in range(7):
        insert()
    return db


def on_terminal(db: Database, answer: str, *arguments: str) -> tuple[int, str]:
    """Run purge with a terminal as its stdin. Returns the exit code and stderr."""
    ours, theirs = pty.openpty()
    command = [sys.executable, ROOT / "runner.py", "purge", *arguments, "--database", conninfo_of(db)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.write(ours, answer.encode())
        out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert out == ""
    return process.returncode, err


def test_dry_run_shows_rows_age_and_share_and_deletes_nothing(old: Database) -> None:
    done = cli("purge", "--days", "100", "--dry-run", "--database", conninfo_of(old))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{FOUND}\n", "")
    assert scalar(old, COUNT) == 10


@pytest.mark.parametrize(("answer", "code", "said", "left"), [("y\n", 0, "3 sessions deleted", 7), ("\n", 1, "nothing was", 10)])
def test_it_asks_on_a_terminal(old: Database, answer: str, code: int, said: str, left: int) -> None:
    returned, err = on_terminal(old, answer, "--days", "100")
    assert err.startswith(f"{FOUND}. Delete them? [y/N] ")
    assert said in err
    assert (returned, scalar(old, COUNT)) == (code, left)


def test_without_a_terminal_it_needs_yes(old: Database) -> None:
    refused = cli("purge", "--days", "100", "--database", conninfo_of(old), stdin=subprocess.DEVNULL)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert f"{FOUND}. There is no terminal" in refused.stderr
    assert scalar(old, COUNT) == 10
    done = cli("purge", "--days", "100", "--yes", "--batch", "2", "--database", conninfo_of(old), stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{FOUND}\n3 sessions deleted\n")
    assert scalar(old, COUNT) == 7


def test_more_than_half_of_the_table_needs_yes_also_on_a_terminal(old: Database) -> None:
    old.execute("DELETE FROM alicia_session_stats WHERE created_at > '2021-01-01'")
    code, err = on_terminal(old, "y\n", "--days", "100")
    assert (code, err.count("\n"), scalar(old, COUNT)) == (2, 1, 3)
    assert "To delete more than half of the table, pass --yes" in err
    assert cli("purge", "--days", "100", "--yes", "--database", conninfo_of(old)).returncode == 0
    assert scalar(old, COUNT) == 0


def test_nothing_old_is_no_error_and_asks_nothing(old: Database) -> None:
    done = cli("purge", "--days", "9000", "--database", conninfo_of(old), stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no session began more than 9000 days ago\n")


def test_progress_is_told_while_batches_take_long(old: Database) -> None:
    old.execute("""
        CREATE FUNCTION slow() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN PERFORM PG_SLEEP(1.1); RETURN NULL; END $$;
        CREATE TRIGGER slow AFTER DELETE ON alicia_session_stats EXECUTE FUNCTION slow();
    """)
    done = cli("purge", "--days", "100", "--yes", "--batch", "1", "--database", conninfo_of(old))
    assert done.stderr.splitlines()[1:] == [
        "1 of 3 sessions deleted (33 percent)",
        "2 of 3 sessions deleted (66 percent)",
        "3 sessions deleted",
    ]


def test_sessions_at_minus_infinity_are_purged_too(old: Database, insert: Callable[..., str]) -> None:
    insert(created_at="-infinity")
    done = cli("purge", "--days", "100", "--yes", "--database", conninfo_of(old))
    assert (done.returncode, scalar(old, COUNT)) == (0, 7), done.stderr
    assert "from 2020-01-01 to 2020-01-03" in done.stderr  # No driver but psql can read a time before the year 1.
