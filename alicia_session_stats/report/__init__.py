"""The HTML report: the answers of the named queries on one page, with charts and definitions.

It needs the extra `report` (jinja2, vl-convert-python), which is imported when a report is rendered.
"""

from __future__ import annotations

import os
from pathlib import Path

from alicia_session_stats.database import PROGRAM, SessionStatsError

__all__ = ["render_report", "write_report"]


def write_report(path: Path, conninfo: str | None = None, *, timeout: float = 30, tz: str = "UTC") -> None:
    """Render the report and write it to a file.

    An existing file is replaced in one step, so that a web server never serves half a page. A device or a pipe
    (/dev/stdout) is written to.

    Args:
        path: where to write the page.
        conninfo: the database, or None for the configured one.
        timeout: the seconds that each query may take; 0 is no limit.
        tz: the time zone of days, weeks and hours, an IANA name.

    Raises:
        SessionStatsError: an extra is not installed, the database cannot be read, or the file cannot be written.
    """
    page = render_report(conninfo, timeout=timeout, tz=tz)
    try:
        if path.exists() and not path.is_file():
            path.write_text(page, encoding="utf-8")
        else:
            _replace(path.resolve(), page)
    except BrokenPipeError:
        raise  # To the command line, a closed pipe is not an error.
    except OSError as error:
        raise SessionStatsError(f"cannot write {path}: {error.strerror}") from error


def render_report(conninfo: str | None = None, *, timeout: float = 30, tz: str = "UTC") -> str:
    """Run the named queries that only read and return their answers as one HTML page.

    All of them run in one REPEATABLE READ transaction, so the whole page describes one instant.

    Args:
        conninfo: the database, or None for the configured one.
        timeout: the seconds that each query may take; 0 is no limit.
        tz: the time zone of days, weeks and hours, an IANA name.

    Returns:
        A complete HTML document that loads nothing from elsewhere.

    Raises:
        SessionStatsError: an extra is not installed, or the database cannot be read.
    """
    try:
        from alicia_session_stats.report import page
    except ModuleNotFoundError as missing:
        raise SessionStatsError(f"the report needs {missing.name}: pip install '{PROGRAM}[report]'") from missing
    return page.render(conninfo, timeout, tz)


def _replace(path: Path, page: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
