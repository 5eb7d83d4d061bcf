"""What the report shows, in its order: the queries, their windows in words, their charts and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from alicia_session_stats.report import charts, heatmaps
from alicia_session_stats.report.vega import Answers, Chart
from alicia_session_stats.report.words import name, rounded, show, span

HOURS = ("seconds", "hours", 3600)
MINUTES = ("seconds", "minutes", 60)
LEFT_OUT = (
    # The head of the page; among the percentiles; an export; of one conversation.
    *("usage_change", "average_session_metrics", "list_sessions", "session_stats"),
    # An operator's.
    *("recent_activity", "sessions_before", "verify", "verify_rollup"),
)


@dataclass(frozen=True)
class Section:
    """A query, as the page shows it."""

    query: str
    title: str
    window: str  # In words; {trailing} and {calendar} are the days with their dates.
    given: Mapping[str, str] = field(default_factory=dict)  # The parameters that are not the default.
    charts: Callable[[Answers], Iterable[Chart]] = lambda _: ()
    sentences: Callable[[Answers], Iterable[tuple[bool, str]]] = lambda _: ()  # Each with whether it is a warning.
    unit: tuple[str, str, int] | None = None
    table: bool = False  # Whether the table is visible at once, not only when it is opened.
    half: bool = False  # Whether it is as wide as half of the page.
    optional: bool = False  # Whether nothing is said where the query does not work.

    @property
    def id(self) -> str:
        """The address on the page: metric_usage_tool_calls."""
        return "_".join([self.query, *([self.given["metric"]] if "metric" in self.given else [])])


def forecast_fit(answers: Answers) -> Iterator[tuple[bool, str]]:
    """Say what growth_forecast expects, and how far to trust it."""
    rows = answers["growth_forecast"]
    if not rows:
        return
    days = rows[0]["history_days"]
    if rows[0]["sessions"] is None:
        yield True, f"No forecast yet: it needs 28 complete days of history, and there are {days}."
        return
    sums = [
        f"{rounded(int(float(f'{sum(row[measure] for row in rows):.2g}')))} {measure}" for measure in ("sessions", "messages")
    ]
    dates = span(rows[0]["day"], rows[-1]["day"])
    yield False, f"About {' and '.join(sums)} from {dates}, by the {days} whole days before today."
    verdicts: dict[str, list[str]] = {}
    for measure in ("sessions", "messages"):
        fit = rows[0][f"{measure}_r2"]
        if fit is not None:  # It is None where every day is equal.
            verdict = "Good" if fit >= 0.8 else "Fair" if fit >= 0.5 else "Poor"
            verdicts.setdefault(verdict, []).append(f"{100 * fit:.0f} percent of how {measure} vary")
    for verdict, shares in verdicts.items():
        said = f"{verdict} fit: the trend and the weekdays explain {' and '.join(shares)} from day to day."
        is_poor = verdict == "Poor"
        yield is_poor, said + " Single days will differ widely: plan with the interval, not with the line." * is_poor


def storage(answers: Answers) -> Iterator[tuple[bool, str]]:
    """Say how large the table is."""
    table, *indexes = answers["table_health"] or [{}]
    if table:
        rows = "an unknown number of" if table["rows"] is None else f"about {show(table['rows'])}"
        size = sum(index["size_MB"] for index in indexes)
        yield False, f"The table has {rows} rows and takes {show(table['size_MB'])} MB, its indexes {show(size)} MB."


USED = "Per session, in {trailing} and the {days} days before."
SECTIONS = (
    Section("usage_over_time", "Usage per day", "The last {calendar}.", {"days": "90"}, charts.usage, unit=HOURS),
    Section("busiest_hours", "Busiest hours", "When sessions begin, in {trailing}.", charts=heatmaps.busiest_hours),
    Section(
        "most_active_sessions", "Most active sessions", "Of all recorded sessions, those with the most messages.", table=True
    ),
    *(
        Section("metric_usage", name(metric).capitalize(), USED, {"metric": metric}, table=True, half=True)
        for metric in ("tool_calls", "memories")
    ),
    Section(
        "session_percentiles",
        "Percentiles per session",
        "By week, Monday to Sunday, for the last twelve whole weeks; the table is for {trailing}.",
        charts=charts.percentiles,
        unit=MINUTES,
        table=True,
    ),
    Section("growth_forecast", "Forecast", "", charts=charts.forecast, sentences=forecast_fit),
    Section(
        "peak_concurrency",
        "Sessions at once",
        "The most at one instant of each of the last {calendar}.",
        charts=charts.concurrency,
    ),
    Section("session_length_distribution", "How long sessions last", "{Trailing}.", charts=charts.lengths, half=True),
    Section("engagement", "Engagement", "{Trailing}.", unit=MINUTES, table=True, half=True),
    Section(
        "active_users",
        "Active users",
        "The last {calendar}, without today. Weekly and monthly are the 7 and 30 days that end with a day.",
        charts=charts.active_users,
        optional=True,
    ),
    Section(
        "conversation_retention",
        "Conversations that came back",
        "By the week of their first session, in brackets how many. The current week is left out.",
        charts=heatmaps.retention,
    ),
    Section("table_health", "Storage", "", sentences=storage, unit=("size_bytes", "size_MB", 1_000_000)),
)
