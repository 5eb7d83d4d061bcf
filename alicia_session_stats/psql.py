"""psql on the same database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict

from alicia_session_stats.database import SessionStatsError, resolve
from alicia_session_stats.embedded import wheel_programs


def replace_by_psql(conninfo: str | None, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by psql.

    Raises:
        SessionStatsError: it is not installed.
    """
    environment = _libpq_environment(conninfo)
    programs = wheel_programs()
    program = shutil.which("psql") or (programs and shutil.which("psql", path=str(programs)))
    if program is None:
        raise SessionStatsError("psql is not installed: install PostgreSQL's client programs")
    os.execve(program, ["psql", "--set=ON_ERROR_STOP=1", *arguments], {**os.environ, **environment})


def _libpq_environment(conninfo: str | None) -> dict[str, str]:
    """The PG* environment variables that make psql connect to the same database.

    Arguments are visible to every user of the machine, and with them a password; the environment is not.
    """
    variables = {
        option.keyword.decode(): option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar
    }
    given = conninfo_to_dict(resolve(conninfo))
    return {variables[name]: str(value) for name, value in given.items() if name in variables}
