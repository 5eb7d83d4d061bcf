"""scale/citus.sql on a real Citus cluster: the queries answer as on one machine, the rollup is exact, and there is a way back."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import COUNTED, EVENTS, KEPT, ROOT, SERVER, cli, pg_dump, psql, scalar
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_queries import QUERIES, READERS, values

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]

CLUSTER = os.environ.get("TEST_CITUS_URL") or make_conninfo(**SERVER)
SCALE = ROOT / "scale"
ROWS = 3000
WRITERS = 8
LOCAL = {"table_health"}  # Reads the catalog of the coordinator.
REFUSED = {"delete_sessions_before": {"days": 30}, "rebuild_sessions": {}}
# After each the rollup must be exact: before the transaction ends, after its rollback, and after its commit.
WRITES = {
    "one session": "INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', 3)",
    "many sessions": "INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at) "
    "SELECT 'ass_' || i, 'ac_' || 1 + i % 20, i % 7, NOW() - i * INTERVAL '5 hours' FROM GENERATE_SERIES(1, 100) AS i",
    "sessions of sessions": "INSERT INTO alicia_session_stats (conversation_id, message_count) "
    "SELECT conversation_id, SUM(message_count) FROM alicia_session_stats GROUP BY conversation_id",
    "on conflict": "INSERT INTO alicia_session_stats (id, conversation_id, message_count) VALUES ('ass_20', 'ac_1', 9), "
    "('ass_new', 'ac_2', 8) ON CONFLICT (conversation_id, id) DO UPDATE SET message_count = excluded.message_count",
    "one update": "UPDATE alicia_session_stats SET message_count = message_count + 5, tool_call_count = 2, memories_used = 1 "
    "WHERE conversation_id = 'ac_1'",
    "every update": "UPDATE alicia_session_stats SET session_duration_seconds = session_duration_seconds + 1",
    "another time": "UPDATE alicia_session_stats SET created_at = created_at - INTERVAL '3 days' WHERE id LIKE 'ass\\_1%'",
    "nothing": "UPDATE alicia_session_stats SET message_count = message_count",
    "the largest": "UPDATE alicia_session_stats SET message_count = 2147483647, session_duration_seconds = 2147483647",
    "one delete": "DELETE FROM alicia_session_stats WHERE conversation_id = 'ac_3'",
    "many deletes": "DELETE FROM alicia_session_stats WHERE id LIKE 'ass\\_2%'",
    "a cascade": "DELETE FROM alicia_conversations WHERE id = 'ac_1'",
    "cascades": "DELETE FROM alicia_conversations WHERE id LIKE 'ac\\_1%'",
    "every conversation": "DELETE FROM alicia_conversations",
    "truncate": "TRUNCATE alicia_session_stats",
    "truncate by cascade": "TRUNCATE alicia_conversations CASCADE",
}


# Tables of an application, with a primary key of another name, and a view that reads them.
ADOPTED = """
    CREATE TABLE alicia_conversations (id TEXT CONSTRAINT conversations_key PRIMARY KEY, title TEXT);
    COMMENT ON COLUMN alicia_conversations.title IS 'Shown in the list';
    CREATE TABLE alicia_session_stats (
        id TEXT DEFAULT GEN_RANDOM_UUID()::TEXT CONSTRAINT sessions_key PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES alicia_conversations ON DELETE CASCADE,
        message_count INTEGER NOT NULL DEFAULT 0,
        tool_call_count INTEGER NOT NULL DEFAULT 0,
        memories_used INTEGER NOT NULL DEFAULT 0,
        session_duration_seconds INTEGER NOT NULL DEFAULT 0,
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMP NOT NULL DEFAULT NOW()
    );
    COMMENT ON CONSTRAINT sessions_key ON alicia_session_stats IS 'One session';
    CREATE VIEW titles AS SELECT c.title, s.message_count FROM alicia_conversations AS c JOIN alicia_session_stats AS s
        ON s.conversation_id = c.id;
    COMMENT ON VIEW titles IS 'Messages by title';
    COMMENT ON COLUMN titles.title IS 'As in the list';
    GRANT SELECT ON titles TO PUBLIC;
    INSERT INTO alicia_conversations SELECT 'ac_' || i, 'Title ' || i FROM GENERATE_SERIES(1, 50) AS i;
    INSERT INTO alicia_session_stats (conversation_id, message_count) SELECT id, LENGTH(title) FROM alicia_conversations;
"""

# Views of the application, one on the other.
VIEWS = """
    CREATE VIEW counted AS SELECT conversation_id, COUNT(*) AS sessions FROM alicia_session_stats GROUP BY conversation_id;
    CREATE VIEW busiest AS SELECT * FROM counted ORDER BY sessions DESC, conversation_id LIMIT 3;
"""
# What attach needs beside EVENTS.
FOREIGN_KEYS = """
    ALTER TABLE alicia_messages ADD FOREIGN KEY (conversation_id) REFERENCES alicia_conversations;
    ALTER TABLE alicia_tool_uses ADD FOREIGN KEY (message_id) REFERENCES alicia_messages;
    ALTER TABLE alicia_memory_used ADD FOREIGN KEY (message_id) REFERENCES alicia_messages;
"""
READS = (
    "SELECT SUM(sessions), SUM(messages) FROM alicia_session_stats_quarter_hours",
    "SELECT SUM(sessions), SUM(messages) FROM alicia_session_stats_between('2020-01-01', 'infinity')",
    "SELECT id FROM alicia_session_stats_top_sessions ORDER BY message_count DESC, created_at DESC, id DESC LIMIT 3",
    "SELECT * FROM busiest",
)


def why_not() -> str | None:
    if "TEST_CITUS_URL" in os.environ:
        return None
    with psycopg.connect(CLUSTER) as connection:
        if not scalar(connection, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citus')"):
            return "the test server has no Citus: set TEST_CITUS_URL to a coordinator"
        if "citus" not in scalar(connection, "SELECT CURRENT_SETTING('shared_preload_libraries')"):
            return "the test server does not load Citus: add it to shared_preload_libraries, or set TEST_CITUS_URL"
    return None


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def nodes() -> list[tuple[bool, str, int]]:
    """The nodes of the cluster: whether it is the coordinator, its host and its port."""
    with psycopg.connect(CLUSTER) as server:
        if not scalar(server, "SELECT TO_REGCLASS('pg_catalog.pg_dist_node') IS NOT NULL"):
            return []
        return server.execute("SELECT groupid = 0, nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary'").fetchall()


def servers() -> list[str]:
    return [
        CLUSTER,
        *(make_conninfo(CLUSTER, host=host, port=port) for is_coordinator, host, port in nodes() if not is_coordinator),
    ]


def drop(name: str) -> None:
    for server in servers():
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


def create(name: str) -> str:
    """An empty database on every node, without the extension."""
    drop(name)
    for server in servers():
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return make_conninfo(CLUSTER, dbname=name)


def form_cluster(conninfo: str) -> str:
    """Creates the extension in the database on every node, and adds the workers."""
    database = conninfo_to_dict(conninfo)["dbname"]
    for server in servers():
        with psycopg.connect(make_conninfo(server, dbname=database), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION citus")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for is_coordinator, host, port in sorted(nodes(), reverse=True):
            function = "citus_set_coordinator_host" if is_coordinator else "citus_add_node"
            connection.execute(f"SELECT {function}(%s, %s)".encode(), [host, port])
    return conninfo


@pytest.fixture(scope="module", autouse=True)
def drop_databases() -> Iterator[None]:
    yield
    for name in ("alicia_citus", "alicia_citus_empty", "alicia_citus_reading", "alicia_citus_twin"):
        drop(name)


def fill(conninfo: str) -> str:
    stats.migrate(conninfo)
    psql(conninfo, "-v", f"rows={ROWS}", "-v", f"last={ROWS}", "-f", ROOT / "bench" / "sample.sql").check_returncode()
    with stats.connect(conninfo) as connection:
        connection.execute("ALTER TABLE alicia_conversations ADD user_id TEXT")
        connection.execute("UPDATE alicia_conversations SET user_id = 'au_' || HASHTEXT(id) % 20 WHERE HASHTEXT(id) % 5 <> 0")
        connection.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_sample')")
        connection.execute(
            "INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at, updated_at) "
            "SELECT 'ass_sample' || i, 'ac_sample', i, '2026-01-01', '2026-01-01' FROM GENERATE_SERIES(1, 5) AS i"
        )
    return conninfo


def run_until_not_busy(conninfo: str, name: str) -> subprocess.CompletedProcess[str]:
    """Run a file again as long as it fails for a lock, as its header says: autovacuum, too, may hold one."""
    deadline = time.monotonic() + 60
    done = psql(conninfo, "-q", "-f", SCALE / name)
    while "lock timeout" in done.stderr and time.monotonic() < deadline:
        done = psql(conninfo, "-q", "-f", SCALE / name)
    return done


def refusal(conninfo: str) -> str:
    """What psql says when citus.sql refuses a database, which it leaves as it was."""
    before = pg_dump(conninfo)
    done = psql(conninfo, "-q", "-f", SCALE / "citus.sql")
    assert done.returncode == 3
    assert pg_dump(conninfo) == before
    return done.stderr


def scale(conninfo: str, name: str = "citus.sql") -> None:
    done = run_until_not_busy(conninfo, name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def assert_exact(connection: Connection) -> None:
    assert set(connection.execute(KEPT.encode()).fetchall()) == set(connection.execute(COUNTED.encode()).fetchall())
    assert connection.execute("SELECT * FROM alicia_session_stats_differences('-infinity', 'infinity')").fetchall() == []


def everything(connection: Connection) -> list[Any]:
    return connection.execute("SELECT * FROM alicia_session_stats ORDER BY id, conversation_id").fetchall()


@pytest.fixture(scope="module")
def twin() -> str:
    """A database on the coordinator with the same sample, not distributed."""
    return fill(create("alicia_citus_twin"))


@pytest.fixture(scope="module")
def reading() -> str:
    """A distributed database that no test writes to. It was migrated on a cluster."""
    conninfo = fill(form_cluster(create("alicia_citus_reading")))
    scale(conninfo)
    return conninfo


@pytest.fixture
def single() -> str:
    """A database with the sample that is not distributed yet. It was migrated before the extension was created."""
    return form_cluster(fill(create("alicia_citus")))


@pytest.fixture
def distributed(single: str) -> Iterator[Connection]:
    """A connection, in autocommit mode, to a distributed database."""
    scale(single)
    with stats.connect(single) as connection:
        connection.execute("INSERT INTO alicia_conversations (id) SELECT 'ac_' || i FROM GENERATE_SERIES(1, 200) AS i")
        yield connection


def test_the_rows_are_on_the_workers(reading: str, twin: str) -> None:
    with psycopg.connect(reading) as connection, psycopg.connect(twin) as other:
        tables = connection.execute(
            "SELECT table_name::TEXT, distribution_column FROM citus_tables WHERE citus_table_type = 'distributed' ORDER BY 1"
        ).fetchall()
        assert tables == [
            ("alicia_conversations", "id"),
            ("alicia_session_stats", "conversation_id"),
            ("alicia_session_stats_shard_rollup", "shard_key"),
        ]
        assert scalar(connection, "SELECT COUNT(DISTINCT colocation_id) FROM citus_tables") == 1
        assert scalar(connection, "SELECT PG_RELATION_SIZE('alicia_session_stats')") == 0
        assert scalar(connection, "SELECT COUNT(*) FROM alicia_session_stats") == ROWS + 5
        # With updated_at: no trigger has fired.
        assert everything(connection) == everything(other)
        assert_exact(connection)


@pytest.mark.parametrize("name", sorted(set(READERS) - LOCAL))
def test_query_answers_as_on_one_machine(name: str, reading: str, twin: str) -> None:
    given: dict[str, Any] = {**values(name, {})}

    def ask() -> list[Any]:
        return [stats.query(conninfo, name, **given) for conninfo in (twin, reading, twin)]

    before, answer, after = ask()
    while before != after:  # The windows end now, and a session may have left one since.
        before, answer, after = ask()
    assert answer == before


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_query_of_the_catalog_runs(name: str, reading: str) -> None:
    assert stats.query(reading, name) != []


def test_verify_finds_no_difference_until_there_is_one(distributed: Connection) -> None:
    conninfo = distributed.info.dsn
    assert stats.verify(conninfo) == []
    distributed.execute("ALTER TABLE alicia_session_stats_shard_rollup ALTER is_merged DROP NOT NULL")
    distributed.execute("COMMENT ON TRIGGER rollup_session_stats_insert ON alicia_session_stats IS 'mine'")
    assert {row["object"] for row in stats.query(conninfo, "verify")} == {
        "COLUMN alicia_session_stats_shard_rollup.is_merged",
        "TRIGGER rollup_session_stats_insert ON alicia_session_stats",
    }


def test_sessions_are_recorded_as_on_one_machine(distributed: Connection) -> None:
    conninfo = distributed.info.dsn
    of: dict[str, Any] = {"session_id": "ass_own", "conversation_id": "ac_7"}
    [session] = stats.query(conninfo, "start_session", conversation_id="ac_7", session_id="ass_own")
    assert stats.query(conninfo, "start_session", conversation_id="ac_7", session_id="ass_own") == [session]
    [row] = stats.query(conninfo, "record_activity", **of, messages=3, seconds=40)
    assert (row["message_count"], row["session_duration_seconds"]) == (3, 40)
    assert row["updated_at"] > session["updated_at"]
    for _ in range(2):
        [row] = stats.query(conninfo, "record_totals", **of, messages=5)
        assert (row["message_count"], row["session_duration_seconds"]) == (5, 40)
    for name in ("record_activity", "record_totals"):
        with pytest.raises(stats.SessionStatsError, match="session ass_none does not exist in conversation ac_7") as raised:
            stats.query(conninfo, name, session_id="ass_none", conversation_id="ac_7", messages=1)
        assert raised.value.sqlstate == "23503"
    assert stats.query(conninfo, "session_stats", conversation_id="ac_7") != []
    assert_exact(distributed)


@pytest.mark.parametrize("name", ["record_activity", "record_totals"])
def test_recording_goes_to_one_shard(name: str, reading: str) -> None:
    given = values(name, {"session_id": "ass_sample1", "conversation_id": "ac_sample"})
    with stats.connect(reading) as connection:
        plan = [line for (line,) in connection.execute(f"EXPLAIN {QUERIES[name].statement}".encode(), given)]
    # One task, and no other part of the statement that is distributed by itself.
    assert [line.strip() for line in plan if "Task Count" in line or "Citus" in line or "Subplan" in line] == [
        "Custom Scan (Citus Adaptive)  (cost=0.00..0.00 rows=0 width=0)",
        "Task Count: 1",
    ]


def test_there_is_nothing_to_summarize(reading: str) -> None:
    assert stats.query(reading, "summarize_days") == [{"days": 0, "sessions": 0, "remaining_days": 0}]
    assert {row["stale_summaries"] for row in stats.query(reading, "table_health")} == {0, None}


def test_rollup_is_exact_after_every_kind_of_write(distributed: Connection) -> None:
    for name, statement in WRITES.items():
        # Replace what the statement before deleted.
        distributed.execute(
            "INSERT INTO alicia_conversations (id) SELECT 'ac_' || i FROM GENERATE_SERIES(1, 99) AS i ON CONFLICT DO NOTHING"
        )
        distributed.execute(
            "INSERT INTO alicia_session_stats (conversation_id) SELECT 'ac_' || i FROM GENERATE_SERIES(1, 99) AS i"
        )
        for ends in (distributed.transaction(force_rollback=True), distributed.transaction()):
            before = everything(distributed)
            with ends:
                distributed.execute(statement.encode())
                assert_exact(distributed)
                assert (everything(distributed) == before) == (name == "nothing"), name
            assert_exact(distributed)


def test_rollup_is_exact_after_copy_and_savepoints(distributed: Connection) -> None:
    with distributed.cursor() as cursor, cursor.copy("COPY alicia_session_stats (id, conversation_id) FROM STDIN") as copy:
        for number in range(100):
            copy.write_row([f"ass_{number}", f"ac_{1 + number}"])
    assert_exact(distributed)
    with distributed.transaction():
        distributed.execute("UPDATE alicia_session_stats SET message_count = 7 WHERE conversation_id = 'ac_1'")
        with distributed.transaction(force_rollback=True):
            distributed.execute("UPDATE alicia_session_stats SET message_count = 8")
        distributed.execute("DELETE FROM alicia_session_stats WHERE conversation_id = 'ac_2'")
    assert_exact(distributed)


def test_eight_writers_in_opposite_orders_do_not_deadlock_and_rollup_is_exact(distributed: Connection) -> None:
    def write(number: int) -> None:
        order = list(range(12))[:: -1 if number % 2 else 1]
        with stats.connect(distributed.info.dsn) as connection:
            for turn in range(12):
                with connection.transaction(force_rollback=turn % 5 == 4):
                    for place in order:
                        # All write to the same buckets and shards.
                        connection.execute(
                            "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) "
                            "VALUES (%s, %s, TIMESTAMP '2026-03-01' + %s * INTERVAL '15 minutes')",
                            [f"ac_{1 + 12 * number + place}", turn, place],
                        )
                        connection.execute(
                            "UPDATE alicia_session_stats SET message_count = message_count + 1, memories_used = 1 "
                            "WHERE conversation_id = %s",
                            [f"ac_{1 + 12 * number + place}"],
                        )
                    if turn % 3 == 2:
                        connection.execute("DELETE FROM alicia_conversations WHERE id = %s", [f"ac_{1 + 12 * number + turn}"])
                        connection.execute("INSERT INTO alicia_conversations (id) VALUES (%s)", [f"ac_{1 + 12 * number + turn}"])

    with ThreadPoolExecutor(WRITERS) as pool:
        for writer in [pool.submit(write, number) for number in range(WRITERS)]:
            writer.result()
    assert_exact(distributed)
    assert distributed.execute("SELECT * FROM alicia_session_stats_repair()").fetchall() == [
        ("quarter hours", 0),
        ("top sessions", 0),
    ]


def test_appended_rows_are_merged(distributed: Connection) -> None:
    distributed.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_1', 'ac_1')")
    for _ in range(1000):
        distributed.execute("UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE conversation_id = 'ac_1'")
    # One write in fifty merges. That none of 500 does has a probability of 0.00004.
    assert scalar(distributed, "SELECT COUNT(*) FROM alicia_session_stats_shard_rollup WHERE NOT is_merged") < 500
    assert_exact(distributed)
    distributed.execute("DELETE FROM alicia_session_stats")
    for _ in range(20):
        distributed.execute(
            "INSERT INTO alicia_session_stats (conversation_id) SELECT 'ac_' || i FROM GENERATE_SERIES(1, 200) AS i"
        )
        distributed.execute("DELETE FROM alicia_session_stats")
    # A bucket that has lost all its sessions keeps no merged row.
    assert scalar(distributed, "SELECT COUNT(*) FROM alicia_session_stats_shard_rollup WHERE is_merged AND sessions = 0") == 0
    assert_exact(distributed)


def test_repair_corrects_wrong_sums(distributed: Connection) -> None:
    distributed.execute("UPDATE alicia_session_stats_shard_rollup SET messages = messages + 1 WHERE sessions > 1")
    repaired = distributed.execute("SELECT * FROM alicia_session_stats_repair()").fetchall()
    assert repaired[0][1] > 0
    assert_exact(distributed)
    assert distributed.execute("SELECT * FROM alicia_session_stats_repair()").fetchall()[0] == ("quarter hours", 0)


def test_rollup_is_exact_after_shards_were_moved_and_split(distributed: Connection) -> None:
    workers = distributed.execute("SELECT nodeid, nodename, nodeport FROM pg_dist_node WHERE groupid > 0").fetchall()
    (moved, host, port), (split, _, _) = distributed.execute(
        "SELECT shardid, nodename, nodeport FROM citus_shards WHERE table_name = 'alicia_session_stats'::REGCLASS LIMIT 2"
    ).fetchall()
    [other, *_] = [place for _, *place in workers if place != [host, port]] or pytest.skip("one worker only")
    distributed.execute("SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, 'block_writes')", [moved, host, port, *other])
    distributed.execute(
        "SELECT citus_split_shard_by_split_points(%s, ARRAY[((shardminvalue::BIGINT + shardmaxvalue::BIGINT) / 2)::TEXT], "
        "%s::INTEGER[], 'block_writes') FROM pg_dist_shard WHERE shardid = %s",
        [split, [workers[0][0], workers[-1][0]], split],
    )
    distributed.execute("INSERT INTO alicia_session_stats (conversation_id) SELECT 'ac_' || i FROM GENERATE_SERIES(1, 200) AS i")
    distributed.execute("UPDATE alicia_session_stats SET message_count = message_count + 1")
    assert_exact(distributed)
    distributed.execute("TRUNCATE alicia_session_stats")
    assert_exact(distributed)
    # Copies that Citus has not removed yet do not stop the way back.
    scale(distributed.info.dsn, "citus.rollback.sql")
    assert stats.verify(distributed.info.dsn) == []


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_query_that_citus_cannot_run_says_where_its_alternative_is_and_changes_nothing(
    name: str, distributed: Connection
) -> None:
    distributed.execute(EVENTS.encode())
    distributed.execute("INSERT INTO alicia_messages VALUES ('am_1', 'ac_1', NOW())")
    before = everything(distributed)
    options = [f"--{param}={value}" for param, value in REFUSED[name].items()]
    done = cli("query", name, *options, "--database", distributed.info.dsn)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.endswith("scale/README.md says what to use instead\n")
    assert name in (SCALE / "README.md").read_text(encoding="utf-8")
    assert everything(distributed) == before


def test_live_recording_is_refused_and_changes_nothing(distributed: Connection) -> None:
    distributed.execute(EVENTS.encode())
    before = pg_dump(distributed.info.dsn)
    done = cli("attach", "--database", distributed.info.dsn)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert "is distributed over the workers of a Citus cluster, where live recording does not work" in last
    assert "scale/README.md" in last
    assert "`attach`" in (SCALE / "README.md").read_text(encoding="utf-8")
    assert pg_dump(distributed.info.dsn) == before


def test_database_with_live_recording_is_refused(single: str) -> None:
    with stats.connect(single) as connection:
        connection.execute(EVENTS.encode())
        connection.execute(FOREIGN_KEYS)
    cli("attach", "--database", single).check_returncode()
    assert "ERROR:  sessions are recorded live, which does not work on Citus" in refusal(single)


def test_application_tables_must_be_distributed_first(single: str) -> None:
    with stats.connect(single) as connection:
        connection.execute(EVENTS.encode())
        connection.execute("ALTER TABLE alicia_messages ADD FOREIGN KEY (conversation_id) REFERENCES alicia_conversations")
        expected = "ERROR:  foreign keys link tables that are not distributed to alicia_conversations: alicia_messages"
        assert expected in refusal(single)
        connection.execute("ALTER TABLE alicia_messages DROP CONSTRAINT alicia_messages_pkey")
        connection.execute("SELECT create_distributed_table('alicia_conversations', 'id')")
        connection.execute("SELECT create_distributed_table('alicia_messages', 'conversation_id')")
        scale(single)
        connection.execute("INSERT INTO alicia_messages SELECT 'am_1', id FROM alicia_conversations")
        assert_exact(connection)


def test_purge_deletes_old_sessions_and_rollup_is_exact(distributed: Connection) -> None:
    old = "SELECT COUNT(*) FROM alicia_session_stats WHERE created_at < NOW() AT TIME ZONE 'UTC' - INTERVAL '100 days'"
    there = scalar(distributed, "SELECT COUNT(*) FROM alicia_session_stats")
    gone = scalar(distributed, old)
    assert 0 < gone < there
    done = psql(distributed.info.dsn, "-q", "-v", "days=100", "-f", SCALE / "citus.purge.sql")
    assert (done.returncode, done.stderr) == (0, "")
    assert scalar(distributed, old) == 0
    assert scalar(distributed, "SELECT COUNT(*) FROM alicia_session_stats") == there - gone
    assert_exact(distributed)


@pytest.fixture
def reader(single: str) -> Iterator[str]:
    """A database whose sessions the role alicia_reader may read. The role can log in to the workers."""
    with stats.connect(single) as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE alicia_reader LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        connection.execute(
            "GRANT SELECT ON alicia_session_stats, alicia_session_stats_parts, alicia_session_stats_quarter_hours, "
            "alicia_session_stats_top_sessions TO alicia_reader"
        )
    yield single
    for drop in ("DROP OWNED BY alicia_reader", "DROP ROLE alicia_reader"):
        with stats.connect(single) as connection:
            connection.execute(drop.encode())


def test_a_reader_still_reads_and_does_not_write(reader: str) -> None:
    scale(reader)
    with stats.connect(reader) as connection:
        connection.execute("SET ROLE alicia_reader")
        for name in ("average_session_metrics", "most_active_sessions", "usage_over_time"):
            assert connection.execute(QUERIES[name].statement.encode(), values(name, {})).fetchall() != []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM alicia_session_stats_shard_rollup")
    scale(reader, "citus.rollback.sql")
    with stats.connect(reader) as connection:
        connection.execute("SET ROLE alicia_reader")
        assert (
            connection.execute(
                QUERIES["average_session_metrics"].statement.encode(), values("average_session_metrics", {})
            ).fetchall()
            != []
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM alicia_session_stats_rollup")


def test_a_second_run_changes_nothing(single: str) -> None:
    scale(single)
    before = pg_dump(single)
    scale(single)
    assert pg_dump(single) == before


def test_way_back_restores_everything_and_can_be_repeated(single: str) -> None:
    with stats.connect(single) as connection:
        before = pg_dump(single), everything(connection)
        for _ in range(2):
            scale(single)
            connection.execute("INSERT INTO alicia_session_stats (id, conversation_id) VALUES ('ass_1', 'ac_sample')")
            scale(single, "citus.rollback.sql")
            scale(single, "citus.rollback.sql")
            connection.execute("DELETE FROM alicia_session_stats WHERE id = 'ass_1'")
            assert (pg_dump(single), everything(connection)) == before
            assert stats.verify(single) == []
            assert_exact(connection)
            assert scalar(connection, "SELECT COUNT(*) FROM alicia_session_stats_top_candidates") >= 999
            assert stats.query(single, "most_active_sessions", limit=3) != []


def test_adopted_tables_and_their_views_come_back_as_they_were() -> None:
    conninfo = create("alicia_citus")
    with stats.connect(conninfo) as connection:
        connection.execute(ADOPTED)
        stats.migrate(conninfo)
        form_cluster(conninfo)
        before = pg_dump(conninfo), everything(connection)
        scale(conninfo)
        assert stats.verify(conninfo) == []
        assert everything(connection) == before[1]
        scale(conninfo, "citus.rollback.sql")
        assert (pg_dump(conninfo), everything(connection)) == before
        assert stats.verify(conninfo) == []


def test_conversations_that_the_application_distributed_stay_distributed(single: str) -> None:
    with stats.connect(single) as connection:
        connection.execute("SELECT create_distributed_table('alicia_conversations', 'id')")
        scale(single)
        assert_exact(connection)
        done = psql(single, "-q", "-f", SCALE / "citus.rollback.sql")
        assert done.returncode == 3
        assert "the application distributed alicia_conversations" in done.stderr
        hint = re.search(r"HINT: +(DELETE FROM .+?);", done.stderr)
        assert hint
        connection.execute(hint[1].encode())
        scale(single, "citus.rollback.sql")
        assert scalar(connection, "SELECT COUNT(*) FROM citus_tables") == 0
        assert stats.verify(single) == []


@pytest.mark.parametrize("name", ["citus.sql", "citus.rollback.sql"])
def test_killed_run_changes_nothing_and_can_be_repeated(name: str, single: str) -> None:
    if name == "citus.rollback.sql":
        scale(single)
    with stats.connect(single) as connection, ThreadPoolExecutor() as pool:
        before = pg_dump(single), everything(connection)
        running = pool.submit(psql, single, "-q", "-f", SCALE / name)
        kill = """
            SELECT PG_TERMINATE_BACKEND(pid)
            FROM pg_locks
            WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'alicia_session_stats'::REGCLASS
        """
        deadline = time.monotonic() + 20
        while not connection.execute(kill).fetchall():
            assert time.monotonic() < deadline
        assert running.result().returncode != 0
        wait_until(lambda: (pg_dump(single), everything(connection)) == before)
        # As its header says, it fails while the killed one still has a lock.
        while "lock timeout" in (done := psql(single, "-q", "-f", SCALE / name)).stderr:
            pass
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert_exact(connection)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["citus.sql", "citus.rollback.sql"])
def test_readers_get_the_same_answers_while_the_rows_move(name: str, single: str) -> None:
    with stats.connect(single) as connection:
        connection.execute(VIEWS)
    if name == "citus.rollback.sql":
        scale(single)
    moved = threading.Event()
    answers: list[list[Any]] = [[] for _ in READS * 2]

    def read(number: int) -> None:
        with stats.connect(single) as connection:
            while not moved.is_set() or len(answers[number]) < 2:
                try:
                    answers[number].append(connection.execute(READS[number // 2].encode(), prepare=number % 2 == 0).fetchall())
                except psycopg.errors.FeatureNotSupported:
                    # The header of citus.sql says so of a query that waits in alicia_session_stats_between().
                    assert "between" in READS[number // 2]

    with ThreadPoolExecutor(len(answers)) as pool:
        readers = [pool.submit(read, number) for number in range(len(answers))]
        try:
            wait_until(lambda: all(answers))
            done = run_until_not_busy(single, name)
        finally:
            moved.set()
        for reader in readers:
            reader.result()
    assert (done.returncode, done.stderr) == (0, "")
    for asked in answers:
        assert [answer for answer in asked if answer != asked[0]] == []


def test_run_fails_while_the_table_is_in_use_and_changes_nothing(single: str) -> None:
    with stats.connect(single) as connection, connection.transaction():
        connection.execute("SELECT COUNT(*) FROM alicia_session_stats")
        assert "lock timeout" in refusal(single)
    scale(single)


def test_cluster_without_workers_is_refused_unless_told() -> None:
    conninfo = fill(create("alicia_citus"))
    with stats.connect(conninfo) as connection:
        connection.execute("CREATE EXTENSION citus")
        said = refusal(conninfo)
        assert "ERROR:  the cluster has no worker, so that every shard would be on the coordinator" in said
        [variable] = re.findall(r"-v \w+=\w+", said)
        done = psql(conninfo, "-q", *variable.split(), "-f", SCALE / "citus.sql")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        connection.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_sample', 9)")
        assert_exact(connection)
        scale(conninfo, "citus.rollback.sql")
        assert_exact(connection)


def test_table_with_row_level_security_is_refused(single: str) -> None:
    with stats.connect(single) as connection:
        connection.execute("ALTER TABLE alicia_session_stats ENABLE ROW LEVEL SECURITY")
        assert "ERROR:  alicia_session_stats has row-level security" in refusal(single)


def test_rollback_of_a_migration_is_refused_and_says_what_to_run_first(distributed: Connection) -> None:
    conninfo = distributed.info.dsn
    before = pg_dump(conninfo), everything(distributed)
    for steps in (["--steps", "1"], ["--all", "--allow-data-loss"]):
        done = cli("rollback", *steps, "--database", conninfo)
        assert done.returncode == 1
        assert "Run scale/citus.rollback.sql first" in done.stderr.splitlines()[-1]
        assert (pg_dump(conninfo), everything(distributed)) == before
    scale(conninfo, "citus.rollback.sql")
    done = cli("rollback", "--steps", "1", "--database", conninfo)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["block_writes", "force_logical"])
def test_way_back_works_after_a_shard_was_moved(mode: str, distributed: Connection) -> None:
    before = everything(distributed)
    shard, host, port = distributed.execute(
        "SELECT shardid, nodename, nodeport FROM citus_shards WHERE table_name = 'alicia_session_stats'::REGCLASS LIMIT 1"
    ).fetchall()[0]
    workers = distributed.execute("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0").fetchall()
    [other, *_] = [place for place in workers if place != (host, port)] or pytest.skip("one worker only")
    distributed.execute("SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, %s)", [shard, host, port, *other, mode])
    distributed.execute("UPDATE alicia_session_stats SET message_count = message_count + 1 WHERE conversation_id = 'ac_sample'")
    assert_exact(distributed)
    scale(distributed.info.dsn, "citus.rollback.sql")
    assert_exact(distributed)
    assert len(everything(distributed)) == len(before)
    assert stats.verify(distributed.info.dsn) == []


def test_error_names_a_missing_extension_or_migration(twin: str) -> None:
    assert "this database has no Citus" in refusal(twin)
    assert "this database is not migrated" in refusal(form_cluster(create("alicia_citus_empty")))
