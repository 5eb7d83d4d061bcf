"""A hot standby answers every reading query while the primary writes, refuses to write, and takes over with an exact rollup.
A logical subscriber that is set up as docs/deploying.md says has the sums of what it received."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import COUNTED, EMBEDDED, KEPT, PROGRAMS, ROOT, cli, pg_dump, scalar
from psycopg.conninfo import make_conninfo
from test_queries import QUERIES, READERS, values

import alicia_session_stats as stats
from alicia_session_stats import embedded
from alicia_session_stats.named_queries import fetch
from alicia_session_stats.query_files import read_query

Connection = psycopg.Connection[Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EMBEDDED, reason="a standby is a copy of the server's files, and TEST_DATABASE_URL gives only SQL"),
]

ROWS = 5000
# About the server's own statistics, which a standby does not share.
LOCAL = {"table_health"}
OWNER = "nobody" if os.geteuid() == 0 else None


@contextmanager
def server(name: str) -> Iterator[tuple[Path, str]]:
    """A server that only this file uses: its home and conninfo."""
    folder = Path(tempfile.mkdtemp(prefix=f"alicia-{name}-"))
    folder.chmod(0o755)

    def call(function: Callable[[], str | None]) -> str | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALICIA_SESSION_STATS_HOME", str(folder / "home"))
            return function()

    try:
        conninfo = call(embedded.start)
        with stats.connect(conninfo) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET wal_level = logical")  # Needs a restart.
        call(embedded.stop)
        conninfo = call(embedded.start)
        assert conninfo is not None
        yield folder / "home", conninfo
    finally:
        call(partial(embedded.stop, remove=True))
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def primary() -> Iterator[tuple[Path, str]]:
    """A server that is migrated and has a sample: its home and conninfo."""
    with server("primary") as (home, conninfo):
        stats.migrate(conninfo)
        fetch(conninfo, read_query(ROOT / "bench" / "sample.sql"), {"rows": ROWS, "last": ROWS}, timeout=120)
        with stats.connect(conninfo) as connection:
            connection.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_sample')")
            connection.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_sample')")
            connection.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT DEFAULT 'user_1'")
        yield home, conninfo


@pytest.fixture
def standby(primary: tuple[Path, str]) -> Iterator[str]:
    """A copy of the primary that follows it, made by `pg_basebackup -R`: its conninfo."""
    home, conninfo = primary
    # As root, the home has a copy of the programs that the server's owner can read.
    programs = next(home.glob("programs/*/*/bin"), PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="alicia-standby-"))
    if OWNER:
        shutil.chown(folder, OWNER)

    def run(program: str, *arguments: str | Path) -> None:
        # Without pipes: the server would keep them open.
        command = [programs / program, *arguments]
        with (folder / "out").open("w") as out:
            subprocess.run(command, user=OWNER, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, timeout=120, check=True)

    data = folder / "data"
    try:
        run("pg_basebackup", "-D", data, "-d", conninfo, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        run("pg_ctl", "-D", data, "-l", folder / "log", "-o", f"-k {folder} -c hot_standby=on", "-w", "start")
        yield make_conninfo(conninfo, host=str(folder))
    finally:
        if (data / "postmaster.pid").exists():
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def wait_until_caught_up(primary: Connection, standby: Connection) -> None:
    written = scalar(primary, "SELECT PG_CURRENT_WAL_LSN()")
    deadline = time.monotonic() + 60
    while not scalar(standby, "SELECT PG_LAST_WAL_REPLAY_LSN() >= %s", written):
        assert time.monotonic() < deadline, "the standby does not catch up"
        time.sleep(0.02)


def assert_exact(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert sorted(connection.execute(KEPT.encode())) == sorted(connection.execute(COUNTED.encode()))


def write_until(stop: threading.Event, conninfo: str) -> int:
    """Insert, update and delete sessions of the whole year. How often."""
    turns = 0
    with stats.connect(conninfo) as connection:
        while not stop.is_set():
            [session] = stats.query(connection, "start_session", conversation_id="ac_sample")
            connection.execute(
                "UPDATE alicia_session_stats "
                "SET message_count = message_count + %s, created_at = created_at - %s * INTERVAL '1 hour' WHERE id = %s",
                [turns % 300, turns % 5000, session["id"]],
            )
            connection.execute(
                "DELETE FROM alicia_session_stats WHERE id = (SELECT MIN(id) FROM alicia_session_stats WHERE id > %s)",
                [session["id"]],
            )
            turns += 1
    return turns


def test_standby_answers_every_query_while_the_primary_writes(primary: tuple[Path, str], standby: str) -> None:
    _, conninfo = primary
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, stats.connect(conninfo) as writing, stats.connect(standby) as reading:
        assert scalar(reading, "SELECT PG_IS_IN_RECOVERY()")
        writer = pool.submit(write_until, stop, conninfo)
        try:
            for _ in range(3):
                for name in READERS:
                    stats.query(standby, name, **values(name, {}))
                assert_exact(reading)
        finally:
            stop.set()
        assert writer.result() > 10

        for name in sorted(set(READERS) - LOCAL):
            given = values(name, {})
            # The windows end now. Ask again if a session left one between the two questions.
            for _ in range(5):
                before = stats.query(conninfo, name, **given)
                wait_until_caught_up(writing, reading)
                answer = stats.query(standby, name, **given)
                if stats.query(conninfo, name, **given) == before:
                    break
            assert answer == before, name
        assert stats.verify(standby) == []


def test_standby_refuses_to_write_in_one_clear_line(standby: str) -> None:
    # rebuild_sessions already fails on the application's tables that this database does not have.
    for name in sorted(QUERIES.keys() - set(READERS) - {"rebuild_sessions"}):
        options = [f"--{param}={value}" for param, value in values(name, {}).items()]
        done = cli("query", name, *options, "--database", standby)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert "during recovery" in done.stderr


def test_promoted_standby_goes_on_with_an_exact_rollup(primary: tuple[Path, str], standby: str) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, stats.connect(standby) as connection:
        writer = pool.submit(write_until, stop, primary[1])
        try:
            time.sleep(1)
            # While the primary still writes.
            assert scalar(connection, "SELECT PG_PROMOTE()")
        finally:
            stop.set()
        assert writer.result() > 10
        assert_exact(connection)

        [session] = stats.query(standby, "start_session", conversation_id="ac_sample")
        stats.query(standby, "record_activity", session_id=session["id"], conversation_id="ac_sample", messages=2_000_000)
        connection.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1 WHERE id <> 'ass_sample'")
        connection.execute("DELETE FROM alicia_session_stats WHERE id = (SELECT MIN(id) FROM alicia_session_stats)")
        assert_exact(connection)
        assert stats.verify(standby) == []
        assert stats.query(standby, "most_active_sessions", limit=1)[0]["message_count"] == 2_000_000


@pytest.fixture(scope="module")
def subscriber_server() -> Iterator[str]:
    with server("subscriber") as (_, conninfo):
        yield conninfo


@pytest.fixture
def subscriber(subscriber_server: str) -> Iterator[str]:
    """An empty database on another server: its conninfo."""
    with stats.connect(subscriber_server) as connection:
        connection.execute("CREATE DATABASE subscriber")
        yield make_conninfo(subscriber_server, dbname="subscriber")
        connection.execute("DROP DATABASE subscriber")


DEPLOYING = (ROOT / "docs" / "deploying.md").read_text()
EVERYTHING = re.findall(r"CREATE PUBLICATION alicia FOR ALL TABLES;", DEPLOYING)
SESSIONS = re.findall(r"CREATE PUBLICATION alicia FOR TABLE [^;]*;", DEPLOYING)
SWITCH_OVER = re.findall(r"SELECT SETVAL\('alicia_session_stats_lowerings'[^;]*;", DEPLOYING)


@contextmanager
def subscribed(publisher: str, publication: list[str], subscriber: str) -> Iterator[tuple[Connection, Connection]]:
    """Connections to a publisher and to its subscriber, after the initial copy."""
    with stats.connect(publisher) as source, stats.connect(subscriber) as target:
        [statement] = publication
        source.execute(statement.encode())
        target.execute(f"CREATE SUBSCRIPTION alicia CONNECTION '{publisher}' PUBLICATION alicia".encode())
        try:
            deadline = time.monotonic() + 30
            while scalar(target, "SELECT COUNT(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"):
                assert time.monotonic() < deadline, "the initial copy does not end"
                time.sleep(0.1)
            yield source, target
        finally:
            target.execute("DROP SUBSCRIPTION IF EXISTS alicia")
            source.execute("DROP PUBLICATION alicia")


def wait_until_received(source: Connection, target: Connection) -> None:
    newest = "SELECT ROW(COUNT(*), MAX(updated_at), SUM(message_count))::TEXT FROM alicia_session_stats"
    deadline = time.monotonic() + 60
    while scalar(source, newest) != scalar(target, newest):
        assert time.monotonic() < deadline, "the subscriber does not catch up"
        time.sleep(0.1)


def test_subscriber_to_all_tables_is_exact_while_the_publisher_writes(primary: tuple[Path, str], subscriber: str) -> None:
    _, publisher = primary
    schema = pg_dump(publisher)
    done = subprocess.run(
        [PROGRAMS / "psql", subscriber, "-X", "-q"], input=schema, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, subscribed(publisher, EVERYTHING, subscriber) as (source, target):
        writer = pool.submit(write_until, stop, publisher)
        try:
            for _ in range(30):
                assert_exact(target)
                time.sleep(0.05)
        finally:
            stop.set()
        assert writer.result() > 10
        wait_until_received(source, target)
        assert stats.verify(subscriber) == []

        # The subscriber takes over.
        target.execute("DROP SUBSCRIPTION alicia")
        [statement] = SWITCH_OVER
        target.execute(statement.encode())
        target.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
        assert_exact(target)
        assert stats.verify(subscriber) == []


def test_migrated_subscriber_to_the_sessions_is_exact_after_a_repair(primary: tuple[Path, str], subscriber: str) -> None:
    _, publisher = primary
    stats.migrate(subscriber)
    with stats.connect(subscriber) as application:
        application.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
    with subscribed(publisher, SESSIONS, subscriber) as (source, target):
        source.execute("UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE id < 'ass_5'")
        wait_until_received(source, target)
        assert stats.verify(subscriber) != []
        target.execute("SELECT FROM alicia_session_stats_repair()")
        assert_exact(target)
        assert stats.verify(subscriber) == []
