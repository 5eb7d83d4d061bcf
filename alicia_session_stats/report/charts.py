"""Which charts the report draws, and from which answers. Each function returns None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable

from alicia_session_stats.report.heatmaps import retention, sessions_by_hour
from alicia_session_stats.report.vega import Answers, Chart, Rows, Spec, categories, count_axis, date, span

TREND_COLOURS = {
    "whole day": "var(--bar)",
    "today so far": "var(--partial)",
    "mean of 7 days": "var(--mean)",
    "95 % interval": "var(--interval)",
    "forecast": "var(--forecast)",
}


def sessions_per_day(answers: Answers) -> Chart | None:
    """Draw the sessions of usage_over_time with their mean of 7 days, then those of growth_forecast."""
    past = _past(answers)
    if not any(row["sessions"] for row in past):
        return None
    highest = max(past, key=lambda row: row["sessions"])
    said = f", at most {highest['sessions']:,} on {date(highest)}, with the mean of 7 days"
    return _trend("sessions", said, past, _forecast(answers, "sessions"), mean="sessions_7d_mean")


def messages_per_day(answers: Answers) -> Chart | None:
    """Draw the messages of usage_over_time, then those of growth_forecast."""
    past, forecast = _past(answers), _forecast(answers, "messages")
    return _trend("messages", "", past, forecast) if forecast and any(row["messages"] for row in past) else None


def _past(answers: Answers) -> Rows:
    """Return the rows of usage_over_time, whose periods are days here."""
    return [{**row, "day": row["period_start"].date()} for row in answers["usage_over_time"]]


def _forecast(answers: Answers, measure: str) -> Rows:
    """Return the rows of growth_forecast, or none where the history is too short for numbers."""
    return [row for row in answers["growth_forecast"] if row[measure] is not None]


def _trend(measure: str, said: str, past: Rows, forecast: Rows, *, mean: str = "") -> Chart:
    whole_days = [row for row in past if not row["is_partial"]]
    layers = {
        "whole day": _layer("bar", whole_days, measure),
        "today so far": _layer("bar", [row for row in past if row["is_partial"]], measure),
    }
    if mean:
        layers["mean of 7 days"] = _layer("line", whole_days, mean)
    if forecast:
        expected = sum(row[measure] for row in forecast) / len(forecast)
        said += f", and the forecast {span(forecast)}, {expected:,.0f} a day, with its 95 percent interval"
        layers["95 % interval"] = _layer("area", forecast, f"{measure}_low", f"{measure}_high")
        layers["forecast"] = _layer("line", forecast, measure)
    maximum = max(value.get("y2", value["y"]) for layer in layers.values() for value in layer["data"]["values"])
    for name, layer in layers.items():
        layer["mark"]["color"] = TREND_COLOURS[name]

    def spec(narrow: bool) -> Spec:
        day = {
            "field": "day",
            "timeUnit": "utcyearmonthdate",
            "bandPosition": 0.5,
            "title": "day (UTC)",
            "axis": {"format": "%-d %b", "tickCount": 4 if narrow else 6},
        }
        y = {"field": "y", "type": "quantitative", "title": f"{measure} a day", "axis": count_axis(maximum)}
        return {"height": 230 if narrow else 280, "encoding": {"x": day, "y": y}, "layer": list(layers.values())}

    label = f"Chart of {measure} a day {span(past)}{said}."
    return Chart(f"{measure.capitalize()} a day", label, spec, tuple((name, TREND_COLOURS[name]) for name in layers))


def _layer(mark: str, rows: Rows, y: str, y2: str | None = None) -> Spec:
    """Return the given columns by day, as bars, a line, or the area between two columns."""
    values = [{"day": row["day"].isoformat(), "y": float(row[y])} | ({"y2": float(row[y2])} if y2 else {}) for row in rows]
    return {"data": {"values": values}, "mark": {"type": mark}, "encoding": {"y2": {"field": "y2"}} if y2 else {}}


def session_lengths(answers: Answers) -> Chart | None:
    """Draw session_length_distribution as horizontal bars."""
    rows = answers["session_length_distribution"]
    highest = max(rows, key=lambda row: row["sessions"])
    if not highest["sessions"]:
        return None
    values = [{"length": row["length"], "sessions": row["sessions"], "share": f"{row['share_pct']:.1f} %"} for row in rows]

    def spec(narrow: bool) -> Spec:
        room_for_text = 1.25 if narrow else 1.1
        sessions = {
            "field": "sessions",
            "type": "quantitative",
            "axis": {**count_axis(highest["sessions"]), "grid": True},
            "scale": {"domainMax": highest["sessions"] * room_for_text, "nice": False},
        }
        text: Spec = {"mark": {"type": "text", "align": "left", "dx": 5}, "encoding": {"text": {"field": "share"}}}
        return {
            "height": 60 + 26 * len(rows),
            "data": {"values": values},
            "encoding": {"x": sessions, "y": categories("length", "length of the session", minExtent=88, titleX=-88)},
            "layer": [{"mark": "bar"}, text],
        }

    most = f"the most frequent is {highest['length']}, {highest['share_pct']:.1f} percent of all"
    return Chart("How long sessions last", f"Bar chart of sessions by their length: {most}.", spec)


def concurrent_sessions(answers: Answers) -> Chart | None:
    """Draw peak_concurrency as a bar for each day."""
    rows = answers["peak_concurrency"]
    highest = max(rows, key=lambda row: row["peak_sessions"])
    if not highest["peak_sessions"]:
        return None
    values = [{"day": date(row), "sessions": row["peak_sessions"], "is_partial": row["is_partial"]} for row in rows]

    def spec(narrow: bool) -> Spec:
        axis = count_axis(highest["peak_sessions"])
        sessions = {"field": "sessions", "type": "quantitative", "title": "sessions at once", "axis": axis}
        today = {"test": "datum.is_partial", "value": TREND_COLOURS["today so far"]}
        colour = {"condition": today, "value": TREND_COLOURS["whole day"]}
        text: Spec = {"mark": {"type": "text", "dy": -8}, "encoding": {"text": {"field": "sessions", "format": ",d"}}}
        return {
            "height": 200 if narrow else 230,
            "data": {"values": values},
            "encoding": {"x": categories("day", "day (UTC)", labelOverlap=True, labelSeparation=12), "y": sessions},
            "layer": [{"mark": "bar", "encoding": {"color": colour}}, text],
        }

    most = f"{span(rows)}, the highest {highest['peak_sessions']:,} on {date(highest)}"
    label = f"Bar chart of the most sessions at one instant of each day {most}."
    return Chart("Sessions at once", label, spec, tuple(TREND_COLOURS.items())[:2])


# By the name of the query in whose section the chart stands.
CHARTS: dict[str, Callable[[Answers], Chart | None]] = {
    "usage_over_time": sessions_per_day,
    "busiest_hours": sessions_by_hour,
    "peak_concurrency": concurrent_sessions,
    "growth_forecast": messages_per_day,
    "session_length_distribution": session_lengths,
    "conversation_retention": retention,
}
