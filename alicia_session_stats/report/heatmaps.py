"""The charts whose cells are coloured by a number, on a scale of six colours."""

from __future__ import annotations

from collections.abc import Iterator

from alicia_session_stats.report.vega import Answers, Chart, Key, Spec, categories
from alicia_session_stats.report.words import Rows, day, mark

COLOURS = [f"var(--heat-{step})" for step in range(6)]
INKS = ["var(--ink)"] * 3 + ["var(--heat-ink)"] * 3  # Of the text on each colour.
CELL: Spec = {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1.5}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def busiest_hours(answers: Answers) -> Iterator[Chart]:
    """Draw busiest_hours as a heat map of the week."""
    values: Rows = [
        {"hour": row["hour"], "day": day, "sessions": row[day.lower()]} for row in answers["busiest_hours"] for day in WEEKDAYS
    ]
    highest = max(values, key=lambda value: value["sessions"])
    if not highest["sessions"]:
        return

    hour, weekday, colour = categories("hour", "hour of the day"), categories("day"), _colour("sessions", highest["sessions"])
    wide = {"height": 210, "data": {"values": values}, "mark": CELL, "encoding": {"x": hour, "y": weekday, "color": colour}}
    narrow = {"height": 400, "encoding": {"x": weekday, "y": hour | {"title": None}, "color": colour}}
    most = f"the most, {highest['sessions']:,}, on {highest['day']} from {highest['hour']}:00"
    label = f"Heat map of sessions by weekday and hour: {most}."
    yield Chart("Sessions", label, wide, _key(highest["sessions"], ""), narrow=narrow)


def retention(answers: Answers) -> Iterator[Chart]:
    """Draw conversation_retention as a triangle of percentages, a row for each cohort. The current week is left out."""
    rows = [row for row in answers["conversation_retention"] if not row["is_partial"]]
    values: Rows = [
        {
            "cohort": f"{day(row['cohort'])} ({row['conversations']:,}){mark(row)}",
            "week": week,
            "share": float(row[f"week_{week}_pct"]),
        }
        for number, row in enumerate(rows)
        for week in range(1, min(8, len(rows) - number))
        if row[f"week_{week}_pct"] is not None
    ]
    if not values:
        return
    lowest, highest = min(value["share"] for value in values), max(value["share"] for value in values)

    ink = _colour("share", highest, INKS)
    spec = {
        "height": 50 + 28 * len({value["cohort"] for value in values}),
        "data": {"values": values},
        "encoding": {"x": categories("week", "weeks later"), "y": categories("cohort", minExtent=110)},
        "layer": [
            {"mark": CELL, "encoding": {"color": _colour("share", highest)}},
            {"mark": "text", "encoding": {"text": {"field": "share", "format": ".1f"}, "color": ink}},
        ],
        "resolve": {"scale": {"color": "independent"}},
    }
    label = f"Heat map of the share of new conversations with a session in later weeks: {lowest:.1f} to {highest:.1f} percent."
    is_marked = any(value["cohort"].endswith("*") for value in values)
    key = (*_key(highest, " %"), *([("* older sessions are missing, perhaps deleted", "")] if is_marked else []))
    yield Chart("Percent with a session", label, spec, key)


def _colour(field: str, maximum: float, colours: list[str] = COLOURS) -> Spec:
    lows, steps = zip(*_classes(maximum), strict=True)
    scale = {"type": "threshold", "domain": lows[1:], "range": [colours[step] for step in steps]}
    return {"field": field, "type": "quantitative", "scale": scale, "legend": None}


def _key(maximum: float, unit: str) -> Key:
    """Return the numbers that each colour stands for."""
    classes = _classes(maximum)
    first = f"under {classes[1][0]:,}{unit}" if len(classes) > 1 else f"0{unit}"
    return tuple((f"from {low:,}{unit}" if low else first, COLOURS[step]) for low, step in classes)


def _classes(maximum: float) -> list[tuple[int, int]]:
    """Return the least number of each class, a multiple of a round number, and its colour, up to the maximum."""
    tens = (unit * 10**power for power in range(12) for unit in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80))
    size = next(size for size in (1, 2, 3, 4, 5, 6, 8, *tens) if size * len(COLOURS) > maximum)
    last = int(maximum // size)
    return [(size * i, round(i * 5 / max(last, 1))) for i in range(last + 1)]
