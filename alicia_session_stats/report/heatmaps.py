"""The charts whose cells are coloured by a number, on a scale of six colours."""

from __future__ import annotations

from alicia_session_stats.report.vega import Answers, Chart, Key, Rows, Spec, categories, date

COLOURS = [f"var(--heat-{step})" for step in range(6)]
CELL: Spec = {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1.5}
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def sessions_by_hour(answers: Answers) -> Chart | None:
    """Draw busiest_hours as a heat map of the week."""
    values: Rows = [
        {"hour": row["hour"], "day": day, "sessions": row[day]} for row in answers["busiest_hours"] for day in WEEKDAYS
    ]
    highest = max(values, key=lambda value: value["sessions"])
    if not highest["sessions"]:
        return None

    def spec(narrow: bool) -> Spec:
        hour, day = categories("hour", "hour of the day (UTC)"), categories("day", "day of the week")
        x, y = (day, hour) if narrow else (hour, day)
        encoding = {"x": x, "y": y, "color": _colour("sessions", highest["sessions"])}
        return {"height": 420 if narrow else 250, "data": {"values": values}, "mark": CELL, "encoding": encoding}

    most = f"the most, {highest['sessions']:,}, on {highest['day']} from {highest['hour']}:00"
    label = f"Heat map of sessions by weekday and hour of the day: {most} UTC."
    return Chart("Sessions by weekday and hour", label, spec, _key(highest["sessions"]))


def retention(answers: Answers) -> Chart | None:
    """Draw conversation_retention as a triangle of percentages, a row for each cohort."""
    rows = answers["conversation_retention"]
    values: Rows = [
        {"cohort": f"{date(row, 'cohort')}  ({row['conversations']:,})", "week": week, "share": float(row[f"week_{week}_pct"])}
        for row in rows
        for week in range(1, 8)
        if row[f"week_{week}_pct"] is not None
    ]
    if not values:
        return None
    lowest, highest = min(value["share"] for value in values), max(value["share"] for value in values)

    def spec(narrow: bool) -> Spec:
        cohort = categories("cohort", "week of the first session, and how many began in it", minExtent=86, titleX=-86)
        week = categories("week", "weeks later (the last is not over)")
        dark_cell = {"test": f"datum.share >= {_limits(highest)[2]}", "value": "var(--heat-ink)"}
        text = {
            "text": {"field": "share", "format": ".0f" if narrow else ".1f"},
            "color": {"condition": dark_cell, "value": "var(--ink)"},
        }
        return {
            "height": 110 + 28 * len(rows),
            "data": {"values": values},
            "encoding": {"x": week, "y": cohort},
            "layer": [
                {"mark": CELL, "encoding": {"color": _colour("share", highest)}},
                {"mark": "text", "encoding": text},
            ],
        }

    label = (
        "Heat map of the share of each week's new conversations that was active in each of the weeks after, "
        f"from {lowest:.1f} to {highest:.1f} percent."
    )
    return Chart("Conversations active again, in percent", label, spec, _key(highest))


def _colour(field: str, maximum: float) -> Spec:
    scale = {"type": "threshold", "domain": _limits(maximum), "range": COLOURS}
    return {"field": field, "type": "quantitative", "scale": scale, "legend": None}


def _key(maximum: float) -> Key:
    """Return the numbers that each colour stands for, up to the maximum."""
    limits = _limits(maximum)
    names = [f"under {limits[0]:,}", *(f"from {limit:,}" for limit in limits)]
    return tuple((name, colour) for name, colour, low in zip(names, COLOURS, [0, *limits], strict=True) if low <= maximum)


def _limits(maximum: float) -> list[int]:
    """Return the five numbers at which the colour changes: multiples of a round number."""
    tens = (unit * 10**power for power in range(12) for unit in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80))
    step = next(step for step in (1, 2, 3, 4, 5, 6, 8, *tens) if step * len(COLOURS) > maximum)
    return [step * (i + 1) for i in range(len(COLOURS) - 1)]
