"""The query files: each one question, with a header that documents it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from alicia_session_stats.database import SessionStatsError, UsageError
from alicia_session_stats.paths import QUERIES
from alicia_session_stats.wording import unknown

PURPOSES = ("usage analytics", "performance monitoring", "resource planning", "user engagement", "operations")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Param:
    """A parameter of a named query. Without a default it is required."""

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Query:
    """A query file: the fields of its header, and its statement with psycopg's placeholders."""

    name: str
    summary: str
    purpose: str
    documentation: str
    params: tuple[Param, ...]
    writes: bool
    statement: str

    def sql(self, style: Literal["psycopg", "numbered"] = "psycopg") -> str:
        """The statement for a driver: with %(name)s, or with $1 … in the order of params."""
        if style == "psycopg":
            return self.statement
        numbers = {f"%({param.name})s": f"${number}" for number, param in enumerate(self.params, 1)}
        return re.sub(r"%\(\w+\)s|%%", lambda match: numbers.get(match[0], "%"), self.statement)


@cache
def read_query(path: Path) -> Query:
    """Read a query file, once. Comments and psql's backslash commands do not reach the server.

    Raises:
        SessionStatsError: it is no query file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise SessionStatsError(f"{path.name} cannot be read: {error}") from error
    end = next((number for number, line in enumerate(lines) if not line.startswith("--")), 0)
    if end == 0:
        raise SessionStatsError(f"{path.name} is no query file: it needs a header of comments, then a statement")
    header = [line[3:] for line in lines[:end]]
    fields = re.sub(r"\n {2,}", " ", "\n".join(header))
    body = "\n".join(line for line in lines if not re.match(r"\s*--|\\", line)).strip().removesuffix(";")
    params = [
        Param(name, kind, default or None, description)
        for name, kind, default, description in re.findall(r"^Param (\w+) \((\w+)(?:, default (.+?))?\): (.+)", fields, re.M)
    ]
    if undocumented := set(re.findall(r":'(\w+)'", body)) - {param.name for param in params}:
        raise SessionStatsError(f"{path.name} is no query file: its header does not document {min(undocumented)}")
    purpose = re.search(r"^Purpose: (.+)", fields, re.M)
    return Query(
        name=path.stem,
        summary=header[0],
        purpose=purpose[1] if purpose else "",
        documentation="\n".join(header),
        params=tuple(params),
        writes="\nMode: writes" in fields,
        statement=re.sub(r":'(\w+)'", r"%(\1)s", body.replace("%", "%%")),
    )


def query_names() -> list[str]:
    """The names of the query files. Does not read them."""
    return sorted(path.stem for path in QUERIES.glob("*.sql"))


def find_query(name: str) -> Query:
    """The named query. Raises UsageError when there is none."""
    if name not in query_names():
        raise UsageError(unknown("query", name, query_names()))
    return read_query(QUERIES / f"{name}.sql")


def queries() -> dict[str, Query]:
    """Every named query by its name, in the order of the purposes. A file that cannot be read is logged and left out."""
    found: list[Query] = []
    for name in query_names():
        try:
            found.append(find_query(name))
        except SessionStatsError as error:
            log.warning("%s", error)
    return {query.name: query for query in sorted(found, key=lambda query: [*PURPOSES, query.purpose].index(query.purpose))}
