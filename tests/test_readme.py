"""README.md and docs/deploying.md are true: every command in them works as printed, and their tables say what is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import PASSWORD, PROGRAMS, ROOT, cli, conninfo_of, scalar
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_live import TABLES

import alicia_session_stats as stats
import runner
from alicia_session_stats.query_files import PURPOSES

README, DEPLOYING = ((ROOT / name).read_text() for name in ("README.md", "docs/deploying.md"))
Connection = psycopg.Connection[Any]
Login = Callable[..., Connection]
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 migrations pending, 4 another migrator holds the lock."
# The application's tables, as its own migrations create them.
APPLICATION = """
    CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql RETURN prefix || '_' || MD5(RANDOM()::TEXT);
    CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY DEFAULT generate_random_id('ac'), title TEXT);
"""


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language, without their indentation."""
    return re.findall(rf"^```{language}\n(.*?)^```", document, re.S | re.M)


def make_commands(document: str) -> set[str]:
    """Every make command that a block or a sentence shows, without its comment."""
    shown = re.findall(r"`(make [^`\n]+)`", document)
    for block in blocks(document, "sh") + blocks(document, "console"):
        shown += re.findall(r"^(?:\$ )?(make .*)", block, re.M)
    return {re.split(r"\s+#", command)[0] for command in shown}


def one_block(document: str, part: str) -> str:
    """The only shell or SQL block that contains a text."""
    [block] = [block for block in blocks(document, "sh") + blocks(document, "sql") if part in block]
    return block


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git has, with the virtual environment in place."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    for name in ("pyproject.toml", "tests/constraints.txt"):  # Older than the environment: nothing to install.
        os.utime(tmp_path / name, (0, 0))
    return tmp_path


def shell(command: str, folder: Path, database: Connection, program: str = "sh") -> subprocess.CompletedProcess[str]:
    """Run a command in a reader's shell, with DATABASE_URL set and psql in the PATH."""
    path = os.pathsep.join([str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DATABASE_URL": conninfo_of(database)}
    return subprocess.run(
        [program, "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def url_of(connection: Connection, scheme: str) -> str:
    """The URL of a connection's database for a program that takes no conninfo."""
    parts = conninfo_to_dict(conninfo_of(connection))
    user = f"{parts['user']}:{parts['password']}" if parts.get("password") else parts["user"]
    return f"{scheme}://{user}@/{parts['dbname']}?host={parts['host']}&port={parts.get('port', 5432)}"


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(make_commands(README) | make_commands(DEPLOYING)))
def test_make_commands_work(command: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    quick = {
        "make demo": "make demo ROWS=500",
        "make test": "make test ARGS='--collect-only --numprocesses 0'",
        "make chaos": "make -n chaos",
        "make bench ROWS=500000": "make -n bench",
        "make bench ROWS=5000000": "make -n bench",
    }
    is_migrated = re.match("make (query|purge|report|psql|attach)", command)
    database: Connection = request.getfixturevalue("db" if is_migrated else "bare")
    if command == "make attach":
        database.execute(TABLES.encode())
    done = shell(quick.get(command, command), checkout, database)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shown_output_has_the_real_columns_and_rows(db: Connection) -> None:
    shown = re.findall(r"\$ make query NAME=(\w+)\n(.*?)```", README, re.S)
    assert shown
    for name, text in shown:
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "-+-" not in line]
        rows = stats.query(db, name)
        assert lines[0] == list(rows[0])
        assert [line[0] for line in lines[1:]] == [next(iter(row.values())) for row in rows]
        assert all(len(line) == len(lines[0]) for line in lines)


def test_first_commands_ask_for_each_purpose() -> None:
    asked = re.findall(r"make query NAME=(\w+)", README.partition("## Queries")[0])
    assert {stats.queries()[name].purpose for name in asked} == set(PURPOSES[:4])


def test_table_of_queries_has_every_parameter_and_default() -> None:
    table: dict[str, str] = {}
    for line in README.splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            for name in re.findall(r"`(\w+)`", line.split("|")[1]):
                table[name] = line.split("|")[3].strip()
    expected = {
        query.name: ", ".join(f"`{param.name}`" + (f" ({param.default})" if param.default else "") for param in query.params)
        for query in stats.queries().values()
    }
    assert {name: table.get(name) for name in expected} == expected


def test_table_of_columns_is_the_catalogs(db: Connection) -> None:
    columns = db.execute("""
        SELECT column_name, UPPER(SPLIT_PART(data_type, ' ', 1)) || COALESCE(', ' || column_default, '')
        FROM information_schema.columns
        WHERE table_name = 'alicia_session_stats'
        ORDER BY ordinal_position
    """).fetchall()
    table = re.findall(r"^\| `(\w+)` \| ([A-Z]+(?:, [^|]+)?) \|", README, re.M)
    assert [(name, kind.replace("`", "")) for name, kind in table] == [
        (name, kind.replace("'ass'::text", "'ass'").replace("now()", "NOW()")) for name, kind in columns
    ]


def test_every_command_and_the_exit_codes_are_named() -> None:
    for name in runner.COMMANDS:
        assert re.search(rf"`{name}`|`make {name}\b|^make {name}\b", README, re.M), name
    assert EXIT_CODES in README
    assert EXIT_CODES in " ".join(cli("--help").stdout.split())


def test_python_block_runs_as_printed(bare: Connection) -> None:
    [code] = blocks(README, "python")
    environment = {**os.environ, "DATABASE_URL": conninfo_of(bare)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "avg_messages" in done.stdout
    assert scalar(bare, "SELECT SUM(message_count) FROM alicia_session_stats") == 4


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/deploying.md",
        "docs/design.md",
        "docs/applications.md",
        "monitoring/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ],
)
def test_links_lead_to_files(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert (ROOT / document).parent.joinpath(target).exists(), target


# docs/deploying.md


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_psql_applies_and_takes_back_the_files(program: str, bare: Connection) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = shell(one_block(DEPLOYING, "grep -v rollback"), ROOT, bare, program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING") == 1
    assert stats.query(bare, "verify") == []
    assert {row["state"] for row in stats.status(conninfo_of(bare))} == {"pending"}

    bare.execute("INSERT INTO alicia_conversations DEFAULT VALUES")
    back = one_block(DEPLOYING, "*.rollback.sql")
    refused = shell(back, ROOT, bare, program)
    assert refused.returncode == 3
    assert refused.stderr.count("ERROR") == 1
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_conversations") == 1

    [option] = re.findall(r"`(PGOPTIONS=[^`]+)`", DEPLOYING)
    done = shell(f"export {option}; {back}", ROOT, bare, program)
    assert done.returncode == 0, done.stderr
    assert scalar(bare, "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::REGNAMESPACE") == 0


def test_psql_loop_stops_with_a_failing_exit_code_at_the_first_error(bare: Connection, checkout: Path) -> None:
    loop = one_block(DEPLOYING, "grep -v rollback")
    (checkout / "migrations" / "0003_create_session_stats.sql").write_text("SELECT 1 / 0;\n")
    failed = shell(loop, checkout, bare)
    assert failed.returncode == 3
    assert failed.stderr.count("ERROR") == 1
    assert scalar(bare, "SELECT TO_REGCLASS('alicia_session_stats_owned_objects') IS NOT NULL")
    assert scalar(bare, "SELECT TO_REGCLASS('alicia_session_stats_rollup') IS NULL")
    # Also the shell that the reader pastes it into goes on, and knows of the failure.
    assert shell(f"{loop} && echo applied", checkout, bare).stdout.endswith("applied\n") is False
    assert shell(f"{loop}echo $?", checkout, bare).stdout.endswith("\n3\n")


def test_migrate_records_what_psql_applied(bare: Connection) -> None:
    assert shell(one_block(DEPLOYING, "grep -v rollback"), ROOT, bare).returncode == 0
    stats.migrate(conninfo_of(bare))
    assert {row["state"] for row in stats.status(conninfo_of(bare))} == {"applied"}
    assert stats.verify(conninfo_of(bare)) == []


def test_yoyo_applies_the_files(bare: Connection) -> None:
    command = one_block(DEPLOYING, "yoyo apply").replace(
        "postgresql+psycopg://app@db/alicia", shlex.quote(url_of(bare, "postgresql+psycopg"))
    )
    done = shell(command, ROOT, bare)
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in stats.status(conninfo_of(bare))} == {"applied"}
    assert stats.verify(conninfo_of(bare)) == []


def test_grants_are_enough(bare: Connection, login: Login) -> None:
    before, after = (one_block(DEPLOYING, f"-- {when} migrating.") for when in ("Before", "After"))
    bare.execute(f"{APPLICATION} INSERT INTO alicia_conversations VALUES ('ac_1')".encode())
    bare.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
    bare.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    migrator = login("alicia_migrator")
    bare.execute(before.encode())
    stats.migrate(make_conninfo(conninfo_of(bare), user=migrator.info.user, password=PASSWORD))

    roles = {name: login(f"alicia_{name}") for name in ("reader", "recorder", "keeper")}
    bare.execute(after.encode())
    [session] = stats.query(roles["recorder"], "start_session", conversation_id="ac_1")
    given = {"conversation_id": "ac_1", "session_id": session["id"], "days": 1}
    for query in stats.queries().values():
        if query.name in ("rebuild_sessions", "summarize_days"):  # One reads tables of the application; one is the owner's.
            continue
        writer = "keeper" if query.name.startswith("delete") else "recorder"
        required = {param.name: given[param.name] for param in query.params if param.default is None}
        stats.query(roles[writer if query.writes else "reader"], query.name, **required)

    reader = make_conninfo(conninfo_of(bare), user="alicia_reader", password=PASSWORD)
    assert {row["state"] for row in stats.status(reader)} == {"applied"}
    assert stats.verify(reader) == []
    bare.execute("ALTER ROLE alicia_reader SET default_transaction_read_only = on")
    for command in ("status", "verify"):
        done = cli(command, "--database", reader)
        assert (done.returncode, done.stderr) == (0, "" if command == "status" else "no differences\n")

    bare.execute("UPDATE alicia_session_stats SET created_at = '2020-01-01'")
    keeper = make_conninfo(conninfo_of(bare), user="alicia_keeper", password=PASSWORD)
    done = cli("purge", "--days", "100", "--yes", "--database", keeper)
    assert (done.returncode, "2 sessions deleted" in done.stderr) == (0, True), done.stderr


def test_application_that_drops_its_table_is_installed_again(bare: Connection) -> None:
    bare.execute(APPLICATION.encode())
    stats.migrate(conninfo_of(bare))
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        bare.execute("DROP TABLE alicia_session_stats")
    [drop] = re.findall(r"`(DROP TABLE [^`]+ CASCADE)`", DEPLOYING)
    bare.execute(drop.encode())
    told = cli("status", "--database", conninfo_of(bare))
    assert told.returncode == 1
    assert "objects that the migrations created are gone" in told.stderr

    for line in one_block(DEPLOYING, "--allow-data-loss\n").splitlines():
        done = cli(*line.split()[1:], "--database", conninfo_of(bare))
        assert done.returncode == 0, done.stderr
    assert stats.verify(conninfo_of(bare)) == []
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats_quarter_hours") == 0


def test_package_first_is_taken_back_while_empty(bare: Connection) -> None:
    stats.migrate(conninfo_of(bare))
    with pytest.raises(psycopg.errors.DuplicateTable):
        bare.execute("CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY, title TEXT)")
    stats.rollback(conninfo_of(bare), steps=None)
    bare.execute(APPLICATION.encode())
    stats.migrate(conninfo_of(bare))
    stats.rollback(conninfo_of(bare), steps=None, allow_data_loss=True)
    assert scalar(bare, "SELECT TO_REGCLASS('alicia_conversations') IS NOT NULL")


def test_views_are_compared_again_once_they_are_recorded_under_this_major_version(db: Connection) -> None:
    columns = "bucket_start, 0::BIGINT AS sessions, messages, tool_calls, memories, seconds"
    db.execute(
        f"CREATE OR REPLACE VIEW alicia_session_stats_quarter_hours AS SELECT {columns} FROM alicia_session_stats_parts".encode()
    )
    assert len(stats.query(db, "verify")) == 1
    db.execute("UPDATE alicia_session_stats_owned_objects SET server_version = 14")
    assert stats.query(db, "verify") == []
    db.execute(one_block(DEPLOYING, "alicia_session_stats_restore").encode())
    old = "SELECT COUNT(*) FROM alicia_session_stats_owned_objects WHERE object LIKE 'VIEW %' AND server_version = 14"
    assert scalar(db, old) == 0
    assert stats.query(db, "verify") == []
    db.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
    assert scalar(db, "SELECT SUM(sessions) FROM alicia_session_stats_quarter_hours") == 1


def test_repair_removes_the_difference_of_writes_that_bypassed_the_triggers(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1')")
    assert stats.query(db, "verify_rollup") != []
    db.execute(one_block(DEPLOYING, "alicia_session_stats_repair").encode())
    assert stats.query(db, "verify_rollup") == []


@pytest.mark.slow
def test_sessions_of_a_dump_load_into_a_migrated_database(db: Connection, bare: Connection, tmp_path: Path) -> None:
    db.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    db.execute("INSERT INTO alicia_session_stats (conversation_id) SELECT 'ac_1' FROM GENERATE_SERIES(1, 99)")
    dump = tmp_path / "alicia.dump"
    subprocess.run([PROGRAMS / "pg_dump", "-Fc", "-f", dump, conninfo_of(db)], check=True)
    stats.migrate(conninfo_of(bare))
    [command] = re.findall(r"`(pg_restore --data-only -t [^`]+)`", DEPLOYING)
    command = command.replace("-d alicia alicia.dump", f"-d {shlex.quote(conninfo_of(bare))} {dump}")
    done = shell(command, ROOT, bare)
    assert done.returncode == 0, done.stderr
    assert scalar(bare, "SELECT SUM(sessions) FROM alicia_session_stats_quarter_hours") == 99
    assert stats.verify(conninfo_of(bare)) == []


@pytest.mark.slow
def test_make_hides_the_exit_code(bare: Connection, checkout: Path) -> None:
    assert cli("status", "--database", conninfo_of(bare)).returncode == 3
    assert shell("make status", checkout, bare).returncode == 2
