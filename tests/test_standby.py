"""A real hot standby answers every reading query while the primary writes, refuses to write, and takes over with exact sums."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import COUNTED, EMBEDDED, KEPT, PROGRAMS, ROOT, cli, scalar
from psycopg.conninfo import make_conninfo
from test_queries import QUERIES, READERS, values

import runner

Connection = psycopg.Connection[Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not EMBEDDED, reason="a standby copies the embedded server: TEST_DATABASE_URL names one that is not ours to copy"
    ),
]

ROWS = 5000
# The standby has statistics of its own: those of the server, of this answer, are not the primary's.
OWN = {"table_health"}
OWNER = "nobody" if os.geteuid() == 0 else None


def server(home: Path, option: str = "") -> str:
    """Start (or stop, or remove) the embedded server of this home; its conninfo."""
    command = [sys.executable, str(ROOT / "runner.py"), "embedded", *option.split()]
    environment = {**os.environ, "ALICIA_SESSION_STATS_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


@pytest.fixture(scope="module")
def primary() -> Iterator[tuple[Path, str]]:
    """A server of this file's own, migrated and with a sample: its home and conninfo."""
    folder = Path(tempfile.mkdtemp(prefix="alicia-primary-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "home"
    try:
        conninfo = server(home)
        runner.migrate(conninfo)
        runner.run_query(conninfo, runner.read_query(ROOT / "bench" / "sample.sql"), {"rows": ROWS, "last": ROWS}, timeout=120)
        with runner.connect(conninfo) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_sample')")
            connection.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_sample')")
        yield home, conninfo
    finally:
        server(home, "--remove")
        shutil.rmtree(folder)


@pytest.fixture
def standby(primary: tuple[Path, str]) -> Iterator[str]:
    """A copy of the primary that follows it, as `pg_basebackup -R` makes one: its conninfo."""
    home, conninfo = primary
    # Where the server's owner can read the programs: the home's own copy of them, where root made one.
    programs = next(home.glob("programs/*/*/bin"), PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="alicia-standby-", dir="/tmp"))
    if OWNER:
        shutil.chown(folder, OWNER)

    def run(program: str, *arguments: str | Path) -> None:
        command = [programs / program, *arguments]
        subprocess.run(command, user=OWNER, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)

    data = folder / "data"
    try:
        run("pg_basebackup", "-D", data, "-d", conninfo, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        started = ("-D", data, "-l", folder / "log", "-o", f"-k {folder} -c hot_standby=on")
        # Not with pipes: the server would keep them open.
        subprocess.run(
            [programs / "pg_ctl", *started, "-w", "start"], user=OWNER, cwd=folder, stdout=subprocess.DEVNULL, check=True
        )
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
        assert set(connection.execute(KEPT.encode()).fetchall()) == set(connection.execute(COUNTED.encode()).fetchall())


def write_until(stop: threading.Event, conninfo: str) -> int:
    """Insert, update and delete sessions, of now and of all the year; how often."""
    turns = 0
    with runner.connect(conninfo) as connection:
        while not stop.is_set():
            [session] = runner.query(conninfo, "start_session", conversation_id="ac_sample")
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


def test_every_query_answers_on_a_standby_while_the_primary_writes(primary: tuple[Path, str], standby: str) -> None:
    _, conninfo = primary
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, runner.connect(conninfo) as writing, runner.connect(standby) as reading:
        assert scalar(reading, "SELECT PG_IS_IN_RECOVERY()")
        writer = pool.submit(write_until, stop, conninfo)
        try:
            for _ in range(3):
                for name in READERS:
                    runner.run_query(standby, QUERIES[name], values(name, {}))
                # In whatever state it shows.
                assert_exact(reading)
        finally:
            stop.set()
        assert writer.result() > 10

        for name in sorted(set(READERS) - OWN):
            given = values(name, {})
            # The windows end now: again, should a session have left one meanwhile.
            for _ in range(5):
                before = runner.run_query(conninfo, QUERIES[name], given)
                wait_until_caught_up(writing, reading)
                answer = runner.run_query(standby, QUERIES[name], given)
                if runner.run_query(conninfo, QUERIES[name], given) == before:
                    break
            assert answer == before, name
        assert runner.verify(standby) == []


def test_a_standby_refuses_to_write_in_one_clear_line(standby: str) -> None:
    # rebuild_sessions is refused for the tables that it reads, before it could be for what it writes.
    for name in sorted(QUERIES.keys() - set(READERS) - {"rebuild_sessions"}):
        options = [f"--{param}={value}" for param, value in values(name, {}).items()]
        done = cli("query", name, *options, "--database", standby)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert "during recovery" in done.stderr


def test_a_standby_that_is_promoted_goes_on_with_exact_sums(primary: tuple[Path, str], standby: str) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, runner.connect(standby) as connection:
        writer = pool.submit(write_until, stop, primary[1])
        time.sleep(1)
        # While the primary still writes: what the standby has got by then, and no more, is there.
        assert scalar(connection, "SELECT PG_PROMOTE()")
        stop.set()
        assert writer.result() > 10
        assert_exact(connection)

        [session] = runner.query(standby, "start_session", conversation_id="ac_sample")
        runner.query(standby, "record_activity", session_id=session["id"], messages=2_000_000)
        connection.execute("UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1 WHERE id <> 'ass_sample'")
        connection.execute("DELETE FROM alicia_session_stats WHERE id = (SELECT MIN(id) FROM alicia_session_stats)")
        assert_exact(connection)
        corrections = connection.execute("SELECT * FROM alicia_session_stats_repair()").fetchall()
        assert corrections == [("quarter hours", 0), ("leaders", 0)]
        assert runner.query(standby, "most_active_sessions", limit=1)[0]["message_count"] == 2_000_000
