"""The wheel holds the SQL and the runner and nothing else, works where it is installed, and no file tells where it was made."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psycopg
import pytest
from conftest import ROOT, conninfo_of
from packaging.requirements import Requirement

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
REQUIREMENTS = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines),
    *(line for lines in PROJECT["dependency-groups"].values() for line in lines),
]
PUBLIC = ("migrate", "rollback", "status", "verify", "plan", "query", "SessionStatsError", "UsageError", "LockedError")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel and what it needs, without the embedded server."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, "-c", ROOT / "tests" / "constraints.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(cwd: Path, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [program, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    expected = {
        "__init__.py",
        "embedded.py",
        "report.py",
        "report.html.j2",
        "migrations/SHA256SUMS",
        *(f"migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")),
        *(f"queries/{path.name}" for path in (ROOT / "queries").glob("*.sql")),
    }
    described = {name for name in names if re.match(r"alicia_session_stats-[\d.]+\.dist-info/", name)}
    assert {name.split("/", 1)[1] for name in described} >= {"METADATA", "WHEEL", "RECORD", "entry_points.txt"}
    assert set(names) - described == {f"alicia_session_stats/{name}" for name in expected}


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 100_000


def test_the_installed_command_helps(installed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, installed / "alicia-session-stats", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: alicia-session-stats ")


def test_the_installed_package_has_its_public_names(installed: Path, tmp_path: Path) -> None:
    code = f"import alicia_session_stats as p; print(*(type(getattr(p, name)).__name__ for name in {PUBLIC}))"
    done = run(tmp_path, installed / "python", "-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["function"] * 6 + ["type"] * 3


def test_without_a_database_the_installed_command_says_what_to_set(installed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, installed / "alicia-session-stats", "status")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    for said in ("DATABASE_URL", "--database", "alicia-session-stats[embedded]"):
        assert said in done.stderr


def test_the_installed_command_migrates_and_asks(installed: Path, tmp_path: Path, bare: psycopg.Connection[Any]) -> None:
    command, database = installed / "alicia-session-stats", ("--database", conninfo_of(bare))
    assert run(tmp_path, command, "status", *database).returncode == 3
    assert run(tmp_path, command, "migrate", *database).returncode == 0
    bare.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    bare.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', 7)")
    done = run(tmp_path, command, "query", "most_active_sessions", "--format", "csv", *database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["conversation_id,message_count,tool_call_count", "ac_1,7,0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_a_dependency_has_a_lower_and_an_upper_bound(line: str) -> None:
    assert sorted(specifier.operator for specifier in Requirement(line).specifier) == ["<", ">="]


@pytest.mark.parametrize("line", CONSTRAINTS)
def test_a_constraint_is_a_name_and_a_version(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", line)


def test_what_is_tested_is_within_what_is_declared() -> None:
    pinned = dict(line.lower().replace("_", "-").split("==") for line in CONSTRAINTS)
    for requirement in map(Requirement, REQUIREMENTS):
        if requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), requirement
    assert {Requirement(line).name for line in PROJECT["project"]["dependencies"]} <= pinned.keys()


def test_no_file_tells_where_it_was_made() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # A folder of one machine, an index of packages, a home of root's.
    told = re.compile(
        rb"/w[o]rk/|/o[p]t/pypi|(extra-i|\bi)[n]dex-url|find-l[i]nks|python[h]osted|https?://[^\s/]*pypi[^\s]*/s[i]mple|/r[o]ot/"
    )
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    assert [path for path in paths if path.exists() and told.search(path.read_bytes())] == []
