"""Write what the named queries answer as one HTML page for people: python -m report --output report.html

The page needs no network. Its definitions are the headers of the query files. Its charts are Vega-Lite
specifications, drawn here to SVG in the colours of the page's own style sheet (report.html.j2), and drawn
twice, for a wide screen and for a narrow one, since text that is scaled down with its picture cannot be read.
"""
# pyright: reportPrivateUsage=false
# A page of runner.py, which stands apart only because of the libraries that it needs.

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    import runner
else:
    runner = importlib.import_module(__package__ or "runner")

try:
    import jinja2
    import vl_convert
except ImportError as missing:
    raise SystemExit(f"{runner.PROGRAM}: the report needs {missing.name}: pip install '{runner.PROGRAM}[report]'") from None

LEFT_OUT = ("session_stats", "verify", "verify_sums")  # The one needs a conversation, the others judge the database.
ASKED = {"daily_usage": {"days": "90"}}  # As far back as the forecast learns, to be seen with it.
Row = dict[str, Any]
Answers = Mapping[str, list[Row]]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A chart: its title, what it shows in words, and its Vega-Lite, for a narrow screen or else a wide one."""

    title: str
    label: str
    spec: Callable[[bool], Spec]
    key: tuple[tuple[str, str], ...] = ()  # What a colour means, where there is more than one: name and CSS colour.

    def svg(self, narrow: bool) -> str:
        """Draw it, inline SVG with colours and fonts left to the page's CSS."""
        svg = vl_convert.vegalite_to_svg({**FRAME, **self.spec(narrow), "width": 350 if narrow else 760})
        # A hundredth of a pixel is enough, and the chart is one picture to a screen reader, without parts.
        return re.sub(r"(?<=\.\d\d)\d+| (?:role|aria-\w+)=\"[^\"]*\"", "", svg)


@dataclass(frozen=True)
class Section:
    """A named query with its answer."""

    query: runner.Query
    params: dict[str, str]
    rows: list[Row]
    chart: Drawing | None

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each column to show, and whether it holds numbers; the bar is for those who have no picture."""
        return [(name, any(_is_number(row[name]) for row in self.rows)) for name in (self.rows or [{}])[0] if name != "bar"]

    @property
    def returns(self) -> str:
        """What the header of the file says of the rows, on one line."""
        found = re.search(r"^Returns: (.+(?:\n {2,}.+)*)", self.query.documentation, re.M)
        return " ".join(found[1].split()) if found else ""


# The page ---------------------------------------------------------------------------------------------


def report(conninfo: str | None = None, *, timeout: float = 30) -> str:
    """Ask every named query that only reads, and lay the answers out on one page.

    Args:
        conninfo: str, or None for the configured database.
        timeout: seconds after which the server gives a query up.

    Returns:
        str: an HTML document that needs nothing besides itself.

    Raises:
        SessionStatsError: as for runner.query.
    """
    queries = [query for query in runner.named_queries().values() if not query.writes and query.name not in LEFT_OUT]
    asked = {query.name: {p.name: p.default or "" for p in query.params} | ASKED.get(query.name, {}) for query in queries}
    answers = {query.name: runner.query(conninfo, query.name, timeout=timeout, **asked[query.name]) for query in queries}
    sections = [
        Section(query, asked[query.name], answers[query.name], DRAWN[query.name](answers) if query.name in DRAWN else None)
        for query in queries
    ]
    return _template().render(
        purposes=[(purpose, list(group)) for purpose, group in groupby(sections, lambda section: section.query.purpose)],
        drawn=DRAWN,
        empty=not answers["most_active_sessions"],
        change=answers["usage_change"],
        change_days=asked["usage_change"]["days"],
        database=_database_name(conninfo),
        now=datetime.now(UTC),
        program=runner.PROGRAM,
        shown=_shown,
        csp_hash=_csp_hash,
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _database_name(conninfo: str | None) -> str:
    with runner.connect(conninfo) as connection:
        return connection.info.dbname


def _shown(value: Any) -> str:
    """A value as the runner's tables show it, with thousands set apart."""
    text = runner._text(value, digits=2)
    return f"{runner.Decimal(text):,}" if _is_number(value) else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | runner.Decimal)


def _csp_hash(script: str) -> str:
    """What lets a Content-Security-Policy run this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# The charts -------------------------------------------------------------------------------------------

QUANTITY: Spec = {"field": "y", "type": "quantitative"}
COUNT: Spec = {"tickMinStep": 1, "tickCount": 5, "format": ",d"}
DAYS: Spec = {
    "field": "day",
    "timeUnit": "utcyearmonthdate",
    "bandPosition": 0.5,
    "title": "day (UTC)",
    "axis": {"format": "%-d %b"},
}
COLOURS = {
    "each day": "var(--bar)",
    "mean of 7 days": "var(--accent)",
    "forecast": "var(--ahead)",
    "its 95 % interval": "var(--band)",
}
HEAT = [f"var(--heat-{step})" for step in range(6)]
FRAME: Spec = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "autosize": {"type": "fit", "contains": "padding"},
    "padding": {"left": 0, "top": 4, "right": 8, "bottom": 4},
    "background": None,
    "config": {
        "aria": False,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "bar": {"color": "var(--bar)"},
        "text": {"color": "var(--ink)", "fontSize": 11.5},
        "axis": {
            "labelColor": "var(--muted)",
            "labelFontSize": 11.5,
            "titleColor": "var(--muted)",
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": "var(--line)",
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "axisX": {"grid": False},
        # Above its axis, where it needs no turned head; wide, since the reader's font may be wider than ours.
        "axisY": {"titleAngle": 0, "titleAlign": "left", "titleX": -44, "titleY": -20, "minExtent": 44},
    },
}


def _draw_sessions(answers: Answers) -> Drawing | None:
    past, ahead = answers["daily_usage"], _told(answers["growth_forecast"], "sessions")
    if not any(row["sessions"] for row in past):
        return None
    busiest = max(past, key=lambda row: row["sessions"])
    most = f", at most {busiest['sessions']:,} on {_day(busiest)}, with the mean of 7 days"
    layers = {
        "each day": _bars(past, "sessions"),
        "mean of 7 days": _line(past, "avg_7d", 2.25),
        **_forecast(ahead, "sessions", "s"),
    }
    return _trend("Sessions a day", "sessions a day", _span(past) + most + _expected(ahead, "sessions"), layers)


def _draw_messages(answers: Answers) -> Drawing | None:
    past, ahead = answers["daily_usage"], _told(answers["growth_forecast"], "messages")
    if not ahead:
        return None
    layers = {"each day": _bars(past, "messages"), **_forecast(ahead, "messages", "m")}
    return _trend("Messages a day", "messages a day", _span(past) + _expected(ahead, "messages"), layers)


def _told(rows: list[Row], measure: str) -> list[Row]:
    """The rows that answer; where the history is too short, none does."""
    return [row for row in rows if row[measure] is not None]


def _expected(ahead: list[Row], measure: str) -> str:
    if not ahead:
        return ""
    mean = sum(row[measure] for row in ahead) / len(ahead)
    return f", and the forecast {_span(ahead)}, {mean:,.0f} a day, with its 95 percent interval"


def _trend(title: str, unit: str, said: str, layers: dict[str, Spec]) -> Drawing:
    """Days from left to right: what was, and what is expected."""
    for name, layer in layers.items():
        layer["mark"]["color"] = COLOURS[name]
        layer["encoding"]["y"] = {**QUANTITY, "title": unit, "axis": COUNT, **layer["encoding"]["y"]}

    def spec(narrow: bool) -> Spec:
        days = {**DAYS, "axis": {**DAYS["axis"], "tickCount": 4 if narrow else 6}}
        return {"height": 230 if narrow else 280, "encoding": {"x": days}, "layer": list(layers.values())}

    return Drawing(
        title, f"Chart of {unit} {said}.", spec, tuple((name, colour) for name, colour in COLOURS.items() if name in layers)
    )


def _bars(rows: list[Row], field: str) -> Spec:
    return {"data": _days(rows, y=field), "mark": {"type": "bar"}, "encoding": {"y": {"field": "y"}}}


def _line(rows: list[Row], field: str, width: float) -> Spec:
    return {"data": _days(rows, y=field), "mark": {"type": "line", "strokeWidth": width}, "encoding": {"y": {"field": "y"}}}


def _forecast(ahead: list[Row], measure: str, prefix: str) -> dict[str, Spec]:
    if not ahead:
        return {}
    band: Spec = {
        "data": _days(ahead, y=f"{prefix}_low", high=f"{prefix}_high"),
        "mark": {"type": "area"},
        "encoding": {"y": {"field": "y"}, "y2": {"field": "high"}},
    }
    return {"its 95 % interval": band, "forecast": _line(ahead, measure, 2)}


def _days(rows: list[Row], **columns: str) -> Spec:
    """Data of a chart by day, with the given columns under the given names."""
    values = [{"day": row["day"].isoformat(), **{name: float(row[key]) for name, key in columns.items()}} for row in rows]
    return {"values": values}


def _draw_hours(answers: Answers) -> Drawing | None:
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    values: list[Row] = [
        {"hour": row["hour"], "day": day, "sessions": row[day]} for row in answers["busiest_hours"] for day in days
    ]
    busiest = max(values, key=lambda value: value["sessions"])
    if not busiest["sessions"]:
        return None

    def spec(narrow: bool) -> Spec:
        hour = {"field": "hour", "type": "ordinal", "title": "hour of the day (UTC)", "axis": {"labelAngle": 0}}
        day = {"field": "day", "type": "ordinal", "sort": days, "title": "day of the week", "axis": {"labelAngle": 0}}
        return {
            "height": 420 if narrow else 250,
            "data": {"values": values},
            "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1.5},
            "encoding": {
                "x": day if narrow else hour,
                "y": hour if narrow else day,
                "color": _heat("sessions", busiest["sessions"]),
            },
        }

    most = f"the most, {busiest['sessions']}, on {busiest['day']} from {busiest['hour']}:00"
    said = f"Heat map of sessions by weekday and hour of the day: {most} UTC."
    return Drawing("Sessions by weekday and hour", said, spec, _heat_key(busiest["sessions"]))


def _draw_retention(answers: Answers) -> Drawing | None:
    rows = answers["conversation_retention"]
    values: list[Row] = [
        {"cohort": f"{_day(row, 'cohort')}  ({row['size']:,})", "week": week, "share": float(row[f"week_{week}"])}
        for row in rows
        for week in range(1, 8)
        if row[f"week_{week}"] is not None
    ]
    if not values:
        return None
    top = max(value["share"] for value in values)

    def spec(narrow: bool) -> Spec:
        cohort = {
            "field": "cohort",
            "type": "ordinal",
            "sort": None,
            "title": "week of the first session, and how many began in it",
            "axis": {"minExtent": 86, "titleX": -86},
        }
        week = {"field": "week", "type": "ordinal", "title": "weeks later", "axis": {"labelAngle": 0}}
        strong = {"test": f"datum.share >= {_thresholds(top)[2]}", "value": "var(--heat-ink)"}
        heat: Spec = {
            "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1.5},
            "encoding": {"color": _heat("share", top)},
        }
        text: Spec = {
            "mark": {"type": "text"},
            "encoding": {
                "text": {"field": "share", "format": ".0f" if narrow else ".1f"},
                "color": {"condition": strong, "value": "var(--ink)"},
            },
        }
        encoding = {"x": week, "y": cohort}
        return {"height": 110 + 28 * len(rows), "data": {"values": values}, "encoding": encoding, "layer": [heat, text]}

    said = f"from {min(value['share'] for value in values):.1f} to {top:.1f} percent"
    label = f"Heat map of the share of each week's new conversations that is active in each of the weeks after, {said}."
    return Drawing("Conversations active again, in percent", label, spec, _heat_key(top))


def _heat(field: str, top: float) -> Spec:
    scale = {"type": "threshold", "domain": _thresholds(top), "range": HEAT}
    return {"field": field, "type": "quantitative", "scale": scale, "legend": None}


def _heat_key(top: float) -> tuple[tuple[str, str], ...]:
    limits = _thresholds(top)
    names = [f"under {limits[0]:,}", *(f"from {limit:,}" for limit in limits)]
    return tuple((name, colour) for name, colour, low in zip(names, HEAT, [0, *limits], strict=True) if low <= top)


def _thresholds(top: float) -> list[int]:
    """Where one colour of the heat map ends and the next begins: multiples of a round number."""
    tens = (unit * 10**power for power in range(12) for unit in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80))
    step = next(step for step in (1, 2, 3, 4, 5, 6, 8, *tens) if step * len(HEAT) > top)
    return [step * (i + 1) for i in range(len(HEAT) - 1)]


def _draw_lengths(answers: Answers) -> Drawing | None:
    rows = answers["session_length_distribution"]
    if not any(row["sessions"] for row in rows):
        return None
    values = [{"length": row["length"], "sessions": row["sessions"], "share": f"{row['share_pct']:.1f} %"} for row in rows]
    commonest = max(rows, key=lambda row: row["sessions"])

    def spec(narrow: bool) -> Spec:
        room = 1.25 if narrow else 1.1  # For the text at the end of the longest bar.
        x = {
            "field": "sessions",
            "type": "quantitative",
            "axis": {"tickMinStep": 1, "tickCount": 4, "format": ",d", "grid": True},
            "scale": {"domainMax": commonest["sessions"] * room, "nice": False},
        }
        y = {
            "field": "length",
            "type": "ordinal",
            "sort": None,
            "title": "length of the session",
            "axis": {"minExtent": 88, "titleX": -88},
        }
        text: Spec = {
            "mark": {"type": "text", "align": "left", "dx": 5},
            "encoding": {"text": {"field": "share"}},
        }
        return {
            "height": 60 + 26 * len(rows),
            "data": {"values": values},
            "encoding": {"x": x, "y": y},
            "layer": [{"mark": "bar"}, text],
        }

    said = f"the commonest is {commonest['length']}, {commonest['share_pct']:.1f} percent"
    return Drawing("How long sessions last", f"Bar chart of sessions by their length: {said} of all.", spec)


def _draw_peaks(answers: Answers) -> Drawing | None:
    rows = answers["peak_concurrency"]
    highest = max(rows, key=lambda row: row["peak_sessions"])
    if not highest["peak_sessions"]:
        return None
    values = [{"day": _day(row), "sessions": row["peak_sessions"]} for row in rows]

    def spec(narrow: bool) -> Spec:
        axis = {"labelAngle": 0, "labelOverlap": True, "labelSeparation": 12}
        days = {"field": "day", "type": "ordinal", "sort": None, "title": "day (UTC)", "axis": axis}
        sessions = {"field": "sessions", "type": "quantitative", "title": "sessions at once", "axis": COUNT}
        text: Spec = {"mark": {"type": "text", "dy": -8}, "encoding": {"text": {"field": "sessions", "format": ",d"}}}
        return {
            "height": 200 if narrow else 230,
            "data": {"values": values},
            "encoding": {"x": days, "y": sessions},
            "layer": [{"mark": "bar"}, text],
        }

    said = f"{_span(rows)}, the highest {highest['peak_sessions']:,} on {_day(highest)}"
    return Drawing("Sessions at once", f"Bar chart of the most sessions at one instant of each day {said}.", spec)


def _span(rows: list[Row]) -> str:
    return f"from {_day(rows[0])} to {_day(rows[-1])}"


def _day(row: Row, column: str = "day") -> str:
    return f"{row[column].day} {row[column]:%b}"


DRAWN: dict[str, Callable[[Answers], Drawing | None]] = {
    "daily_usage": _draw_sessions,
    "busiest_hours": _draw_hours,
    "peak_concurrency": _draw_peaks,
    "growth_forecast": _draw_messages,
    "session_length_distribution": _draw_lengths,
    "conversation_retention": _draw_retention,
}


# The command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 usage."""
    try:
        arguments = _parser().parse_args(argv)
        _write(Path(arguments.output), report(arguments.database, timeout=arguments.timeout))
        print(f"{runner.PROGRAM}: wrote {arguments.output}", file=sys.stderr)
        return 0
    except runner.SessionStatsError as error:
        print(f"{runner.PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except psycopg.Error as error:
        print(f"{runner.PROGRAM}: {runner._one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{runner.PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = runner._Parser(
        prog="report", allow_abbrev=False, description="Write what the named queries answer as one HTML page."
    )
    parser.add_argument("--database", metavar="URL", help="libpq URL or conninfo; else as for every other command")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="the file to write (report.html)")
    parser.add_argument("--timeout", type=runner._seconds, default=30, metavar="S", help="give a query up after S seconds (30)")
    return parser


def _write(output: Path, page: str) -> None:
    try:
        if output.exists() and not output.is_file():  # A device or a pipe: written to, not replaced.
            output.write_text(page, encoding="utf-8")
        else:
            _replace(output.resolve(), page)
    except OSError as error:
        raise runner.SessionStatsError(f"cannot write {output}: {error.strerror}") from None


def _replace(file: Path, page: str) -> None:
    """Write it whole or not at all: who has the old page open, or serves it, never sees half of the new one."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        scratch.write_text(page, encoding="utf-8")
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
