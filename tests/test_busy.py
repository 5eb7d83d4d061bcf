"""migrate on a busy table: a long transaction reads it, and writers go on."""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import APPLICATION, cli, conninfo_of, scalar

import alicia_session_stats as stats

READS_FOR = 8  # Seconds that the long transaction lasts.
PERIOD = 0.02  # Seconds from one write of a writer to its next.
WRITERS = 4


def write_until(stop: threading.Event, conninfo: str, number: int) -> list[float]:
    """Update sessions on a fixed schedule. Seconds that each update ended after it was due."""
    late: list[float] = []
    with stats.connect(conninfo) as connection:
        due = time.monotonic()
        while not stop.is_set():
            connection.execute(
                "UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE conversation_id = %s", [f"ac_{number}"]
            )
            late.append(time.monotonic() - due)
            due += PERIOD
            time.sleep(max(0, due - time.monotonic()))
    return late


@pytest.mark.slow
def test_migrate_waits_for_a_long_reader_and_delays_no_writer_by_a_second(bare: psycopg.Connection[Any]) -> None:
    conninfo = conninfo_of(bare)
    bare.execute(APPLICATION.encode())
    bare.execute("INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(1, 50) AS n")
    bare.execute(
        "INSERT INTO alicia_session_stats (conversation_id) SELECT 'ac_' || 1 + n % 50 FROM GENERATE_SERIES(1, 500) AS n"
    )
    stop = threading.Event()
    with ThreadPoolExecutor() as pool, stats.connect(conninfo) as reader:
        writers = [pool.submit(write_until, stop, conninfo, number) for number in range(1, WRITERS + 1)]
        try:
            with reader.transaction():
                reader.execute("SELECT COUNT(*) FROM alicia_session_stats")
                begun = time.monotonic()
                migrating = pool.submit(cli, "migrate", "--database", conninfo)
                time.sleep(READS_FOR)
            result = migrating.result()
            took = time.monotonic() - begun
        finally:
            stop.set()
        late = [seconds for writer in writers for seconds in writer.result()]
    assert result.returncode == 0, result.stderr
    assert "the table is busy, trying again" in result.stderr
    assert READS_FOR < took < READS_FOR + 15
    p99 = statistics.quantiles(late, n=100)[98]
    print(f"p99 of {len(late)} writes: {p99 * 1000:.0f} ms, the latest {max(late) * 1000:.0f} ms")
    assert p99 < 1
    assert stats.verify(conninfo) == []
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats") == 500
