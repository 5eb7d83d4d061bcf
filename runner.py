"""The command line: parse the arguments, run the command, say what went wrong."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Sequence

import psycopg

from alicia_session_stats import SessionStatsError
from alicia_session_stats.arguments import parse
from alicia_session_stats.commands import COMMANDS
from alicia_session_stats.database import PROGRAM, one_line

log = logging.getLogger("alicia_session_stats")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None is those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 migrations pending, 4 another migrator holds the lock.
    """
    handler = logging.StreamHandler()
    log.addHandler(handler)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - None when the shell closed it: >&-
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    command = ""
    try:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            command = arguments.command
            log.setLevel(logging.ERROR if arguments.quiet else logging.INFO)
            return COMMANDS[command](arguments) or 0
        finally:
            sys.stdout.flush()
    except SessionStatsError as error:
        return fail(str(error), error.exit_code)
    except psycopg.Error as error:
        return fail(one_line(error))
    except KeyboardInterrupt:
        advice = ". Every completed step is recorded; run migrate again to continue" if command == "migrate" else ""
        return fail(f"interrupted{advice}", 130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more when it exits.
        if isinstance(error, BrokenPipeError):
            return 0  # The reader has seen enough.
        return fail(str(error.strerror))
    finally:
        log.removeHandler(handler)


def fail(message: str, exit_code: int = 1) -> int:
    """Say what went wrong on stderr, and return the exit code. What may be a URL with a password is not shown."""
    safe = re.sub(r"\S*(://|password=).*", "(hidden, it may hold a password; --database takes a URL)", message, flags=re.S)
    print(f"{PROGRAM}: {safe}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
