"""The charts over time, and that of the session lengths. Each function yields what there are sessions to draw for."""

from __future__ import annotations

from collections.abc import Iterator

from alicia_session_stats.report.vega import HALF, WIDE, Answers, Chart, Spec, categories, number_axis
from alicia_session_stats.report.words import Rows, day, name, show, span

COLOURS = {
    "whole day": "var(--bar)",
    "today so far": "var(--hatch)",
    "mean of 7 days": "var(--mean)",
    "95 percent interval": "var(--interval)",
    "forecast": "var(--forecast)",
    "median": "var(--mean)",
    "90th percentile": "var(--middle)",
    "95th percentile": "var(--forecast)",
    "monthly": "var(--forecast)",
    "weekly": "var(--middle)",
    "daily": "var(--mean)",
}
MONTHS: Spec = {"format": "%-d %b", "tickCount": 4}
DAYS: Spec = {"labelExpr": "utcFormat(toDate(datum.value), '%-d %b')", "labelOverlap": True, "labelSeparation": 10}
PERCENTILES = {"median": "p50", "90th percentile": "p90", "95th percentile": "p95"}
Layers = dict[str, Spec]  # By their name in the key.
HATCH = "url(#hatch)"  # A pattern of the page, as var(--hatch) is in CSS.


def usage(answers: Answers) -> Iterator[Chart]:
    """Draw each measure of usage_over_time, the sessions large and with their mean."""
    rows = answers["usage_over_time"]
    mean = _line([row for row in rows if not row["is_partial"]], "sessions_7d_mean")
    yield from _by_day("Sessions per day", rows, "sessions", {"mean of 7 days": mean}, height=230, is_wide=True)
    for measure in ("messages", "hours", "tool_calls", "memories"):
        yield from _by_day(f"{name(measure).capitalize()} per day", rows, measure)


def forecast(answers: Answers) -> Iterator[Chart]:
    """Draw the last four weeks of sessions and messages, then what growth_forecast expects."""
    past = [row for row in answers["usage_over_time"] if not row["is_partial"]][-28:]
    for measure in ("sessions", "messages"):
        ahead = [row for row in answers["growth_forecast"] if row[measure] is not None]
        interval, line = _line(ahead, f"{measure}_low", f"{measure}_high"), _line(ahead, measure)
        if ahead:
            layers = {"95 percent interval": interval, "forecast": line}
            yield from _by_day(f"{measure.capitalize()} per day", past, measure, layers)


def percentiles(answers: Answers) -> Iterator[Chart]:
    """Draw the percentiles of each week."""
    for metric in ("messages", "minutes", "tool_calls", "memories"):
        rows = [row for row in answers["weekly_percentiles"] if row["metric"] == metric and row["p95"] is not None]
        if len(rows) > 1:
            title = f"{name(metric).capitalize()} per session"
            layers = {
                kind: _line(rows, column, point={"size": 20, "color": COLOURS[kind]}) for kind, column in PERCENTILES.items()
            }
            yield _over_time(title, f"Weeks from {span(rows[0]['day'], rows[-1]['day'])}", layers, 150, HALF)


def concurrency(answers: Answers) -> Iterator[Chart]:
    """Draw peak_concurrency."""
    yield from _by_day("Sessions at once", answers["peak_concurrency"], "peak_sessions", is_wide=True)


def active_users(answers: Answers) -> Iterator[Chart]:
    """Draw active_users of the day, week and month, without today."""
    rows = [row for row in answers["active_users"] if not row["is_partial"]]
    if any(row["monthly_users"] for row in rows):
        lines = {kind: _line(rows, f"{kind}_users") for kind in ("monthly", "weekly", "daily")}
        yield _over_time("Active users", span(rows[0]["day"], rows[-1]["day"]), lines, 150, WIDE)


def _by_day(
    title: str, rows: Rows, y: str, more: Layers | None = None, *, height: int = 150, is_wide: bool = False
) -> Iterator[Chart]:
    """Draw a column as a bar for each day, and other layers over or beside the bars."""
    highest = max(rows, key=lambda row: row[y], default=None)
    if highest and highest[y]:
        bars = {
            "whole day": _line([row for row in rows if not row["is_partial"]], y, type="bar"),
            "today so far": _line([row for row in rows if row["is_partial"]], y, type="bar", color=HATCH),
        }
        said = f"{span(rows[0]['day'], rows[-1]['day'])}, at most {show(highest[y])} on {day(highest['day'])}"
        yield _over_time(title, said, bars | (more or {}), height, WIDE if is_wide else HALF)


def _over_time(title: str, said: str, layers: Layers, height: int, sizes: tuple[str, ...]) -> Chart:
    layers = {kind: layer for kind, layer in layers.items() if layer["data"]["values"]}
    for kind, layer in layers.items():
        layer["mark"].setdefault("color", COLOURS[kind])
    maximum = max(value.get("y2", value["y"]) for layer in layers.values() for value in layer["data"]["values"])
    days = {value["day"] for layer in layers.values() for value in layer["data"]["values"]}
    x: Spec = {"field": "day", "timeUnit": "utcyearmonthdate", "bandPosition": 0.5, "title": None, "axis": MONTHS}
    if "whole day" in layers and len(days) <= 14:  # The labels of a time axis would be at the left of the wide bars.
        x = categories("day", **DAYS)
    y = {"field": "y", "type": "quantitative", "title": None, "axis": number_axis(maximum)}
    spec = {"height": height, "encoding": {"x": x, "y": y}, "layer": list(layers.values())}
    key = tuple((kind, COLOURS[kind]) for kind in layers)
    return Chart(title, f"{title}: {said}; {', '.join(layers)}.", spec, key, sizes)


def _line(rows: Rows, y: str, y2: str | None = None, **mark: object) -> Spec:
    """Return a column by day as a line or another mark, or the area between two columns."""
    values = [{"day": f"{row['day']:%Y-%m-%d}", "y": float(row[y])} | ({"y2": float(row[y2])} if y2 else {}) for row in rows]
    marked = {"type": "area" if y2 else "line", **mark}
    return {"data": {"values": values}, "mark": marked, "encoding": {"y2": {"field": "y2"}} if y2 else {}}


def lengths(answers: Answers) -> Iterator[Chart]:
    """Draw session_length_distribution as horizontal bars."""
    rows = answers["session_length_distribution"]
    highest = max(rows, key=lambda row: row["sessions"])
    if not highest["sessions"]:
        return
    values = [{"length": row["length"], "share": float(row["share_pct"]), "text": f"{row['share_pct']:.1f} %"} for row in rows]
    room_for_text = {"domainMax": float(highest["share_pct"]) * 1.25, "nice": False}
    share = {"field": "share", "type": "quantitative", "axis": None, "scale": room_for_text}
    spec = {
        "height": 26 * len(rows),
        "data": {"values": values},
        "encoding": {"x": share, "y": categories("length", minExtent=88)},
        "layer": [
            {"mark": "bar"},
            {"mark": {"type": "text", "align": "left", "dx": 5}, "encoding": {"text": {"field": "text"}}},
        ],
    }
    most = f"the most frequent is {highest['length']}, {highest['share_pct']:.1f} percent"
    yield Chart("Share of the sessions", f"Bar chart of sessions by their length: {most}.", spec, (), HALF)
