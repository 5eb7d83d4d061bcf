"""Load a sample into the embedded server and show what every named query answers: python -m bench.demo ROWS"""

import sys
from pathlib import Path

from tqdm import tqdm

import runner
from alicia_session_stats import connect, embedded, queries
from alicia_session_stats.named_queries import fetch
from alicia_session_stats.query_files import read_query

BATCH = 2000


def load(conninfo: str, rows: int) -> None:
    """Load a sample of so many sessions, in batches, with a progress bar on stderr."""
    sample = read_query(Path(__file__).with_name("sample.sql"))
    with tqdm(total=rows, unit=" sessions", desc="loading the sample") as progress:
        for first in range(1, rows + 1, BATCH):
            last = min(first + BATCH - 1, rows)
            fetch(conninfo, sample, {"rows": rows, "first": first, "last": last}, timeout=600)
            progress.update(last - first + 1)
    with connect(conninfo) as connection:
        connection.execute("ANALYZE alicia_conversations, alicia_session_stats")


def show(conninfo: str) -> None:
    """Run every query that only reads, under its purpose, its name and its one line."""
    with connect(conninfo) as connection:
        several = connection.execute(
            "SELECT conversation_id FROM alicia_session_stats GROUP BY 1 HAVING COUNT(*) <= 5 ORDER BY COUNT(*) DESC, 1 LIMIT 1"
        ).fetchone()
    purpose = ""
    for query in queries().values():
        # The sample has no users.
        if query.writes or query.name == "active_users" or query.name.startswith("verify"):
            continue
        if query.purpose != purpose:
            purpose = query.purpose
            print(f"\n\n{purpose.upper()}")
        needed = ["--conversation-id", several[0]] if several and query.name == "session_stats" else []
        if query.name == "list_sessions":
            needed = ["--limit", "5"]
        print(f"\n{query.name}: {query.summary}\n", flush=True)
        runner.main(["query", query.name, *needed, "--database", conninfo])


if __name__ == "__main__":
    database = embedded.start()
    runner.main(["migrate", "--database", database])
    load(database, int(sys.argv[1]))
    show(database)
