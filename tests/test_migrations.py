"""Migrations go up, down and up again, by whatever tool, by one migrator at a time, and only as released."""

import hashlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from conftest import ROOT, SERVER, cli, conninfo_of, pg_dump, psql, scalar
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import runner

Connection = psycopg.Connection[Any]
Process = subprocess.Popen[str]
UP = sorted(path for path in (ROOT / "migrations").glob("*.sql") if not path.name.endswith(".rollback.sql"))
DOWN = [path.with_suffix(".rollback.sql") for path in reversed(UP)]
IDS = [path.stem for path in UP]
NOT_YOYO = ("--exclude-table=_yoyo*", "--exclude-table=yoyo_lock")
PARENT = "CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY)"


def dump(connection: Connection) -> str:
    return pg_dump(conninfo_of(connection), *NOT_YOYO)


def by_psql(connection: Connection, *paths: Path) -> None:
    for path in paths:
        done = psql(conninfo_of(connection), "-q", "-1", "-f", path)
        assert done.returncode == 0, done.stderr


def yoyo_command(conninfo: str, *arguments: str | Path) -> list[str]:
    url = "postgresql+psycopg://?" + urlencode(conninfo_to_dict(conninfo))
    return [str(Path(sys.executable).with_name("yoyo")), *map(str, arguments), "--batch", "--no-config-file", "--database", url]


def yoyo(connection: Connection, *arguments: str, refused: bool = False) -> None:
    command = yoyo_command(conninfo_of(connection), *arguments, ROOT / "migrations")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) is refused, done.stderr


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts a process in the background; what still runs at the end is killed."""
    started: list[Process] = []

    def popen(command: list[str], **options: Any) -> Process:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def migrator(connection: Connection, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "runner.py"), "migrate", "--database", conninfo_of(connection), *arguments]


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Call until it returns something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


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


# Up and down


def test_up_applies_everything_once_and_again_nothing(bare: Connection) -> None:
    assert runner.migrate(conninfo_of(bare)) == IDS
    before = pg_dump(conninfo_of(bare))
    assert runner.migrate(conninfo_of(bare)) == []
    again = cli("migrate", "--database", conninfo_of(bare))
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "nothing is pending\n"
    assert pg_dump(conninfo_of(bare)) == before


def test_down_to_zero_leaves_nothing_behind_and_up_again_is_the_same(bare: Connection) -> None:
    conninfo = conninfo_of(bare)
    empty = pg_dump(conninfo)
    runner.migrate(conninfo)
    full = pg_dump(conninfo)
    assert runner.rollback(conninfo, steps=None) == IDS[::-1]
    assert pg_dump(conninfo) == empty
    assert runner.rollback(conninfo, steps=None) == []
    assert pg_dump(conninfo) == empty
    assert runner.migrate(conninfo) == IDS
    assert pg_dump(conninfo) == full


def test_each_step_goes_down_and_up_again(db: Connection) -> None:
    conninfo = conninfo_of(db)
    full = pg_dump(conninfo)
    for count in range(1, len(IDS) + 1):
        newest = IDS[: -count - 1 : -1]
        assert runner.rollback(conninfo, steps=count) == newest
        assert [row["migration"] for row in runner.status(conninfo) if row["state"] == "pending"] == newest[::-1]
        assert runner.migrate(conninfo) == newest[::-1]
        assert pg_dump(conninfo) == full


def test_rows_survive_down_and_up_of_everything_above_the_table(db: Connection, insert: Callable[..., str]) -> None:
    session = insert(message_count=5)
    above = len(IDS) - IDS.index("0003_create_session_stats") - 1
    runner.rollback(conninfo_of(db), steps=above)
    runner.migrate(conninfo_of(db))
    assert scalar(db, "SELECT message_count FROM alicia_session_stats WHERE id = %s", session) == 5


def test_rollback_refuses_to_lose_rows_and_then_nothing_of_it_happened(db: Connection, insert: Callable[..., str]) -> None:
    for _ in range(3):
        insert()
    before = pg_dump(conninfo_of(db))
    refused = cli("rollback", "--all", "--database", conninfo_of(db))
    assert refused.returncode == 1
    assert "alicia_session_stats holds 3 rows" in refused.stderr
    assert "--allow-data-loss" in refused.stderr
    assert pg_dump(conninfo_of(db)) == before
    assert [row["state"] for row in runner.status(conninfo_of(db))] == ["applied"] * len(IDS)
    done = cli("rollback", "--all", "--allow-data-loss", "--database", conninfo_of(db))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("direction", ["migrate", "rollback"])
def test_a_plan_is_the_files_and_changes_nothing(bare: Connection, db: Connection, direction: str) -> None:
    connection, files = (bare, UP) if direction == "migrate" else (db, DOWN)
    before = pg_dump(conninfo_of(connection))
    every = [] if direction == "migrate" else ["--all"]
    planned = cli(direction, "--plan", *every, "--database", conninfo_of(connection))
    assert planned.returncode == 0
    assert planned.stdout == "\n".join(f"-- {path.name}\n{path.read_text()}" for path in files)
    assert pg_dump(conninfo_of(connection)) == before


# The same files by other tools


def test_psql_gives_the_same_schema_as_the_runner(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    by_psql(bare, *UP)
    assert dump(bare) == dump(db)
    by_psql(bare, *DOWN)
    assert dump(bare) == empty


def test_yoyo_gives_the_same_schema_as_the_runner(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    yoyo(bare, "apply")
    assert dump(bare) == dump(db)
    yoyo(bare, "rollback", "--all")
    assert dump(bare) == empty


def test_status_recognises_what_yoyo_applied(bare: Connection) -> None:
    yoyo(bare, "apply")
    assert [(row["migration"], row["state"]) for row in runner.status(conninfo_of(bare))] == [(name, "applied") for name in IDS]
    assert cli("status", "--database", conninfo_of(bare)).returncode == 0
    assert runner.migrate(conninfo_of(bare)) == []
    assert runner.rollback(conninfo_of(bare), steps=2) == IDS[:-3:-1]
    yoyo(bare, "apply")
    assert runner.migrate(conninfo_of(bare)) == []


def test_status_shows_what_is_pending_and_makes_no_table(bare: Connection) -> None:
    empty = pg_dump(conninfo_of(bare))
    shown = cli("status", "--format", "csv", "--database", conninfo_of(bare))
    assert shown.returncode == 3
    assert shown.stdout.split() == ["migration,state,applied_at", *(f"{name},pending," for name in IDS)]
    assert pg_dump(conninfo_of(bare)) == empty


def test_psql_and_yoyo_refuse_to_lose_rows_too(
    db: Connection, insert: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    insert()
    drops = next(path for path in DOWN if path.name.startswith("0003"))
    by_psql(db, *DOWN[: DOWN.index(drops)])
    refused = psql(conninfo_of(db), "-1", "-f", drops)
    assert refused.returncode == 3
    assert "alicia_session_stats holds 1 rows" in refused.stderr
    yoyo(db, "rollback", "--all", refused=True)
    assert scalar(db, "SELECT COUNT(*) FROM alicia_session_stats") == 1
    monkeypatch.setenv("PGOPTIONS", "-c alicia_session_stats.allow_data_loss=on")
    by_psql(db, *DOWN[DOWN.index(drops) :])
    assert scalar(db, "SELECT TO_REGCLASS('alicia_conversations') IS NULL")


def test_psql_may_run_every_file_twice(bare: Connection, db: Connection) -> None:
    empty = dump(bare)
    by_psql(bare, *(path for path in UP for _ in range(2)))
    by_psql(bare, *UP)
    assert dump(bare) == dump(db)
    by_psql(bare, *(path for path in DOWN for _ in range(2)))
    assert dump(bare) == empty


def test_the_runner_may_run_every_file_twice(db: Connection) -> None:
    conninfo = conninfo_of(db)
    full = pg_dump(conninfo)
    for remaining in range(len(IDS), 0, -1):
        db.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", [IDS[remaining - 1]])
        assert runner.migrate(conninfo) == IDS[remaining - 1 :]
        assert pg_dump(conninfo) == full
        runner.rollback(conninfo, steps=len(IDS) - remaining + 1)
    assert scalar(db, "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE") == 0


def test_yoyo_may_run_every_file_twice(bare: Connection, db: Connection) -> None:
    by_psql(bare, *UP)
    yoyo(bare, "apply")
    bare.execute("DELETE FROM _yoyo_migration")
    yoyo(bare, "apply")
    assert dump(bare) == dump(db)


# Integrity


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the product that a test may damage."""
    for name in ("migrations", "queries"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "runner.py", tmp_path)
    return tmp_path


def run_copy(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(copy / "runner.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def sign(copy: Path) -> None:
    folder = copy / "migrations"
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("*.sql"))]
    (folder / "SHA256SUMS").write_text("".join(sums))


def change(path: Path) -> None:
    path.write_text(f"{path.read_text()}SELECT 1;\n")


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "changed": ("0003_create_session_stats.sql", change),
    "changed rollback": ("0003_create_session_stats.rollback.sql", change),
    "missing": ("0005_index_session_stats_conversation.sql", Path.unlink),
    "missing rollback": ("0008_validate_session_stats.rollback.sql", Path.unlink),
    "unlisted": ("0009_add_session_stats_more.sql", lambda path: path.write_text("SELECT 1;\n")),
    "unlisted rollback": ("0009_add_session_stats_more.rollback.sql", lambda path: path.write_text("SELECT 1;\n")),
    "stray python": ("0009_anything.py", lambda path: path.write_text("from yoyo import step\n")),
    "stray hook": ("post-apply.sql", lambda path: path.write_text("SELECT 1;\n")),
    "no sums": ("SHA256SUMS", Path.unlink),
    "damaged sums": ("SHA256SUMS", lambda path: path.write_text(f"{path.read_text()}=======\n")),
    "empty sums": ("0001_check_session_stats_host", lambda path: path.with_name("SHA256SUMS").write_text("")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_that_is_not_the_released_one_is_refused_before_connecting(
    copy: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(copy / "migrations" / name)
    refused = run_copy(copy, "migrate", "--database", "host=/nowhere dbname=none")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert name in refused.stderr
    assert "cannot connect" not in refused.stderr


@pytest.mark.parametrize("command", [["rollback", "--all"], ["migrate", "--plan"], ["rollback", "--plan"]])
def test_rollback_and_plan_refuse_it_too(copy: Path, command: list[str]) -> None:
    change(copy / "migrations" / UP[0].name)
    refused = run_copy(copy, *command, "--database", "host=/nowhere dbname=none")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"migrations/{UP[0].name} was changed" in refused.stderr


def test_a_checkout_with_crlf_is_accepted_and_gives_the_same_schema(copy: Path, bare: Connection, db: Connection) -> None:
    for path in (copy / "migrations").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    done = run_copy(copy, "migrate", "--database", conninfo_of(bare))
    assert done.returncode == 0, done.stderr
    assert dump(bare) == dump(db)


def test_sha256sum_itself_holds_the_files_against_the_sums() -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=ROOT / "migrations", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert len(checked.stdout.splitlines()) == len([*UP, *DOWN])


@pytest.mark.parametrize("line", ["-- transactional: maybe", "-- depends: 0000_create_nothing", "-- caf\udce9"])
def test_a_file_that_yoyo_cannot_load_stops_the_run(copy: Path, bare: Connection, line: str) -> None:
    path = copy / "migrations" / "0007_constrain_session_stats.sql"
    path.write_text(f"{line}\n{path.read_text()}", encoding="utf-8", errors="surrogateescape")
    sign(copy)
    empty = pg_dump(conninfo_of(bare))
    stopped = run_copy(copy, "migrate", "--database", conninfo_of(bare))
    assert stopped.returncode == 1
    assert "migrations/0007_constrain_session_stats.sql cannot be loaded" in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert pg_dump(conninfo_of(bare)) == empty


def test_a_pending_migration_older_than_an_applied_one_is_refused_unless_allowed(db: Connection) -> None:
    db.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", [IDS[3]])
    refused = cli("migrate", "--database", conninfo_of(db))
    assert refused.returncode == 1
    assert IDS[3] in refused.stderr
    assert IDS[-1] in refused.stderr
    assert "--allow-out-of-order" in refused.stderr
    assert cli("status", "--database", conninfo_of(db)).returncode == 3
    allowed = cli("migrate", "--allow-out-of-order", "--database", conninfo_of(db))
    assert (allowed.returncode, allowed.stderr) == (0, f"applying {IDS[3]}\n")


@pytest.mark.parametrize("command", [["migrate"], ["rollback"], ["migrate", "--plan"], ["rollback", "--plan"]])
def test_a_database_of_a_newer_release_is_recognised(db: Connection, command: list[str]) -> None:
    db.execute("INSERT INTO _yoyo_migration VALUES ('hash', '0099_add_session_stats_later', NOW())")
    before = pg_dump(conninfo_of(db))
    refused = cli(*command, "--database", conninfo_of(db))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "migrated by a newer release" in refused.stderr
    assert "0099_add_session_stats_later" in refused.stderr
    assert pg_dump(conninfo_of(db)) == before
    assert runner.status(conninfo_of(db))[-1]["migration"] == "0099_add_session_stats_later"


# One migrator at a time


def test_sixteen_migrators_started_together_apply_each_migration_once(bare: Connection, start: Callable[..., Process]) -> None:
    migrators = [start(migrator(bare)) for _ in range(16)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in migrators]
    assert [said for said, code in ended if code != 0] == []
    log = "SELECT ARRAY_AGG(migration_id::TEXT ORDER BY migration_id) FROM _yoyo_log WHERE operation = 'apply'"
    assert scalar(bare, log) == IDS
    assert scalar(bare, "SELECT COUNT(*) FROM _yoyo_migration") == len(IDS)
    assert scalar(bare, "SELECT COUNT(*) FROM yoyo_lock") == 0


def test_migrators_and_rollbacks_started_together_end_without_an_error(bare: Connection, start: Callable[..., Process]) -> None:
    def command(what: str) -> list[str]:
        return [sys.executable, str(ROOT / "runner.py"), *what.split(), "--database", conninfo_of(bare)]

    mixed = [start(command("migrate" if turn % 2 else "rollback --all")) for turn in range(8)]
    assert [process.communicate(timeout=120)[1] for process in mixed if process.wait(120) != 0] == []
    runner.rollback(conninfo_of(bare), steps=None)
    assert scalar(bare, "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE") == 0


@pytest.fixture
def busy(bare: Connection, start: Callable[..., Process]) -> Process:
    """A migrator that holds the lock, since the test's own connection holds the parent table."""
    bare.execute(PARENT)
    bare.execute("BEGIN")
    bare.execute("LOCK TABLE alicia_conversations")
    process = start(migrator(bare))
    read_until(process, "the table is busy")
    return process


def sessions_of(connection: Connection) -> set[str]:
    """The server's processes of migrators on this database."""
    with psycopg.connect(conninfo_of(connection)) as other:
        rows = other.execute(
            "SELECT pid::TEXT FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND application_name = %s",
            [runner.PROGRAM],
        )
        return {row[0] for row in rows}


def test_a_held_lock_is_waited_for_with_a_bound_and_says_who_holds_it(bare: Connection, busy: Process) -> None:
    started = time.monotonic()
    waited = subprocess.run(migrator(bare, "--lock-wait", "1"), capture_output=True, text=True, check=False)
    assert 1 < time.monotonic() - started < 10
    assert waited.returncode == 4
    first, last = waited.stderr.splitlines()
    said = r"another migrator.*: pid (\d+), application alicia-session-stats, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    assert [re.search(said, line) is not None for line in (first, last)] == [True, True], waited.stderr
    named = re.search(said, first)
    assert named is not None
    assert named[1] in sessions_of(bare)
    assert "--lock-wait" in last
    assert busy.poll() is None


def test_while_it_waits_it_holds_no_transaction_that_the_holder_could_wait_for(
    bare: Connection, busy: Process, start: Callable[..., Process]
) -> None:
    holders = sessions_of(bare)
    read_until(start(migrator(bare)), "waiting for another migrator")
    with psycopg.connect(conninfo_of(bare), autocommit=True) as watcher:
        states = set[str]()
        for _ in range(10):
            time.sleep(0.1)
            rows = watcher.execute(
                "SELECT state FROM pg_stat_activity WHERE application_name = %s AND pid <> ALL(%s::INTEGER[])",
                [runner.PROGRAM, list(holders)],
            )
            states |= {state for (state,) in rows}
    assert "idle" in states
    assert "idle in transaction" not in states
    assert busy.poll() is None


def test_a_migrator_of_another_database_is_not_named_as_the_holder(bare: Connection, busy: Process) -> None:
    key = "HASHTEXT('alicia_session_stats'), HASHTEXT('public')"
    others = [psycopg.connect(**SERVER) for _ in range(8)]
    for other in others:
        other.execute(f"SELECT PG_ADVISORY_XACT_LOCK_SHARED({key})".encode())
    waited = subprocess.run(migrator(bare, "--lock-wait", "0"), capture_output=True, text=True, check=False)
    for other in others:
        other.close()
    assert waited.returncode == 4
    named = re.search(r"pid (\d+)", waited.stderr)
    assert named is not None
    assert named[1] in sessions_of(bare)
    assert busy.poll() is None


def test_a_migrator_of_another_database_is_not_waited_for(bare: Connection) -> None:
    with psycopg.connect(**SERVER) as other:
        other.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXT('alicia_session_stats'), HASHTEXT('public'))")
        assert runner.migrate(conninfo_of(bare), lock_wait=0) == IDS


def test_a_holder_that_is_sigkilled_frees_the_next_at_once(
    bare: Connection, busy: Process, start: Callable[..., Process]
) -> None:
    next_one = start(migrator(bare, "--lock-wait", "60"))
    read_until(next_one, "waiting for another migrator")
    busy.send_signal(signal.SIGKILL)
    bare.execute("ROLLBACK")
    killed = time.monotonic()
    said = next_one.communicate(timeout=30)[1]
    assert time.monotonic() - killed < 5
    assert next_one.returncode == 0, said
    assert f"cleared the yoyo_lock that process {busy.pid} left behind" in said


def test_a_lock_row_of_a_dead_process_of_ours_heals_and_says_so(db: Connection) -> None:
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, '2024-01-02 03:04:05', -4242)")
    done = cli("migrate", "--lock-wait", "0", "--database", conninfo_of(db))
    assert done.returncode == 0
    assert "cleared the yoyo_lock that process 4242 left behind at 2024-01-02 03:04:05 UTC" in done.stderr
    assert scalar(db, "SELECT COUNT(*) FROM yoyo_lock") == 0


def test_a_lock_row_older_than_every_session_heals(db: Connection) -> None:
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, NOW() AT TIME ZONE 'UTC' - INTERVAL '2 minutes', 4242)")
    done = cli("migrate", "--lock-wait", "0", "--database", conninfo_of(db))
    assert done.returncode == 0
    assert "cleared the yoyo_lock that process 4242 left behind" in done.stderr


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_a_lock_row_that_a_live_session_may_have_written_is_respected(db: Connection, zone: str) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET timezone = '{zone}'".encode())
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, NOW() AT TIME ZONE 'UTC', 4242)")
    refused = cli("migrate", "--lock-wait", "0", "--database", conninfo_of(db))
    assert refused.returncode == 4
    assert "a yoyo command, process 4242" in refused.stderr
    assert "yoyo break-lock" in refused.stderr
    assert scalar(db, "SELECT pid FROM yoyo_lock") == 4242


@pytest.fixture
def slow_yoyo(bare: Connection, tmp_path: Path, start: Callable[..., Process]) -> Callable[[float], Process]:
    """Starts a real yoyo command that holds yoyo's lock for some seconds."""
    conninfo = conninfo_of(bare)
    asleep = "SELECT COUNT(*) FROM yoyo_lock, pg_stat_activity WHERE datname = CURRENT_DATABASE() AND query ~ '^SELECT pg_sleep'"

    def apply(seconds: float) -> Process:
        (tmp_path / "0001_sleep.sql").write_text(f"SELECT pg_sleep({seconds});\n")
        process = start(yoyo_command(conninfo, "apply", tmp_path))

        def locked() -> bool:
            with suppress(psycopg.errors.UndefinedTable), psycopg.connect(conninfo) as other:
                return scalar(other, asleep) == 1
            return False

        until(locked)
        return process

    return apply


def test_the_lock_of_a_live_yoyo_command_is_respected(bare: Connection, slow_yoyo: Callable[[float], Process]) -> None:
    process = slow_yoyo(3)
    refused = cli("migrate", "--lock-wait", "0.5", "--database", conninfo_of(bare))
    assert refused.returncode == 4
    assert f"a yoyo command, process {process.pid}" in refused.stderr
    waited = cli("migrate", "--lock-wait", "30", "--database", conninfo_of(bare))
    assert waited.returncode == 0, waited.stderr
    assert "cleared" not in waited.stderr
    assert process.wait(10) == 0, process.communicate()[1]


def test_the_lock_of_a_killed_yoyo_command_heals_when_its_last_session_ends(
    bare: Connection, slow_yoyo: Callable[[float], Process]
) -> None:
    conninfo = conninfo_of(bare)
    bare.close()
    process = slow_yoyo(2)
    process.kill()
    healed = cli("migrate", "--lock-wait", "30", "--database", conninfo)
    assert healed.returncode == 0, healed.stderr
    assert f"cleared the yoyo_lock that process {process.pid} left behind" in healed.stderr


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_the_lock_does_not_block_a_concurrent_index_build(bare: Connection, isolation: str) -> None:
    role = f"ALTER ROLE CURRENT_USER IN DATABASE {bare.info.dbname} SET default_transaction_isolation = '{isolation}'"
    bare.execute(role.encode())
    done = subprocess.run(migrator(bare), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert scalar(bare, "SELECT COUNT(*) FROM pg_index WHERE indrelid = 'alicia_session_stats'::REGCLASS AND indisvalid") == 3


# A server that is not ready, a table that is not free


def test_wait_waits_for_a_server_that_is_still_starting(start: Callable[..., Process]) -> None:
    home = {"ALICIA_SESSION_STATS_HOME": tempfile.mkdtemp(prefix="alicia-late-")}
    try:
        conninfo = cli("embedded", env=home).stdout.strip()
        cli("embedded", "--stop", env=home)
        at_once = cli("migrate", "--database", conninfo)
        assert at_once.returncode == 1
        assert "cannot connect" in at_once.stderr
        waits = start([sys.executable, str(ROOT / "runner.py"), "migrate", "--wait", "30", "--database", conninfo])
        time.sleep(1)
        assert waits.poll() is None
        assert cli("embedded", env=home).returncode == 0
        said = waits.communicate(timeout=30)[1]
        assert waits.returncode == 0, said
        assert cli("status", "--database", conninfo).returncode == 0
    finally:
        cli("embedded", "--remove", env=home)


def test_wait_gives_up_when_its_time_is_over_and_at_once_on_a_refusal(bare: Connection) -> None:
    started = time.monotonic()
    gone = cli("migrate", "--wait", "1", "--database", "host=/nowhere dbname=none")
    assert gone.returncode == 1
    assert 1 < time.monotonic() - started < 5
    started = time.monotonic()
    unknown = cli("migrate", "--wait", "60", "--database", make_conninfo(conninfo_of(bare), dbname="alicia_nowhere"))
    assert unknown.returncode == 1
    assert "does not exist" in unknown.stderr
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "ROW EXCLUSIVE"])
def test_a_table_that_is_held_makes_migrate_back_off_and_succeed_later(
    bare: Connection, start: Callable[..., Process], mode: str
) -> None:
    bare.execute(PARENT)
    bare.execute("BEGIN")
    bare.execute(f"LOCK TABLE alicia_conversations IN {mode} MODE".encode())
    process = start(migrator(bare))
    until(lambda: sessions_of(bare))
    release = threading.Timer(3, bare.execute, ["COMMIT"])
    release.start()
    said = read_until(process, "the table is busy, trying again in") + process.communicate(timeout=60)[1]
    release.join()
    assert process.returncode == 0, said
    assert scalar(bare, "SELECT COUNT(*) FROM _yoyo_migration") == len(IDS)
