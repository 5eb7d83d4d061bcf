"""The arguments of the command line: commands, options, and what is said about a wrong one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from alicia_session_stats import __version__
from alicia_session_stats.database import PROGRAM, UsageError
from alicia_session_stats.output import FORMATS
from alicia_session_stats.query_files import Query, find_query, query_names
from alicia_session_stats.wording import unknown

EPILOG = """\
The database is --database, else DATABASE_URL, else the PG* environment variables,
else the embedded server where it is installed.

Exit codes: 0 done, 1 failed, 2 usage, 3 migrations pending, 4 another migrator
holds the lock.
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of ending the process, and takes no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument ([A-Z]+): invalid choice: '(.*?)' \(choose from (.*)\)", message, re.S)
        if wrong:
            message = unknown(wrong[1].lower(), wrong[2], re.findall(r"[\w-]+", wrong[3]))
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command line. Options take hyphens and underscores alike.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        command (str), database (str or None), for_psql (the arguments after --), and the options of the command.

    Raises:
        UsageError: an argument is wrong or missing.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    own = [re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), argument) for argument in argv[:end]]
    defaults = argparse.Namespace(database=None, quiet=False, for_psql=argv[end + 1 :])
    arguments, left = _make_parser(own).parse_known_args(own, defaults)
    if arguments.command != "psql":
        left += arguments.for_psql
    if left:
        options = dict.fromkeys(re.findall(r"--[a-z][a-z-]*", arguments.parser.format_help()))
        raise UsageError(unknown("argument", left[0].partition("=")[0], options))
    return arguments


def parse_seconds(text: str) -> float:
    """Parse a number of seconds, 0 or more."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, not '{text}'")
    return float(text)


def parse_count(text: str) -> int:
    """Parse a whole number, 1 or more."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, not '{text}'")
    return int(text)


def parse_variable(text: str) -> tuple[str, str]:
    """Parse a parameter as psql's -v takes it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not '{text}'")
    return name.replace("-", "_"), value


def _make_parser(argv: Sequence[str]) -> Parser:
    database, formatted, measured, timed, migrating = _shared_options()
    parser = Parser(
        prog=PROGRAM,
        parents=[database],
        description="Session analytics for conversational AI applications, on PostgreSQL.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=Parser)

    def command(name: str, text: str, *options: Parser) -> Parser:
        added: Parser = commands.add_parser(name, parents=[database, *options], help=text, description=text)
        added.set_defaults(parser=added)
        return added

    command("migrate", "apply the pending migrations", migrating)
    rollback = command("rollback", "take back the newest migrations, all of them or none", migrating)
    how_many = rollback.add_mutually_exclusive_group()
    how_many.add_argument("--steps", type=parse_count, default="1", metavar="N", help="how many (default 1)")
    how_many.add_argument("--all", dest="steps", action="store_const", const=None, help="every migration")
    rollback.add_argument("--allow-data-loss", action="store_true", help="drop the package's tables although they hold rows")
    command("status", "list the migrations, applied or pending; exit 3 when one is pending", formatted)
    verify = command("verify", "compare the database with the migrations, and its rollup; exit 1 when it differs", measured)
    verify.add_argument("--days", metavar="N", help="compare the rollup with the sessions of the last N days only (default all)")
    verify.add_argument("--until", metavar="TIME", help="end of these days (default now)")
    command("queries", "list the named queries", formatted)
    _add_queries(command("query", "run a named query; the command queries lists them"), argv, [database, measured, timed])
    report = command("report", "write the answers of the queries, with charts, to an HTML file", timed)
    report.add_argument("--output", type=Path, default="report.html", metavar="FILE", help="the file (default report.html)")
    report.add_argument("--tz", default="UTC", metavar="ZONE", help="time zone of its days and hours, an IANA name (default UTC)")
    purge = command("purge", "delete old sessions, one batch after the other")
    purge.add_argument("--days", required=True, metavar="N", help="those that began more than N days ago")
    purge.add_argument("--batch", type=parse_count, metavar="N", help="how many in one transaction (default 10000)")
    purge.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    purge.add_argument("--yes", action="store_true", help="do not ask; needed without a terminal, and for more than half of all")
    attach = command("attach", "record sessions from the application's messages, by triggers")
    attach.add_argument(
        "--gap-minutes", default="30", metavar="N", help="minutes without a message that end a session (default 30)"
    )
    command("detach", "stop recording from the application's messages; the sessions stay")
    command("psql", "open psql on the same database; arguments after -- are psql's")
    embedded = command("embedded", "start the embedded server, and print its connection string")
    embedded.add_argument("--stop", action="store_true", help="stop it instead")
    embedded.add_argument("--remove", action="store_true", help="stop it, and delete its data")
    return parser


def _shared_options() -> tuple[Parser, Parser, Parser, Parser, Parser]:
    database, formatted, measured, timed, migrating = (Parser(add_help=False) for _ in range(5))
    database.add_argument("--database", metavar="URL", default=argparse.SUPPRESS, help="libpq URL or connection string")
    database.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say nothing on stderr but errors"
    )
    formatted.add_argument("--format", choices=FORMATS, default="table")
    measured.add_argument("--format", choices=(*FORMATS, "prometheus"), default="table")
    timed.add_argument(
        "--timeout",
        type=parse_seconds,
        default=30,
        metavar="S",
        help="cancel a query after S seconds (default 30; 0 is no limit)",
    )
    migrating.add_argument("--plan", action="store_true", help="print the SQL that would run, and change nothing")
    migrating.add_argument(
        "--wait", type=parse_seconds, default=0, metavar="S", help="wait S seconds for a server that is starting"
    )
    migrating.add_argument(
        "--lock-wait", type=parse_seconds, default=60, metavar="S", help="wait S seconds for another migrator (default 60)"
    )
    return database, formatted, measured, timed, migrating


def _add_queries(parser: Parser, argv: Sequence[str], options: list[Parser]) -> None:
    """Add a command for each query file. Only the query that is asked for is read."""
    commands = parser.add_subparsers(metavar="QUERY", dest="query", required=True, parser_class=Parser)
    for name in query_names():
        added = commands.add_parser(name, parents=options)
        added.set_defaults(parser=added)
        if name in argv:
            _add_parameters(added, find_query(name))


def _add_parameters(parser: Parser, query: Query) -> None:
    parser.description = query.documentation
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--explain", action="store_true", help="show the plan and what it read, instead of the rows")
    instead.add_argument("--sql", action="store_true", help="print the statement for any driver, with its parameters as $1 …")
    parser.add_argument(
        "-v",
        dest="variables",
        action="append",
        default=[],
        type=parse_variable,
        metavar="NAME=VALUE",
        help="a parameter, as in psql",
    )
    for param in query.params:
        parser.add_argument(
            f"--{param.name.replace('_', '-')}",
            dest=f"param:{param.name}",
            metavar=param.type.upper(),
            help=f"{param.description} ({param.kind})".replace("%", "%%"),
        )
