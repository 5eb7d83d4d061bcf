"""The server of the benchmark, and the same sessions in the bare schema, in ours and in DuckDB."""

import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from tqdm import tqdm

from alicia_session_stats import embedded, migrate
from alicia_session_stats.named_queries import fetch
from alicia_session_stats.query_files import read_query

HERE = Path(__file__).parent
BATCH = 2000  # Sessions of the sample that one statement makes.
CHUNKS = 10  # Of the load, in turns.
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h"}  # And fsync, as it is.
COLUMNS = """
    id TEXT, conversation_id TEXT, message_count INTEGER, tool_call_count INTEGER, memories_used INTEGER,
    session_duration_seconds INTEGER, created_at TIMESTAMP, updated_at TIMESTAMP
"""
STAGING = f"""
    CREATE UNLOGGED TABLE alicia_conversations (id TEXT); -- No key: two loaders would wait for each other.
    CREATE UNLOGGED TABLE alicia_session_stats ({COLUMNS});
"""
EXPORTED = {
    "conversations": "SELECT DISTINCT id FROM alicia_conversations",
    "sessions": "SELECT * FROM alicia_session_stats ORDER BY created_at, id",
}
SIZES = """
    SELECT c.relname, CASE c.relkind WHEN 'r' THEN PG_TABLE_SIZE(c.oid) ELSE PG_RELATION_SIZE(c.oid) END
    FROM pg_class AS c
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    INNER JOIN pg_class AS t ON t.oid = COALESCE(i.indrelid, c.oid)
    WHERE t.relname ~ '^alicia_session_stats(_rollup|_top_candidates|_top_cutoff|_summaries)?$' AND c.relkind IN ('r', 'i')
    ORDER BY t.oid, c.relkind DESC, c.oid
"""

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Size:
    """The same sessions in each of the systems."""

    rows: int
    bare: Connection
    ours: Connection
    duck: duckdb.DuckDBPyConnection


@contextmanager
def workplace(given: str | None) -> Iterator[tuple[Path, str]]:
    """A temporary folder and a server, for as long as the block runs: the one that is given, else one in the folder."""
    folder = Path(tempfile.mkdtemp(prefix="alicia-bench-"))
    folder.chmod(0o755)
    if given is None:
        for variable in [name for name in os.environ if name.startswith("PG")]:
            del os.environ[variable]
    os.environ |= {"ALICIA_SESSION_STATS_HOME": str(folder), "PGSERVER_POSTGRES_VERSION": "18"}
    try:
        if given is not None:
            yield folder, given
            return
        with psycopg.connect(embedded.start(), autocommit=True) as admin:
            for name, value in SETTINGS.items():
                admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        embedded.stop()
        yield folder, embedded.start()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # The second Ctrl-C, too, leaves nothing behind.
        if given is None:
            embedded.stop()
        shutil.rmtree(folder)


def create(server: str, name: str) -> Connection:
    """A connection, in autocommit mode, to a new database."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(f"CREATE DATABASE {name}")
    return psycopg.connect(server, dbname=name, autocommit=True)


def export_sample(server: str, folder: Path, rows: int) -> list[Path]:
    """Make a sample of so many sessions, two batches at a time: files of its conversations and of its sessions."""
    sample = read_query(HERE / "sample.sql")
    files = [folder / f"{name}_{rows}.csv" for name in EXPORTED]
    with create(server, f"staging_{rows}") as staging, ThreadPoolExecutor(2) as pool, progress(rows, "sample") as bar:
        staging.execute(STAGING)

        def make(first: int) -> int:
            last = min(first + BATCH - 1, rows)
            fetch(staging.info.dsn, sample, {"rows": rows, "first": first, "last": last}, timeout=600)
            return last - first + 1

        for made in pool.map(make, range(1, rows + 1, BATCH)):
            bar.update(made)
        for file, query in zip(files, EXPORTED.values(), strict=True):
            with file.open("wb") as out, staging.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT csv)") as copy:
                out.writelines(copy)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE staging_{rows} WITH (FORCE)")
    return files


def load(server: str, folder: Path, rows: int) -> tuple[Size, list[tuple[float, float]]]:
    """Load a sample into each of the systems: these, and the seconds of each chunk, the bare schema's and ours."""
    conversations, sessions = export_sample(server, folder, rows)
    size = Size(rows, create(server, f"bare_{rows}"), create(server, f"ours_{rows}"), duckdb.connect(folder / f"{rows}.duckdb"))
    size.bare.execute((HERE / "bare.sql").read_text())
    migrate(size.ours.info.dsn)
    for connection in (size.bare, size.ours):
        copy_in(connection, "alicia_conversations", conversations.read_bytes())

    seconds: list[tuple[float, float]] = []
    with sessions.open("rb") as lines, progress(2 * rows, "COPY") as bar:
        while chunk := b"".join(islice(lines, math.ceil(rows / CHUNKS))):
            taken = {}
            for connection in in_turns((size.bare, size.ours), len(seconds)):
                taken[connection] = copy_in(connection, "alicia_session_stats", chunk)
                bar.update(chunk.count(b"\n"))
            seconds.append((taken[size.bare], taken[size.ours]))
    for connection in (size.bare, size.ours):
        connection.execute("VACUUM ANALYZE")

    size.duck.execute(f"CREATE TABLE alicia_session_stats ({COLUMNS})")
    size.duck.execute(f"COPY alicia_session_stats FROM '{sessions}' (FORMAT csv, HEADER FALSE)")
    size.duck.execute("CREATE INDEX idx_session_stats_conversation ON alicia_session_stats (conversation_id)")
    size.duck.execute("CHECKPOINT")
    conversations.unlink()
    sessions.unlink()
    return size, seconds


def copy_in(connection: Connection, table: str, csv: bytes) -> float:
    """COPY, with its commit; returns the seconds."""
    begun = time.perf_counter()
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
        copy.write(csv)
    return time.perf_counter() - begun


def summarize(size: Size) -> float:
    """Summarize all days; returns the seconds."""
    begun = time.perf_counter()
    while size.ours.execute("SELECT remaining_days FROM alicia_session_stats_summarize()").fetchone()[0]:
        pass
    seconds = time.perf_counter() - begun
    size.ours.execute("VACUUM ANALYZE alicia_session_stats_summaries")
    return seconds


def measure_sizes(database: Connection) -> dict[str, int]:
    sizes = {str(name): int(size) for name, size in database.execute(SIZES)}
    (sessions,) = database.execute("SELECT COUNT(*) FROM alicia_session_stats").fetchone()
    return {**sizes, "bytes per session": round(sum(sizes.values()) / sessions)}


def progress(total: int, text: str, unit: str = "rows") -> tqdm:
    return tqdm(total=total, unit=f" {unit}", desc=text)


def in_turns(several: Sequence[Any], turn: int) -> Sequence[Any]:
    """The one order in one turn, the other in the next."""
    return several[:: -1 if turn % 2 else 1]
