"""Everything through a real PgBouncer in transaction mode: a pool of two connections, nothing configured for us."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import MIGRATIONS, SERVER, cli, scalar

import alicia_session_stats as stats

BOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    BOUNCER is None and "CI" not in os.environ, reason="pgbouncer is not installed (apt-get install pgbouncer)"
)


@pytest.fixture
def pooled(bare: psycopg.Connection[Any]) -> Iterator[str]:
    """A conninfo, through PgBouncer, to a database without anything."""
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="alicia-bouncer-", dir="/tmp"))
    users = folder / "users.txt"
    users.write_text(f'"{SERVER["user"]}" "{SERVER.get("password", "")}"\n')
    server = " ".join(f"{name}={SERVER[name]}" for name in ("host", "port", "user", "password") if SERVER.get(name))
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\npooled = {server} dbname={bare.info.dbname}\n"
        f"[pgbouncer]\nunix_socket_dir = {folder}\nlisten_port = 6432\nauth_type = any\nauth_file = {users}\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nserver_reset_query =\nlogfile =\n"
    )
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    assert BOUNCER is not None
    process = subprocess.Popen(
        [BOUNCER, "-q", folder / "pgbouncer.ini"], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    conninfo = f"host={folder} port=6432 user={SERVER['user']} dbname=pooled"
    try:
        stats.connect(conninfo, wait=10).close()
        yield conninfo
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def test_every_command_works_through_a_transaction_pooler(pooled: str) -> None:
    def done(*arguments: str, code: int = 0) -> str:
        result = cli(*arguments, "--database", pooled)
        assert (result.returncode, "rror" in result.stderr) == (code, False), result.stderr
        return result.stdout

    done("status", code=3)
    assert "CREATE TABLE alicia_session_stats" in done("migrate", "--plan")
    done("migrate")
    assert done("status").count("| applied |") == len(MIGRATIONS)
    assert done("verify", "--format", "json").strip() == "[]"
    with stats.connect(pooled) as connection:
        connection.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
        connection.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
        for _ in range(7):  # As often as psycopg would prepare the statement.
            [session] = stats.query(connection, "start_session", conversation_id="ac_1")
            stats.query(connection, "record_activity", session_id=session["id"], conversation_id="ac_1", messages=7)
    for query in stats.queries().values():
        if not query.writes:
            stats.query(pooled, query.name, **{param.name: "ac_1" for param in query.params if param.default is None})
    done("query", "session_stats", "--conversation-id=ac_1")
    done("purge", "--days", "1")
    done("rollback", "--all", code=1)
    done("rollback", "--all", "--allow-data-loss")
    done("status", code=3)


def test_no_setting_of_ours_stays_on_a_pooled_connection(pooled: str, bare: psycopg.Connection[Any]) -> None:
    show = "SELECT STRING_AGG(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE source = 'session'"

    def settings() -> set[str]:
        # Two at once, so that both connections of the pool are asked.
        with stats.connect(pooled) as one, stats.connect(pooled) as other, one.transaction(), other.transaction():
            return {scalar(one, show), scalar(other, show)}

    before = settings()
    stats.migrate(pooled)
    stats.query(pooled, "average_session_metrics", timeout=5)
    assert settings() == before
    others = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID()"
    assert scalar(bare, others) == 2


def test_a_second_migrator_behind_the_pooler_is_kept_out(pooled: str, bare: psycopg.Connection[Any]) -> None:
    with bare.transaction():
        bare.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT(CURRENT_SCHEMA()))")
        result = cli("migrate", "--lock-wait", "1", "--database", pooled)
    assert result.returncode == 4
    assert f"pid {bare.info.backend_pid}" in result.stderr
    assert cli("migrate", "--database", pooled).returncode == 0
