"""Every command of the README works as it stands there, and its tables say what is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import PROGRAMS, ROOT, SERVER, conninfo_of, scalar

import runner

README = (ROOT / "README.md").read_text()
Connection = psycopg.Connection[Any]


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", README, re.S))


MAKE = sorted(
    {line.split("#")[0].strip().removeprefix("$ ") for line in re.findall(r"(?:^|`)((?:\$ )?make \w[^`\n]*)", README, re.M)}
)


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


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path, **environment}
    return subprocess.run(
        command, shell=True, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def named(bare: Connection) -> dict[str, str]:
    """The environment that makes an empty database the configured one."""
    named = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    return {"PGDATABASE": bare.info.dbname, **{named[key]: str(SERVER[key]) for key in named if SERVER.get(key)}}


@pytest.mark.slow
@pytest.mark.parametrize("command", MAKE)
def test_make_commands_work(command: str, checkout: Path, named: dict[str, str]) -> None:
    quick = {
        "make demo": "make demo ROWS=500",
        "make test": "make test ARGS=--collect-only",
        "make chaos": "make -n chaos",
        "make bench ROWS=5000000": "make -n bench",
        "make clean": "make -n clean",  # It would remove the server that the tests run on.
    }
    if command.startswith(("make query ", "make purge", "make report")):
        assert shell("make migrate", checkout, **named).returncode == 0
    done = shell(quick.get(command, command), checkout, **named)
    assert done.returncode == 0, done.stderr


def test_what_the_readme_shows_of_a_query_has_the_rows_and_columns_that_it_has(db: Connection) -> None:
    shown = re.findall(r'\$ make query NAME=(\w+)(?: ARGS="--days (\d+)")?\n(.*?)```', README, re.S)
    purposes = [runner.named_queries()[name].purpose for name, _, _ in shown]
    assert purposes == list(runner.PURPOSES[:4])
    for name, days, text in shown:
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "-+-" not in line]
        columns, rows = runner.run_query(conninfo_of(db), runner.named_queries()[name], {"days": days or None})
        assert lines[0] == columns
        assert len(lines[1:]) == len(rows)
        assert all(len(line) == len(columns) for line in lines)


def test_the_files_apply_with_psql_and_with_yoyo(bare: Connection, checkout: Path, named: dict[str, str]) -> None:
    loop, yoyo = [line for line in blocks("sh").splitlines() if "migrations" in line and not line.startswith("make")]
    done = shell(loop, checkout, **named)
    assert done.returncode == 0, done.stderr
    assert scalar(bare, "SELECT COUNT(*) FROM alicia_session_stats") == 0
    url = f"postgresql+psycopg://{named['PGUSER']}@/{named['PGDATABASE']}?host={named['PGHOST']}"
    done = shell(yoyo.replace("postgresql+psycopg://app@db/alicia", f"'{url}'"), checkout, **named)
    assert done.returncode == 0, done.stderr
    assert runner.verify(conninfo_of(bare)) == []


def test_the_psql_and_help_lines_work(db: Connection, checkout: Path, named: dict[str, str]) -> None:
    line = re.search(r"`(psql -v [^`]*)`", README)
    assert line is not None
    done = shell(line[1], checkout, **{**named, "PGDATABASE": db.info.dbname})
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(f"{sys.executable} runner.py query engagement --help", checkout).returncode == 0


def test_the_python_lines_work(bare: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alicia_session_stats", runner)
    code = blocks("python").replace("postgresql://app@db/alicia", conninfo_of(bare))
    variables: dict[str, Any] = {}
    exec(code, variables)
    assert list(variables["rows"][0]) == ["avg_messages", "avg_tools", "avg_duration_minutes"]


def test_every_query_is_in_the_table_with_its_parameters_and_defaults() -> None:
    table = {
        name: line.split("|")[3]
        for line in README.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    for query in runner.named_queries().values():
        assert query.name in table, query.name
        for param in query.params if "see `--help`" not in table[query.name] else ():
            default = "all" if param.default == "36500" else param.default
            assert (f"`{param.name}` ({default})" if default else f"`{param.name}`") in table[query.name], query.name


def test_the_grants_are_enough_for_every_query(db: Connection) -> None:
    roles = sorted(set(re.findall(r"TO (alicia_\w+)", blocks("sql"))))
    db.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    session = scalar(db, "INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1') RETURNING id")
    given = {"conversation_id": "ac_1", "session_id": session, "days": "1"}
    for role in roles:
        db.execute(f"CREATE ROLE {role}".encode())
    try:
        db.execute(blocks("sql").encode())
        for query in runner.named_queries().values():
            if query.name == "rebuild_sessions":  # It reads the host's tables, which the host grants.
                continue
            role = (
                "alicia_reader" if not query.writes else "alicia_keeper" if query.name.startswith("delete") else "alicia_recorder"
            )
            params = {param.name: given[param.name] for param in query.params if param.default is None}
            with db.transaction(force_rollback=True):
                db.execute(f"SET LOCAL ROLE {role}".encode())
                db.execute(query.statement.encode(), {**{p.name: p.default for p in query.params}, **params})
    finally:
        for role in roles:
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
