"""Kill a migration after every single statement it sends, and see whether the next run completes it.

    python -m bench.chaos [--every N] [--without-yoyo]

The database is an application's: alicia_session_stats holds rows, and every migration is pending. A proxy between
the migrator and the embedded server counts statements; after the chosen one it either kills the process
(SIGKILL, before the answer arrives) or makes the server end that connection. Then the same command
runs once more, without the proxy. The same is done to the bare yoyo command, on the same files.
"""

import argparse
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tabulate import tabulate
from tqdm import tqdm

from alicia_session_stats import embedded, verify

ROOT = Path(__file__).parents[1]
APPLICATION = """
    CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY, title TEXT, deleted_at TIMESTAMP);
    CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT LANGUAGE sql
    RETURN prefix || '_' || REPLACE(GEN_RANDOM_UUID()::TEXT, '-', '');
    CREATE TABLE alicia_session_stats (
        id TEXT PRIMARY KEY DEFAULT generate_random_id('ass'),
        conversation_id TEXT NOT NULL REFERENCES alicia_conversations(id) ON DELETE CASCADE,
        message_count INTEGER NOT NULL DEFAULT 0,
        tool_call_count INTEGER NOT NULL DEFAULT 0,
        memories_used INTEGER NOT NULL DEFAULT 0,
        session_duration_seconds INTEGER NOT NULL DEFAULT 0,
        created_at TIMESTAMP NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMP NOT NULL DEFAULT NOW()
    );
    INSERT INTO alicia_conversations SELECT 'ac_' || n FROM GENERATE_SERIES(1, 50) AS n;
    INSERT INTO alicia_session_stats (conversation_id, message_count)
    SELECT 'ac_' || 1 + n % 50, n FROM GENERATE_SERIES(1, 500) AS n;
"""
ROWS = "SELECT MD5(STRING_AGG(s::TEXT, '' ORDER BY id)) FROM alicia_session_stats AS s"
KINDS = {  # The first that a statement matches.
    "building an index": r"CREATE INDEX CONCURRENTLY",
    "taking and giving up the lock": r"advisory|yoyo_lock|pg_settings",
    "bookkeeping": r"yoyo|information_schema|current_schema",
    "begin, savepoint, commit": r"^(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)",
    "a migration's own SQL": r"",
}


@dataclass
class Proxy:
    """Passes messages between one command and the server, and kills after a given statement.

    Wire protocol: https://www.postgresql.org/docs/current/protocol-message-formats.html
    """

    server: dict[str, str]
    target: int | None = None
    strike: Callable[[int], None] = lambda _: None
    statements: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """The folder of a socket to connect to, for as long as the block runs."""
        folder = tempfile.mkdtemp(prefix="alicia-chaos-", dir="/tmp")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/.s.PGSQL.5432")
            listener.listen(64)
            threading.Thread(target=self._accept, args=[listener], daemon=True).start()
            yield folder
            listener.shutdown(socket.SHUT_RDWR)
        shutil.rmtree(folder)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{self.server['host']}/.s.PGSQL.5432")
                armed = threading.Event()
                for pump in (self._from_client, self._from_server):
                    threading.Thread(target=pump, args=[client, server, armed], daemon=True).start()

    def _from_client(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError), client.makefile("rb") as stream:
            length = stream.read(4)  # The startup message has no type.
            server.sendall(length + stream.read(struct.unpack("!i", length)[0] - 4))
            while head := stream.read(5):
                body = stream.read(struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] in b"QP":  # A simple query; or Parse, the first message of an extended one.
                    with self.lock:
                        self.statements.append(body.strip(b"\0").split(b"\0")[0].decode().strip())
                        if len(self.statements) == self.target:
                            armed.set()
                server.sendall(head + body)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _from_server(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        pid = 0
        with suppress(OSError), server.makefile("rb") as stream:
            while head := stream.read(5):
                body = stream.read(struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] == b"K":  # BackendKeyData
                    pid = struct.unpack("!i", body[:4])[0]
                if head[:1] == b"Z" and armed.is_set():  # ReadyForQuery: the statement is done.
                    armed.clear()
                    self.strike(pid)
                client.sendall(head + body)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def run_command(command: list[str], kill_after: int | None, weapon: str, server: dict[str, str], database: str) -> list[str]:
    """Run a command whose argument {host} is the proxy's socket, struck after a statement; what it sent."""
    proxy = Proxy(server, kill_after)
    started = threading.Event()
    with proxy.listening() as folder:

        def strike(pid: int) -> None:
            started.wait()
            if weapon == "SIGKILL":
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                with psycopg.connect(**server) as connection:
                    connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

        proxy.strike = strike
        arguments = [argument.format(host=folder, database=database) for argument in command]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        started.set()
        process.wait(timeout=60)
    return proxy.statements


@dataclass(frozen=True)
class Point:
    """What became of one kill."""

    migrator: str
    weapon: str
    kind: str
    outcome: str
    seconds: float


def strike_once(migrator: str, weapon: str, number: int, statement: str, server: dict[str, str]) -> Point:
    """Kill after statement `number`, run again, look at what there is then."""
    database = f"chaos_{migrator}_{weapon}_{number}".lower()
    mine = {**server, "dbname": database}
    with psycopg.connect(**server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database} TEMPLATE chaos_application".encode())
        with psycopg.connect(**mine) as connection:
            before = connection.execute(ROWS.encode()).fetchone()
        run_command(COMMANDS[migrator], number, weapon, server, database)
        direct = [a.format(host=server["host"], database=database) for a in COMMANDS[migrator]]
        begun = time.monotonic()
        again = subprocess.run(direct, capture_output=True, text=True, timeout=300, check=False)
        seconds = time.monotonic() - begun
        outcome = "healed by the next run"
        if again.returncode:
            outcome = "stuck on its lock" if "LockTimeout" in again.stderr else "the next run fails"
        else:
            with psycopg.connect(**mine) as connection:
                if connection.execute(ROWS.encode()).fetchone() != before:
                    outcome = "rows were lost"
            if verify(make_conninfo(**mine)):
                outcome = "verify finds differences"
        admin.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())
    kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, statement, re.I))
    return Point(migrator, weapon, kind, outcome, seconds)


COMMANDS = {
    "runner": [
        sys.executable, str(ROOT / "runner.py"), "migrate", "--lock-wait", "30",
        "--database", "host={host} user=postgres dbname={database}",
    ],
    "yoyo": [
        str(Path(sys.executable).with_name("yoyo")), "apply", "--batch", "--no-config-file",
        "-d", "postgresql+psycopg://postgres@/{database}?host={host}", str(ROOT / "migrations"),
    ],
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="strike only after every so many statements")
    parser.add_argument("--without-yoyo", action="store_true", help="leave the bare yoyo command out")
    arguments = parser.parse_args()
    server = {name: str(value) for name, value in conninfo_to_dict(embedded.start()).items()}
    with psycopg.connect(**server, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS chaos_application")
        admin.execute("CREATE DATABASE chaos_application")
        with psycopg.connect(**{**server, "dbname": "chaos_application"}) as connection:
            connection.execute(APPLICATION)
        points: list[Point] = []
        for migrator in ["runner"] if arguments.without_yoyo else list(COMMANDS):
            admin.execute("DROP DATABASE IF EXISTS chaos_count WITH (FORCE)")
            admin.execute("CREATE DATABASE chaos_count TEMPLATE chaos_application")
            statements = run_command(COMMANDS[migrator], None, "", server, "chaos_count")
            todo = [
                (migrator, weapon, number, statement, server)
                for weapon in ("SIGKILL", "terminate")
                for number, statement in list(enumerate(statements, 1))[:: arguments.every]
            ]
            # yoyo spends most of its time asleep, waiting for a lock that nobody holds.
            with ThreadPoolExecutor(16 if migrator == "yoyo" else 3) as pool:
                points += tqdm(pool.map(lambda each: strike_once(*each), todo), total=len(todo), desc=migrator, unit=" kills")
        for name in ("chaos_application", "chaos_count"):
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    print_table(points)
    return int(any(point.migrator == "runner" and point.outcome != "healed by the next run" for point in points))


def print_table(points: list[Point]) -> None:
    rows = []
    for migrator in dict.fromkeys(point.migrator for point in points):
        for kind in KINDS:
            group = [point for point in points if (point.migrator, point.kind) == (migrator, kind)]
            outcomes = sorted({point.outcome for point in group})
            said = ", ".join(f"{sum(point.outcome == outcome for point in group)} {outcome}" for outcome in outcomes)
            if group:
                seconds = statistics.median(point.seconds for point in group)
                rows.append([migrator, kind, len(group), said, f"{seconds:.1f}"])
    headers = ["migrator", "killed while", "kills", "then", "median s"]
    print(tabulate(rows, headers, "github", colalign=["left", "left", "right", "left", "right"], disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main())
