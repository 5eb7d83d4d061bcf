"""The query files: each one question, with a header that documents it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
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

    @property
    def kind(self) -> str:
        """Its type, and its default or that it is required."""
        return f"{self.type}, required" if self.default is None else f"{self.type}, default {self.default}"


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

    def described_sql(self) -> str:
        """The numbered statement, under a comment for each parameter."""
        lines = [f"-- {self.summary}"]
        for number, param in enumerate(self.params, 1):
            lines.append(f"-- ${number} {param.name} ({param.kind}): {param.description}")
        return "\n".join([*lines, self.sql("numbered")])


def bind(query: Query, params: Mapping[str, object]) -> dict[str, str]:
    """The parameters with their defaults, as text, as psql would give them: the server infers their types.

    Raises:
        UsageError: a parameter is missing, unknown or not of its type.
    """
    names = [param.name for param in query.params]
    for name in params:
        if name not in names:
            raise UsageError(unknown(f"parameter of {query.name}", name, names))
    return {param.name: _text(query, param, params.get(param.name)) for param in query.params}


def _text(query: Query, param: Param, given: object) -> str:
    if given is None and param.default is not None:
        return param.default
    option = f"--{param.name.replace('_', '-')}"
    if given is None:
        raise UsageError(f"{query.name} needs {option}: {param.description}")
    text = str(given)
    if param.type == "integer" and not re.fullmatch("[0-9]+", text):
        raise UsageError(f"{option} must be a whole number, 0 or more, not '{text}'")
    if re.search("[\0\ud800-\udfff]", text):
        raise UsageError(f"{option} has a character that PostgreSQL cannot store")
    return text


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


@cache
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
            log.error("%s", error)
    return {query.name: query for query in sorted(found, key=lambda query: [*PURPOSES, query.purpose].index(query.purpose))}
