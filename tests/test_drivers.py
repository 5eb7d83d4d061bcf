"""Every query runs unchanged through psycopg's pools, asyncpg and node-postgres: all that an application may use."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest
from conftest import EVENTS, ROOT, cli, conninfo_of, scalar
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import alicia_session_stats as stats
import runner

Database = psycopg.Connection[Any]
NODE_POSTGRES = "pg@8.23.1"
PAGE = (ROOT / "docs" / "applications.md").read_text()
# Values for the parameters without a default, and for those that write.
GIVEN = {"messages": "2", "days": "400", "since_days": "30"}
EVERY = sorted(stats.queries())
# The application's table on the page, with a message of the session that the test starts.
MESSAGES = """
    CREATE TABLE messages (id TEXT PRIMARY KEY, session_id TEXT, text TEXT, sent_at TIMESTAMPTZ DEFAULT NOW());
    INSERT INTO messages VALUES ('message_1', 'mine', 'Hi', NOW() - INTERVAL '40 seconds');
"""
STORED = ["message_1", "message_2", "message_3"]
MISSING = [("start_session", "conversation_id"), ("record_activity", "session_id")]


@pytest.fixture
def given(db: Database, insert: Callable[..., str]) -> dict[str, str]:
    """Parameters by their names, in a database where each query has something to answer."""
    db.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
    db.execute(EVENTS.encode())
    return {**GIVEN, "conversation_id": "ac_1", "session_id": insert("ac_1", message_count=3)}


def texts(query: stats.Query, given: dict[str, str]) -> list[str | None]:
    """The values of a query's parameters, in the order of $1 …"""
    return [given.get(param.name, param.default) for param in query.params]


def test_a_pool_of_connections_serves_many_threads(db: Database, given: dict[str, str]) -> None:
    def record(pool: ConnectionPool, _: int) -> None:
        with pool.connection() as connection:  # Commits when the block ends.
            stats.query(connection, "record_activity", session_id=given["session_id"], conversation_id="ac_1", messages=1)

    with ConnectionPool(conninfo_of(db), min_size=1, max_size=4) as pool, ThreadPoolExecutor(30) as threads:
        list(threads.map(lambda number: record(pool, number), range(150)))
    assert scalar(db, "SELECT message_count FROM alicia_session_stats") == 153


def test_an_async_pool_keeps_each_requests_transaction(db: Database, given: dict[str, str]) -> None:
    async def request(pool: AsyncConnectionPool, number: int) -> None:
        async with pool.connection() as connection:
            await stats.query_async(
                connection, "record_activity", session_id=given["session_id"], conversation_id="ac_1", messages=1
            )
            if number % 2:
                await connection.rollback()

    async def serve() -> None:
        async with AsyncConnectionPool(conninfo_of(db), min_size=1, max_size=4) as pool:
            await asyncio.gather(*(request(pool, number) for number in range(20)))

    asyncio.run(serve())
    assert scalar(db, "SELECT message_count FROM alicia_session_stats") == 13


def block(language: str) -> str:
    """The page's only code block of a language."""
    [code] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)
    return code


@pytest.mark.usefixtures("given")
def test_the_pages_service_with_an_async_pool_keeps_every_message_and_counts_none_twice(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    page: dict[str, Any] = {"DATABASE_URL": conninfo_of(db)}
    db.execute(MESSAGES.encode())
    exec(block("python"), page)
    app = SimpleNamespace(state=SimpleNamespace())

    async def serve() -> list[dict[str, Any]]:
        async with page["lifespan"](app):
            for _ in range(2):
                await page["start"](app.state.pool, "ac_1", "mine")
                await page["reply"](app.state.pool, "ac_1", "mine", "message_2", "Hello")
            await page["reply"](app.state.pool, "ac_1", "nothing", "message_3", "Hello")
            return await page["usage"](app.state.pool)

    usage = {row["metric"]: row["this_period"] for row in asyncio.run(serve())}
    assert (usage["sessions"], usage["messages"]) == (2, 5)
    assert 40 <= usage["seconds"] < 100
    assert [message for (message,) in db.execute("SELECT id FROM messages ORDER BY id")] == STORED
    assert caplog.messages == ["session nothing is not recorded"]


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), float("inf"), 2_147_484])
def test_a_timeout_that_is_no_number_of_seconds_is_one_clear_usage_error(db: Database, timeout: Any) -> None:
    async def ask() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo_of(db)) as connection:
            await stats.query_async(connection, "average_session_metrics", timeout=timeout)

    said = re.escape(f"timeout must be a number of seconds, from 0 to 2147483, not {timeout!r}")
    for target in (db, conninfo_of(db)):
        with pytest.raises(stats.UsageError, match=f"^{said}$"):
            stats.query(target, "average_session_metrics", timeout=timeout)
    with pytest.raises(stats.UsageError, match=f"^{said}$"):
        asyncio.run(ask())


def test_a_target_of_another_type_is_told_how_to_open_one_of_the_right_type(db: Database) -> None:
    async def ask(target: Any) -> None:
        await stats.query_async(target, "average_session_metrics", timeout=2_147_483)

    with pytest.raises(stats.UsageError, match=r"AsyncConnection, not a str. From a pool: async with pool"):
        asyncio.run(ask(conninfo_of(db)))
    with pytest.raises(stats.UsageError, match=r"Connection, not a int. From a pool: with pool"):
        stats.query(5, "average_session_metrics")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", EVERY)
def test_numbered_sql_has_every_parameter_in_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    query = stats.queries()[name]
    statement = query.sql("numbered")
    numbers = range(1, len(query.params) + 1)
    assert [f"${number}" in statement for number in numbers] == [True for _ in numbers]
    assert f"${len(query.params) + 1}" not in statement
    named = statement
    for number in reversed(numbers):
        named = named.replace(f"${number}", f"%({query.params[number - 1].name})s")
    assert named == query.sql("psycopg").replace("%%", "%")
    assert "%(" not in statement
    assert runner.main(["query", name, "--sql"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{statement}\n")
    for number, param in enumerate(query.params, 1):
        assert f"-- ${number} {param.name} ({param.type}, {'required' if param.default is None else 'default'}" in printed


def asyncpg_value(kind: str, text: str | None) -> object:
    """asyncpg takes each value in the Python type of the parameter."""
    match kind:
        case "int2" | "int4" | "int8":
            return int(text or 0)
        case "bool":
            return text == "true"
        case "timestamp":
            return datetime.now(UTC).replace(tzinfo=None)
        case _:
            return text


async def asyncpg_connect(db: Database) -> Any:
    info = db.info
    return await asyncpg.connect(
        host=info.host, port=info.port, user=info.user, password=info.password or None, database=info.dbname
    )


@pytest.mark.parametrize("name", EVERY)
def test_asyncpg_runs_every_query(db: Database, given: dict[str, str], name: str) -> None:
    query = stats.queries()[name]

    async def ask() -> list[dict[str, Any]]:
        connection = await asyncpg_connect(db)
        try:
            statement = await connection.prepare(query.sql("numbered"))
            kinds = [kind.name for kind in statement.get_parameters()]
            values = [asyncpg_value(kind, text) for kind, text in zip(kinds, texts(query, given), strict=True)]
            return [dict(row) for row in await statement.fetch(*values)]
        finally:
            await connection.close()

    rows = asyncio.run(ask())
    expected = stats.query(db, name, **{param.name: given.get(param.name) for param in query.params})
    assert [list(row) for row in rows[:1]] == [list(row) for row in expected[:1]]


@pytest.mark.parametrize(("name", "missing"), MISSING)
def test_asyncpg_tells_what_is_missing_by_one_sqlstate(db: Database, name: str, missing: str) -> None:
    query = stats.queries()[name]

    async def ask() -> None:
        connection = await asyncpg_connect(db)
        try:
            statement = await connection.prepare(query.sql("numbered"))
            kinds = [kind.name for kind in statement.get_parameters()]
            values = texts(query, {"conversation_id": "ac_1", missing: "nothing"})
            await statement.fetch(*(asyncpg_value(kind, text) for kind, text in zip(kinds, values, strict=True)))
        finally:
            await connection.close()

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        asyncio.run(ask())


SCRIPT = """
const { Client } = require("pg");
const [config, queries] = JSON.parse(require("fs").readFileSync(0));
(async () => {
  const client = new Client(config);
  await client.connect();
  const answers = {};
  for (const [name, statement, values] of queries) {
    try {
      const answer = await client.query(statement, values);
      answers[name] = answer.fields.map((field) => field.name);
    } catch (error) {
      answers[name] = error.code;
    }
  }
  await client.end();
  console.log(JSON.stringify(answers));
})();
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds node-postgres."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        if "CI" in os.environ:
            pytest.fail("node and npm are not installed")
        pytest.skip("node and npm are not installed (apt-get install npm)")
    folder = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--silent", "--no-save", "--no-audit", "--prefix", folder, NODE_POSTGRES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def node_postgres(folder: Path, db: Database, queries: list[tuple[str, str, list[str | None]]]) -> dict[str, Any]:
    info = db.info
    config = {"host": info.host, "port": info.port, "user": info.user, "password": info.password, "database": info.dbname}
    given = json.dumps([config, queries])
    done = subprocess.run(
        ["node", "-e", SCRIPT], cwd=folder, input=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_postgres_runs_every_query(db: Database, given: dict[str, str], node: Path) -> None:
    queries = stats.queries()
    answers = node_postgres(node, db, [(name, query.sql("numbered"), texts(query, given)) for name, query in queries.items()])
    for name, query in queries.items():
        with db.transaction():
            cursor = psycopg.RawCursor(db)
            cursor.execute(query.sql("numbered").encode(), texts(query, given))
            assert answers[name] == [column.name for column in cursor.description or ()], name


def test_node_postgres_tells_what_is_missing_by_one_sqlstate(db: Database, node: Path) -> None:
    queries = stats.queries()
    asked = [
        (name, queries[name].sql("numbered"), texts(queries[name], {"conversation_id": "ac_1", missing: "nothing"}))
        for name, missing in MISSING
    ]
    assert node_postgres(node, db, asked) == dict.fromkeys(("start_session", "record_activity"), "23503")


@pytest.mark.usefixtures("given")
def test_the_pages_node_service_keeps_every_message_and_counts_none_twice(db: Database, node: Path) -> None:
    db.execute(MESSAGES.encode())
    for command, file in re.findall(r"^alicia-session-stats (.*) > (.*)", block("sh"), re.M):
        (node / file).write_text(cli(*command.split()).stdout)
    calls = """
        (async () => {
          for (const _ of [1, 2]) {
            await start("ac_1", "mine");
            await reply("ac_1", "mine", "message_2", "Hello");
          }
          await reply("ac_1", "nothing", "message_3", "Hello");
          await pool.end();
        })();
    """
    info = db.info
    environment = {
        **os.environ,
        "PGHOST": info.host,
        "PGPORT": str(info.port),
        "PGUSER": info.user,
        "PGPASSWORD": info.password,
        "PGDATABASE": info.dbname,
    }
    done = subprocess.run(
        ["node", "-e", block("js") + calls],
        cwd=node,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("session nothing is not recorded: 23503 ")
    recorded = db.execute("SELECT message_count, session_duration_seconds >= 40 FROM alicia_session_stats WHERE id = 'mine'")
    assert recorded.fetchone() == (2, True)
    assert [message for (message,) in db.execute("SELECT id FROM messages ORDER BY id")] == STORED


def test_the_page_numbers_the_parameters_as_the_statement_does() -> None:
    expected = ", ".join(f"${n} {param.name}" for n, param in enumerate(stats.queries()["record_totals"].params, 1))
    assert re.findall(r"// (\$1 session_id.*)", PAGE) == [expected, expected]
