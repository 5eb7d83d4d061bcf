"""The embedded server starts by itself, survives kills and stops, listens nowhere, and leaves nothing behind."""

import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from conftest import MIGRATIONS, ROOT, cli, copy_product, scalar
from psycopg.conninfo import conninfo_to_dict

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user; the other tests are the ordinary user's"
)


@contextmanager
def fresh_home(mode: int = 0o755) -> Generator[Path]:
    """A folder to keep servers in; in the end whatever runs below it is stopped, whether or not the product works."""
    folder = Path(tempfile.mkdtemp(prefix="alicia embedded "))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        for pid_file in [Path(place, "postmaster.pid") for place, _, files in os.walk(folder) if "postmaster.pid" in files]:
            pid, _, _, _, sockets, *_ = pid_file.read_text().splitlines()
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGINT)
                wait_until_gone(pid_file)
            shutil.rmtree(sockets, ignore_errors=True)
        # Again and again, since an initdb whose parent was killed may still be writing.
        wait_until_gone(folder, lambda: shutil.rmtree(folder, ignore_errors=True))


def wait_until_gone(path: Path, push: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        push()
        time.sleep(0.05)


@pytest.fixture
def home() -> Generator[Path]:
    with fresh_home() as folder:
        yield folder


@pytest.fixture(scope="module")
def started() -> Generator[Path]:
    """The home of a server that a first migrate started; with every warning of Python's an error."""
    with fresh_home() as folder:
        done = run(folder, "migrate", PYTHONWARNINGS="error")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert applied(done.stderr) == MIGRATIONS
        yield folder


def applied(stderr: str) -> list[str]:
    """The migrations that a migrate says it applied; it may say nothing else but its first and its last line."""
    lines = stderr.splitlines()
    assert len(lines) == 2 + stderr.count("\napplied "), stderr
    return [line.split()[1] for line in lines[1:-1]]


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return cli(*arguments, env={"ALICIA_SESSION_STATS_HOME": str(home), **environment})


def start_migrate(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "ALICIA_SESSION_STATS_HOME": str(home)}
    command = [sys.executable, str(ROOT / "runner.py"), "migrate"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_the_first_migrate_starts_a_server_and_nothing_is_pending(started: Path) -> None:
    done = run(started, "status", PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("applied") == len(MIGRATIONS) + 1


def test_the_server_listens_only_on_a_socket_that_only_its_user_reaches(started: Path) -> None:
    conninfo = run(started, "embedded").stdout.strip()
    with psycopg.connect(conninfo) as connection:
        assert scalar(connection, "SHOW listen_addresses") == ""
    sockets = Path(str(conninfo_to_dict(conninfo)["host"]))
    assert sockets.stat().st_mode & 0o077 == 0


def test_data_survive_a_stop(started: Path) -> None:
    conninfo = run(started, "embedded").stdout.strip()
    with psycopg.connect(conninfo) as connection:
        connection.execute("INSERT INTO alicia_conversations (id) VALUES ('ac_1')")
        connection.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES ('ac_1', 42)")
    done = run(started, "embedded", "--stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(conninfo)
    assert run(started, "query", "most_active_sessions", "--format", "csv").stdout.splitlines()[1:] == ["ac_1,42,0"]


def test_stopping_and_removing_can_be_repeated_and_leave_nothing(home: Path) -> None:
    place = home / "server"
    for options in (["--remove"], ["--stop", "--stop", "--remove", "--remove"]):
        conninfo = run(place, "embedded").stdout.strip()
        for option in options:
            done = run(place, "embedded", option)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), option
        assert list(home.iterdir()) == []
        assert not Path(str(conninfo_to_dict(conninfo)["host"])).exists()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(conninfo)


def test_a_killed_server_is_started_again_or_removed(home: Path) -> None:
    for arguments in (("embedded",), ("embedded", "--remove")):
        assert run(home / "server", "embedded").returncode == 0
        [pid_file] = home.glob("server/*/postmaster.pid")
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)
        done = run(home / "server", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
    assert list(home.iterdir()) == []


def test_removing_leaves_what_is_not_the_servers(home: Path) -> None:
    (home / "thesis.txt").write_text("years of work")
    run(home, "embedded", "--remove")
    assert (home / "thesis.txt").exists()


def test_the_path_may_be_long_and_hold_spaces_and_quotes(home: Path) -> None:
    place = home / "it's a home" / ("long" * 50)
    assert len(str(place)) > 200
    done = run(place, "migrate")
    assert done.returncode == 0, done.stderr
    assert run(place, "status").returncode == 0


def test_five_first_commands_at_once_share_one_server(home: Path) -> None:
    processes = [start_migrate(home) for _ in range(5)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, said
    assert re.findall(r"^applied (\w+)", "".join(said), re.M) == MIGRATIONS


@pytest.mark.parametrize("sign", ["*", "*/global/pg_control", "*/postmaster.pid"])
def test_a_killed_first_command_does_not_stop_the_next(home: Path, sign: str) -> None:
    first = start_migrate(home)
    while first.poll() is None and not any(home.glob(sign)):
        time.sleep(0.01)
    pause = random.uniform(0, 0.3)
    time.sleep(pause)
    first.kill()
    first.communicate()
    done = run(home, "migrate")
    assert done.returncode == 0, f"killed {pause:.3f} s after {sign}: {done.stderr}"


@pytest.mark.parametrize(
    ("place", "environment"),
    [("a file/home", {}), ("a file", {}), ("home", {"PGSERVER_POSTGRES_VERSION": "9"})],
)
def test_a_home_that_cannot_be_is_one_line(home: Path, place: str, environment: dict[str, str]) -> None:
    (home / "a file").touch()
    done = run(home / place, "status", **environment)
    assert done.returncode in (1, 2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr


@as_root
def test_a_home_that_the_servers_user_cannot_enter_works_or_is_one_line() -> None:
    with fresh_home(mode=0o700) as folder:
        done = run(folder / "home", "migrate")
        assert done.returncode == 0 or done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
def readable() -> Generator[tuple[Path, list[str], dict[str, str]]]:
    """A copy of the product, and of the Python that runs it, which an ordinary user owns; how to call it."""
    with fresh_home() as folder:
        standard, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
        project = copy_product(folder / "project").parent
        shutil.copy(ROOT / "pyproject.toml", project)
        developers = ("pyright*", "ruff*", "sqlfluff*", "hypothesis*", "pip", "setuptools", "pygments", "_pytest")
        unneeded = shutil.ignore_patterns("site-packages", "test", "config-*", "idlelib", "ensurepip", *developers)
        shutil.copytree(standard, folder / "lib" / standard.name, ignore=unneeded)
        shutil.copytree(packages, folder / "packages", ignore=unneeded)
        for library in Path(sysconfig.get_config_var("LIBDIR")).glob(f"libpython{sysconfig.get_python_version()}*.so*"):
            shutil.copy(library, folder / "lib")
        shutil.copy(Path(sys.executable).resolve(), folder / "python")
        subprocess.run(["chown", "-R", "nobody", folder], check=True)
        environment = {
            "PYTHONHOME": str(folder),
            "PYTHONPATH": str(folder / "packages"),
            "LD_LIBRARY_PATH": str(folder / "lib"),
            "PATH": os.defpath,
            "HOME": "/nonexistent",
        }
        yield project, [str(folder / "python"), str(project / "runner.py")], environment


def lay_link(sockets: Path, target: Path) -> None:
    sockets.symlink_to(target)


def lay_open_folder(sockets: Path, _: Path) -> None:
    sockets.mkdir()
    sockets.chmod(0o777)


def lay_folder_of_another_user(sockets: Path, _: Path) -> None:
    sockets.mkdir(mode=0o700)
    os.chown(sockets, 54321, -1)


TRAPS = [lay_link, lay_open_folder, *([lay_folder_of_another_user] if os.geteuid() == 0 else [])]


def assert_traps_are_refused(run_in: Callable[..., subprocess.CompletedProcess[str]], target: Path) -> None:
    """Lay what another user could lay where the sockets go. That is in /tmp, because the home's path is too long for one."""
    started = run_in("embedded")
    sockets = Path(str(conninfo_to_dict(started.stdout.strip())["host"]))
    assert sockets.parent == Path("/tmp"), started.stderr
    assert run_in("embedded", "--stop").returncode == 0
    target.chmod(0o700)
    before = target.stat()
    for lay in TRAPS:
        lay(sockets, target)
        try:
            done = run_in("embedded")
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), (lay, done.stderr)
            assert f"{sockets} is not a directory with mode 0700 of this user" in done.stderr
            assert list(sockets.iterdir()) == []
            after = target.stat()
            assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
        finally:
            sockets.unlink() if sockets.is_symlink() else shutil.rmtree(sockets)
    assert run_in("embedded", "--remove").returncode == 0


def test_what_another_user_laid_for_the_sockets_is_refused(home: Path) -> None:
    target = home / "target"
    target.mkdir()
    assert_traps_are_refused(partial(run, home / ("long" * 50)), target)


def run_as(readable: tuple[Path, list[str], dict[str, str]], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the copy of the product as its owner."""
    project, command, environment = readable
    return subprocess.run(
        [*command, *arguments],
        env={**environment, **more},
        cwd=project,
        user="nobody",
        group=pwd.getpwnam("nobody").pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@as_root
def test_an_ordinary_user_needs_nothing_set(readable: tuple[Path, list[str], dict[str, str]]) -> None:
    project, *_ = readable
    run_as_nobody = partial(run_as, readable)
    done = run_as_nobody("migrate")
    assert done.returncode == 0, done.stderr
    assert applied(done.stderr) == MIGRATIONS
    assert run_as_nobody("status").returncode == 0
    assert (project / ".embedded").owner() == "nobody"
    assert run_as_nobody("embedded", "--remove").returncode == 0
    assert not (project / ".embedded").exists()


@as_root
def test_what_another_user_laid_for_the_sockets_of_an_ordinary_user_is_refused(
    readable: tuple[Path, list[str], dict[str, str]],
) -> None:
    project, *_ = readable
    target = project / "target"
    target.mkdir()
    shutil.chown(target, "nobody")
    assert_traps_are_refused(
        lambda *arguments: run_as(readable, *arguments, ALICIA_SESSION_STATS_HOME=str(project / ("long" * 50))), target
    )
