"""Migrations go up, down and up again, with any tool, one migrator at a time, and only from the released files."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from conftest import MIGRATIONS, ROOT, SERVER, cli, conninfo_of, copy_product, pg_dump, psql, scalar
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Process = subprocess.Popen[str]
UP = [ROOT / "migrations" / f"{name}.sql" for name in MIGRATIONS]
DOWN = [path.with_suffix(".rollback.sql") for path in reversed(UP)]
TABLE = "0003_create_session_stats"
FROM_TABLE_DOWN = next(number for number, path in enumerate(DOWN) if path.name == f"{TABLE}.rollback.sql")
PARENT = "CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY)"
LOCK = "SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT('public'))"


def dump(connection: Connection) -> str:
    return pg_dump(conninfo_of(connection), "--exclude-table=_yoyo*", "--exclude-table=yoyo_lock")


def by_psql(connection: Connection, *paths: Path) -> None:
    for path in paths:
        done = psql(conninfo_of(connection), "-q", "-1", "-f", path)
        assert done.returncode == 0, done.stderr


def yoyo(connection: Connection, *arguments: str, refused: bool = False) -> None:
    """Run yoyo's own command on the same files."""
    url = "postgresql+psycopg://?" + urlencode(conninfo_to_dict(conninfo_of(connection)))
    program = Path(sys.executable).with_name("yoyo")
    command = [program, *arguments, ROOT / "migrations", "--batch", "--no-config-file", "--database", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) is refused, done.stderr


def states(connection: Connection) -> list[str]:
    return [row["state"] for row in stats.status(conninfo_of(connection))]


def count_relations(connection: Connection) -> int:
    return scalar(connection, "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE")


# Up and down


def test_migrate_and_rollback_go_all_the_way_and_twice_change_nothing_more(bare: Connection) -> None:
    conninfo = conninfo_of(bare)
    empty = pg_dump(conninfo)
    assert stats.migrate(conninfo) == MIGRATIONS
    full = pg_dump(conninfo)
    assert stats.migrate(conninfo) == []
    assert pg_dump(conninfo) == full
    assert stats.rollback(conninfo, steps=None) == MIGRATIONS[::-1]
    assert pg_dump(conninfo) == empty
    assert stats.rollback(conninfo, steps=None) == []
    assert pg_dump(conninfo) == empty
    stats.migrate(conninfo)
    assert pg_dump(conninfo) == full


def test_every_rollback_leaves_the_schema_as_it_was_before_its_migration(bare: Connection, db: Connection) -> None:
    conninfo = conninfo_of(db)
    full, before = pg_dump(conninfo), list[str]()
    for path in UP:
        before.append(dump(bare))
        by_psql(bare, path)
    for name, schema in zip(MIGRATIONS[::-1], before[::-1], strict=True):
        assert stats.rollback(conninfo) == [name]
        if name != "0007_validate_session_stats":  # What was validated stays so.
            assert dump(db) == schema
        newest = MIGRATIONS[MIGRATIONS.index(name) :]
        assert [row["migration"] for row in stats.status(conninfo) if row["state"] == "pending"] == newest
    assert stats.migrate(conninfo) == MIGRATIONS
    assert pg_dump(conninfo) == full


def test_sessions_survive_a_rollback_of_what_was_built_on_their_table(db: Connection, insert: Callable[..., str]) -> None:
    session = insert(message_count=5)
    stats.rollback(conninfo_of(db), steps=FROM_TABLE_DOWN)
    stats.migrate(conninfo_of(db))
    assert scalar(db, "SELECT message_count FROM alicia_session_stats WHERE id = %s", session) == 5
    assert stats.verify(conninfo_of(db)) == []


def test_rollback_refuses_to_delete_sessions_and_changes_nothing(db: Connection, insert: Callable[..., str]) -> None:
    insert()
    before = pg_dump(conninfo_of(db))
    refused = cli("rollback", "--all", "--database", conninfo_of(db))
    assert refused.returncode == 1
    assert "alicia_session_stats holds rows" in refused.stderr
    assert "--allow-data-loss" in refused.stderr
    assert pg_dump(conninfo_of(db)) == before
    assert states(db) == ["applied"] * len(MIGRATIONS)
    done = cli("rollback", "--all", "--allow-data-loss", "--database", conninfo_of(db))
    assert done.returncode == 0, done.stderr
    assert count_relations(db) == 0


# The same files with other tools


def test_psql_makes_and_removes_the_same_schema_as_the_runner(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    by_psql(bare, *UP)
    assert dump(bare) == dump(db)
    by_psql(bare, *DOWN)
    assert dump(bare) == empty


def test_yoyo_makes_and_removes_the_same_schema_and_takes_turns_with_the_runner(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    yoyo(bare, "apply")
    assert dump(bare) == dump(db)
    assert states(bare) == ["applied"] * len(MIGRATIONS)
    assert stats.migrate(conninfo_of(bare)) == []
    assert stats.rollback(conninfo_of(bare), steps=2) == MIGRATIONS[:-3:-1]
    yoyo(bare, "apply")
    assert stats.migrate(conninfo_of(bare)) == []
    bare.execute("INSERT INTO alicia_conversations DEFAULT VALUES")
    yoyo(bare, "rollback", "--all", refused=True)
    assert scalar(bare, "DELETE FROM alicia_conversations RETURNING TRUE")
    yoyo(bare, "rollback", "--all")
    assert dump(bare) == empty


def test_every_file_may_run_twice(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    by_psql(bare, *(path for path in UP for _ in range(2)))
    yoyo(bare, "apply")
    assert dump(bare) == dump(db)
    by_psql(bare, *(path for path in DOWN for _ in range(2)))
    assert dump(bare) == empty


def test_a_migration_that_was_applied_but_not_recorded_is_applied_again(db: Connection) -> None:
    conninfo = conninfo_of(db)
    full = pg_dump(conninfo)
    for names in (MIGRATIONS[-1:], MIGRATIONS):
        db.execute("DELETE FROM _yoyo_migration WHERE migration_id = ANY(%s)", [names])
        assert stats.migrate(conninfo) == names
        assert pg_dump(conninfo) == full
    stats.rollback(conninfo, steps=None)
    assert count_relations(db) == 0


# The files are the released ones


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("SELECT 1;\n")


def prepend(line: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(f"{line}\n{path.read_text()}", encoding="utf-8", errors="surrogateescape")


def with_twin(path: Path) -> None:
    for each in (path, path.with_suffix(".rollback.sql")):
        append(each)


# What is done to which file, and what is said of it.
DAMAGED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (f"{TABLE}.sql", Path.unlink, "is missing"),
    "missing rollback": (f"{TABLE}.rollback.sql", Path.unlink, "is missing"),
    "without rollback": (
        f"{len(MIGRATIONS) + 1:04}_add_session_stats_more.rollback.sql",
        lambda path: append(path.with_name(f"{len(MIGRATIONS) + 1:04}_add_session_stats_more.sql")),
        "is missing",
    ),
    "gap": (f"{len(MIGRATIONS) + 2:04}_add_session_stats_more.sql", with_twin, f"{len(MIGRATIONS) + 1:04}"),
    "number taken twice": ("0003_drop_session_stats.sql", with_twin, "0004"),
    "not ours": (f"{len(MIGRATIONS) + 1:04}_add_users.py", append, "is not named NNNN_verb_session_stats_object"),
    "hook of yoyo's": ("post-apply.sql", append, "is not named NNNN_verb_session_stats_object"),
    "bad directive": (f"{TABLE}.sql", prepend("-- transactional: maybe"), "cannot be loaded"),
    "unknown dependency": (f"{TABLE}.sql", prepend("-- depends: 0000_nothing"), "cannot be loaded"),
    "bad encoding": (f"{TABLE}.sql", prepend("-- caf\udce9"), "cannot be loaded"),
}


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_folder_is_refused_before_connecting(
    tmp_path: Path, name: str, damage: Callable[[Path], object], said: str
) -> None:
    runner = copy_product(tmp_path)
    damage(tmp_path / "migrations" / name)
    refused = cli("migrate", "--database", "host=/nowhere dbname=none", runner=runner)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"migrations/{name}" in refused.stderr
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["migrate --plan", "rollback", "rollback --plan", "status", "verify"])
def test_every_command_that_reads_the_migrations_refuses_it_too(tmp_path: Path, command: str) -> None:
    runner = copy_product(tmp_path)
    (tmp_path / "migrations" / f"{TABLE}.sql").unlink()
    refused = cli(*command.split(), "--database", "host=/nowhere dbname=none", runner=runner)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"migrations/{TABLE}.sql is missing" in refused.stderr


def test_a_file_edited_after_it_was_applied_is_named_until_it_is_restored_or_applied_anew(db: Connection, tmp_path: Path) -> None:
    runner = copy_product(tmp_path)
    append(tmp_path / "migrations" / f"{TABLE}.sql")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return cli(*command.split(), "--database", conninfo_of(db), runner=runner)

    status = run("status --format csv")
    assert status.returncode == 1
    assert [line.split(",")[1] for line in status.stdout.splitlines()[1:]] == [
        "edited" if name == TABLE else "applied" for name in MIGRATIONS
    ]
    assert "a file was edited after it was applied" in status.stderr
    for command in ("migrate", "migrate --plan"):
        refused = run(command)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"migrations/{TABLE}.sql was edited after it was applied" in refused.stderr
    verify = run("verify --format csv")
    assert verify.returncode == 1
    assert [line.split(",")[0] for line in verify.stdout.splitlines()] == ["object", f"migration {TABLE}"]
    assert cli("status", "--database", conninfo_of(db)).returncode == 0

    assert run(f"rollback --steps {FROM_TABLE_DOWN + 1}").returncode == 0
    assert run("migrate").returncode == 0
    assert run("status").returncode == 0


def test_the_recorded_sha256_is_that_of_sha256sum(db: Connection) -> None:
    sums = subprocess.run(["sha256sum", *UP], capture_output=True, text=True, check=True).stdout.split()[::2]
    recorded = "SELECT ARRAY_AGG(comment::TEXT ORDER BY migration_id) FROM _yoyo_log WHERE operation = 'apply'"
    assert scalar(db, recorded) == [f"sha256:{digest}" for digest in sums]


def test_a_checkout_with_crlf_makes_the_same_schema_and_is_not_taken_for_edited(
    tmp_path: Path, bare: Connection, db: Connection
) -> None:
    runner = copy_product(tmp_path)
    for path in (tmp_path / "migrations").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    done = cli("migrate", "--database", conninfo_of(bare), runner=runner)
    assert done.returncode == 0, done.stderr
    assert dump(bare) == dump(db)
    assert states(bare) == ["applied"] * len(MIGRATIONS)


def test_a_pending_migration_older_than_an_applied_one_is_refused(db: Connection) -> None:
    db.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", [TABLE])
    refused = cli("migrate", "--database", conninfo_of(db))
    assert refused.returncode == 1
    assert f"{TABLE} is pending, but the newer {MIGRATIONS[-1]} is applied" in refused.stderr
    assert cli("status", "--database", conninfo_of(db)).returncode == 3


@pytest.mark.parametrize("command", [["migrate"], ["rollback"], ["migrate", "--plan"], ["rollback", "--plan"]])
def test_a_database_of_a_newer_release_is_left_alone(db: Connection, command: list[str]) -> None:
    db.execute("INSERT INTO _yoyo_migration VALUES ('hash', '0099_add_session_stats_later', NOW())")
    before = pg_dump(conninfo_of(db))
    refused = cli(*command, "--database", conninfo_of(db))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "migrated by a newer release, which has 0099_add_session_stats_later" in refused.stderr
    assert pg_dump(conninfo_of(db)) == before
    assert stats.status(conninfo_of(db))[-1]["migration"] == "0099_add_session_stats_later"


def test_a_new_migration_is_two_files_that_the_runner_accepts(tmp_path: Path, db: Connection) -> None:
    runner = copy_product(tmp_path)
    (tmp_path / "tests").mkdir()
    script = shutil.copy(ROOT / "tests" / "new_migration.sh", tmp_path / "tests")
    name = f"{len(MIGRATIONS) + 1:04}_add_session_stats_something"
    made = subprocess.run([script, name[5:]], capture_output=True, text=True, check=True).stdout
    assert made == f"migrations/{name}.sql\nmigrations/{name}.rollback.sql\n"
    for command, said in (("migrate", f"applied {name} "), ("rollback", f"rolled back {name} ")):
        done = cli(command, "--database", conninfo_of(db), runner=runner)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr


# What was applied is gone


def test_an_application_that_created_its_table_anew_is_told_what_is_gone_and_how_to_heal(db: Connection) -> None:
    db.execute("CREATE TEMPORARY TABLE old (LIKE alicia_session_stats INCLUDING ALL)")
    db.execute("DROP TABLE alicia_session_stats CASCADE")
    db.execute("CREATE TABLE alicia_session_stats (LIKE pg_temp.old INCLUDING ALL); DROP TABLE pg_temp.old")
    for command in ("migrate", "status"):
        done = cli(command, "--database", conninfo_of(db))
        assert done.returncode == 1
        assert re.search(r"\d+ objects that the migrations created are gone \(the first: .+\)\. Run verify", done.stderr), done
    assert cli("rollback", "--all", "--allow-data-loss", "--database", conninfo_of(db)).returncode == 0
    assert cli("migrate", "--database", conninfo_of(db)).returncode == 0
    assert cli("status", "--database", conninfo_of(db)).returncode == 0
    assert stats.verify(conninfo_of(db)) == []


def test_a_reset_that_left_only_yoyos_tables_is_told_how_to_heal(db: Connection) -> None:
    names = "SELECT STRING_AGG(oid::REGCLASS::TEXT, ', ') FROM pg_class WHERE relkind = 'r' AND relname LIKE 'alicia%'"
    db.execute(f"DROP TABLE {scalar(db, names)} CASCADE".encode())
    for command in ("migrate", "status"):
        told = cli(command, "--database", conninfo_of(db))
        assert told.returncode == 1
        assert 'what the migrations created is gone: relation "alicia_session_stats' in told.stderr
    [heal] = re.findall("DELETE FROM .+;", told.stderr)
    db.execute(heal.encode())
    assert stats.migrate(conninfo_of(db)) == MIGRATIONS
    assert stats.verify(conninfo_of(db)) == []


# One migrator at a time


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts a process in the background; what still runs at the end is killed."""
    started: list[Process] = []

    def popen(*arguments: str) -> Process:
        pipe = subprocess.PIPE
        command = [sys.executable, str(ROOT / "runner.py"), *arguments]
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: Process, text: str) -> str:
    """Read a process's stderr as far as a line with the text; after 30 seconds it is killed."""
    assert process.stderr is not None
    said = ""
    giving_up = threading.Timer(30, process.kill)
    giving_up.start()
    for line in process.stderr:
        said += line
        if text in line:
            giving_up.cancel()
            return said
    giving_up.cancel()
    raise AssertionError(f"it ended without saying {text!r}: {said}")


def sessions_of(connection: Connection) -> dict[int, float]:
    """The server's processes of migrators on this database, and for how many seconds each has been in a transaction."""
    with psycopg.connect(conninfo_of(connection)) as other:
        found = other.execute(
            "SELECT pid, COALESCE(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP() - xact_start), 0)::FLOAT FROM pg_stat_activity "
            "WHERE datname = CURRENT_DATABASE() AND application_name = 'alicia-session-stats'"
        )
        return dict(found.fetchall())


def test_ten_migrators_started_together_apply_each_migration_once(bare: Connection, start: Callable[..., Process]) -> None:
    migrators = [start("migrate", "--database", conninfo_of(bare)) for _ in range(10)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in migrators]
    assert [said for said, code in ended if code != 0] == []
    log = "SELECT ARRAY_AGG(migration_id::TEXT ORDER BY migration_id) FROM _yoyo_log WHERE operation = 'apply'"
    assert scalar(bare, log) == MIGRATIONS
    assert scalar(bare, "SELECT COUNT(*) FROM _yoyo_migration") == len(MIGRATIONS)


def test_migrations_and_rollbacks_started_together_end_without_an_error(bare: Connection, start: Callable[..., Process]) -> None:
    mixed = [start(*("migrate" if turn % 2 else "rollback --all").split(), "--database", conninfo_of(bare)) for turn in range(8)]
    assert [process.communicate(timeout=120)[1] for process in mixed if process.wait(120) != 0] == []
    stats.rollback(conninfo_of(bare), steps=None)
    assert count_relations(bare) == 0


@pytest.fixture
def busy(bare: Connection, start: Callable[..., Process]) -> Process:
    """A migrator that holds the lock and waits, because the test's own connection holds the parent table."""
    bare.execute(PARENT)
    bare.execute("BEGIN")
    bare.execute("LOCK TABLE alicia_conversations")
    process = start("migrate", "--database", conninfo_of(bare))
    read_until(process, "the table is busy")
    return process


@pytest.mark.usefixtures("busy")
def test_a_second_migrator_waits_for_a_bounded_time_and_says_for_whom(bare: Connection) -> None:
    held_elsewhere = [psycopg.connect(**SERVER) for _ in range(3)]  # The same key in another database is not the holder.
    for other in held_elsewhere:
        other.execute(LOCK.replace("LOCK", "LOCK_SHARED").encode())
    started = time.monotonic()
    waited = cli("migrate", "--lock-wait", "1", "--database", conninfo_of(bare))
    assert 1 < time.monotonic() - started < 10
    for other in held_elsewhere:
        other.close()
    assert waited.returncode == 4
    _, first, last = waited.stderr.splitlines()
    pid = re.fullmatch(r"waiting for another migrator \(pid (\d+)\)", first)
    assert pid, waited.stderr
    assert int(pid[1]) in sessions_of(bare)
    assert f"another migrator holds the lock (pid {pid[1]}). Nothing was changed. Retry, or raise --lock-wait" in last


def test_a_migrator_that_waits_holds_no_transaction_that_the_holder_could_wait_for(
    bare: Connection, busy: Process, start: Callable[..., Process]
) -> None:
    holders = sessions_of(bare).keys()
    read_until(start("migrate", "--database", conninfo_of(bare)), "waiting for another migrator")
    time.sleep(2)
    waiting = [seconds for pid, seconds in sessions_of(bare).items() if pid not in holders]
    assert len(waiting) == 1
    assert waiting[0] < 1
    assert busy.poll() is None


def test_a_migrator_that_is_killed_frees_the_next_at_once(bare: Connection, busy: Process, start: Callable[..., Process]) -> None:
    next_one = start("migrate", "--database", conninfo_of(bare))
    read_until(next_one, "waiting for another migrator")
    busy.send_signal(signal.SIGKILL)
    bare.execute("ROLLBACK")
    killed = time.monotonic()
    said = next_one.communicate(timeout=30)[1]
    assert time.monotonic() - killed < 5
    assert next_one.returncode == 0, said


def test_a_migrator_of_another_database_is_not_waited_for(bare: Connection) -> None:
    with psycopg.connect(**SERVER) as other:
        other.execute(LOCK)
        assert stats.migrate(conninfo_of(bare), lock_wait=0) == MIGRATIONS


def test_an_unreachable_name_server_does_not_hold_the_lock_up(bare: Connection, tmp_path: Path) -> None:
    names = ("getfqdn", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getaddrinfo")
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef resolve(*_, **__):\n    raise TimeoutError('no name server')\n"
        + "".join(f"socket.{name} = resolve\n" for name in names)
    )
    done = cli("migrate", "--database", conninfo_of(bare), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr


# A server that is not ready, a table that is not free


def test_wait_waits_for_a_server_that_is_still_starting_and_says_so(start: Callable[..., Process]) -> None:
    home = {"ALICIA_SESSION_STATS_HOME": tempfile.mkdtemp(prefix="alicia-late-")}
    try:
        conninfo = cli("embedded", env=home).stdout.strip()
        cli("embedded", "--stop", env=home)
        at_once = cli("migrate", "--database", conninfo)
        assert at_once.returncode == 1
        assert "cannot connect" in at_once.stderr
        waits = start("migrate", "--wait", "60", "--database", conninfo)
        read_until(waits, "the server does not answer yet, waiting for up to 60 s")
        assert cli("embedded", env=home).returncode == 0
        said = waits.communicate(timeout=60)[1]
        assert waits.returncode == 0, said
        assert cli("status", "--database", conninfo).returncode == 0
    finally:
        cli("embedded", "--remove", env=home)


def test_wait_gives_up_when_its_time_is_over_and_at_once_on_a_refusal(bare: Connection) -> None:
    started = time.monotonic()
    gone = cli("migrate", "--wait", "1", "--database", "host=/nowhere dbname=none")
    assert gone.returncode == 1
    assert 1 < time.monotonic() - started < 10
    started = time.monotonic()
    unknown = cli("migrate", "--wait", "60", "--database", make_conninfo(conninfo_of(bare), dbname="alicia_nowhere"))
    assert unknown.returncode == 1
    assert "does not exist" in unknown.stderr
    assert time.monotonic() - started < 10


def test_migrate_tries_again_until_a_busy_table_is_free(bare: Connection, start: Callable[..., Process]) -> None:
    bare.execute(PARENT)
    # It would end the connection that holds the migrators' lock and waits.
    bare.execute(f"ALTER DATABASE {bare.info.dbname} SET idle_in_transaction_session_timeout = '300ms'".encode())
    bare.execute("BEGIN")
    bare.execute("LOCK TABLE alicia_conversations IN ROW EXCLUSIVE MODE")  # That of a writer.
    process = start("migrate", "--database", conninfo_of(bare))
    read_until(process, "the table is busy, trying again in")
    bare.execute("COMMIT")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert states(bare) == ["applied"] * len(MIGRATIONS)
