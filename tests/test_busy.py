"""migrate on a busy database: a long reader holds the table, writers go on."""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import cli, conninfo_of, scalar

import runner
from bench.chaos import HOST

HELD = 20  # Seconds for which a transaction holds the table.
EVERY = 0.02  # Seconds from one write of a writer to its next.
WRITERS = 4


def write_until(stop: threading.Event, conninfo: str, number: int) -> list[float]:
    """Update a row on a fixed schedule; seconds from when each was due, so that a wait counts for all behind it."""
    waited: list[float] = []
    with runner.connect(conninfo) as connection:
        due = time.monotonic()
        while not stop.is_set():
            connection.execute(
                "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE conversation_id = %s", [f"ac_{number}"]
            )
            waited.append(time.monotonic() - due)
            due += EVERY
            time.sleep(max(0, due - time.monotonic()))
    return waited


@pytest.mark.slow
def test_writers_keep_a_p99_under_a_second_while_migrate_waits_for_a_long_reader(bare: psycopg.Connection[Any]) -> None:
    conninfo = conninfo_of(bare)
    bare.execute(HOST)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, runner.connect(conninfo) as reader:
        writers = [pool.submit(write_until, stop, conninfo, number) for number in range(1, WRITERS + 1)]
        with reader.transaction():
            reader.execute("SELECT COUNT(*) FROM alicia_session_stats")
            begun = time.monotonic()
            migrating = pool.submit(cli, "migrate", "--database", conninfo)
            time.sleep(HELD)
        result = migrating.result()
        took = time.monotonic() - begun
        stop.set()
        waited = [seconds for writer in writers for seconds in writer.result()]
    assert result.returncode == 0, result.stderr
    assert "the table is busy, trying again" in result.stderr
    assert HELD < took < HELD + 15
    p99 = statistics.quantiles(waited, n=100)[98]
    print(f"p99 of {len(waited)} writes: {p99 * 1000:.0f} ms, the longest {max(waited) * 1000:.0f} ms")
    assert p99 < 1
    assert runner.verify(conninfo) == []
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats") == 500
