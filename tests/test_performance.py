"""Metric usage and session percentiles answer what a model in plain Python does, over generated sessions."""

from fractions import Fraction
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_usage import BIGGEST, DAY, FEW, INSTANT, NOW, ZONES, Connection, Rows, Session, answer, nearly, within
from test_usage import still as still  # fixtures
from test_usage import usage_database as usage_database

import alicia_session_stats as stats


@st.composite
def sessions_around(draw: st.DrawFn, days: int) -> list[Session]:
    """Sessions in the window of so many days, in the one before, outside of both and exactly on their edges."""
    edges = st.builds(lambda n, step: n * days * DAY + step * INSTANT, st.integers(0, 2), st.integers(-1, 1))
    moments = (edges | st.timedeltas(-DAY, 3 * days * DAY)).map(lambda age: NOW - age)
    counts = st.integers(0, 3) | st.integers(0, 500) | st.just(BIGGEST)
    conversations = st.sampled_from(["ac_1", "ac_2"])
    return draw(st.lists(st.builds(Session, moments, conversations, counts, counts, counts, counts), max_size=40))


def percentiles(values: list[int]) -> list[Fraction | None]:
    """The 50th, 90th, 95th and 99th, by linear interpolation between neighbours."""
    if len(values) < 2:
        return [Fraction(values[0]) if values else None] * 4
    hundredths = quantiles([Fraction(value) for value in values], n=100, method="inclusive")
    return [hundredths[percent - 1] for percent in (50, 90, 95, 99)]


def per_hundred(part: int, whole: int) -> Fraction | None:
    return Fraction(100 * part, whole) if whole else None


# Usage of one metric --------------------------------------------------------------------------------------

METRICS = ["messages", "tool_calls", "memories", "seconds"]  # Also the names of a Session's fields.
every_metric = pytest.mark.parametrize("metric", METRICS)


def usage(metric: str, sessions: list[Session]) -> dict[str, Fraction | int | None]:
    used = [getattr(session, metric) for session in sessions]
    return {
        "sessions": len(used),
        "total": sum(used),
        "sessions_with_any_pct": per_hundred(sum(number > 0 for number in used), len(used)),
        **dict(zip([f"per_session_p{n}" for n in (50, 90, 95, 99)], percentiles(used), strict=True)),
        "per_session_max": max(used, default=None),
        "per_100_messages": per_hundred(sum(used), sum(session.messages for session in sessions)),
    }


def compared(this: dict[str, Fraction | int | None], before: dict[str, Fraction | int | None]) -> Rows:
    rows: Rows = []
    for statistic, now in this.items():
        then = before[statistic]
        change = None if now is None or then is None else now - then
        rows.append((statistic, now, then, change, None if change is None or not then else Fraction(100 * change) / then))
    return rows


@every_metric
def test_metric_usage_is_the_models(metric: str, still: Connection) -> None:
    @FEW
    @given(st.data(), st.sampled_from([0, 1, 30]), st.sampled_from(ZONES))
    def check(data: st.DataObject, days: int, zone: str) -> None:
        sessions = data.draw(sessions_around(days))
        start = NOW - days * DAY
        this, before = usage(metric, within(sessions, start, NOW)), usage(metric, within(sessions, start - days * DAY, start))
        rows = answer(still, "metric_usage", sessions, zone=zone, metric=metric, days=days)
        assert rows == nearly(compared(this, before))
        assert all(0 <= share <= 100 for share in rows[2][1:3] if share is not None)

    check()


def test_metric_usage_is_of_tool_calls_unless_told_otherwise(still: Connection) -> None:
    sessions = [Session(NOW - DAY, messages=3, tool_calls=5, memories=7, seconds=9)]
    assert answer(still, "metric_usage", sessions) == answer(still, "metric_usage", sessions, metric="tool_calls")


def test_metric_usage_without_sessions_is_zero_sums_and_null(still: Connection) -> None:
    rows = answer(still, "metric_usage", [])
    assert [row[1:] for row in rows] == [(0, 0, 0, None)] * 2 + [(None,) * 4] * 7


def test_metric_usage_without_messages_has_no_rate(still: Connection) -> None:
    rows = answer(still, "metric_usage", [Session(NOW - DAY, tool_calls=5)])
    assert [row[:2] for row in rows[-2:]] == [("per_session_max", 5), ("per_100_messages", None)]


def test_metric_usage_counts_a_session_on_an_edge_once_in_the_later_period(still: Connection) -> None:
    # A session that begins now is too late, and one a microsecond older than 60 days is too old.
    edges = [NOW, NOW - 30 * DAY, NOW - 60 * DAY]
    rows = answer(still, "metric_usage", [Session(edge - step) for edge in edges for step in (0 * DAY, INSTANT)])
    assert rows[0][:3] == ("sessions", 2, 2)


@every_metric
def test_metric_usage_adds_up_the_largest_numbers(metric: str, still: Connection) -> None:
    largest = Session(NOW - DAY, "ac_1", BIGGEST, BIGGEST, BIGGEST, BIGGEST)
    rows = answer(still, "metric_usage", [largest] * 3 + [Session(NOW - 31 * DAY, "ac_1", 1, 1, 1, 1)], metric=metric)
    assert rows[1][1:] == (3 * BIGGEST, 1, 3 * BIGGEST - 1, 100 * (3 * BIGGEST - 1))
    assert rows[-1][1:] == (100, 100, 0, 0)


def test_metric_usage_is_per_session_not_per_conversation(still: Connection) -> None:
    rows = answer(still, "metric_usage", [Session(NOW - DAY, "ac_1", 2, 4)] * 4)
    assert [row[1] for row in rows] == [4, 16, 100, 4, 4, 4, 4, 4, 200]


def test_unknown_metric_is_an_error_also_without_sessions(still: Connection) -> None:
    with pytest.raises(stats.UsageError, match="metric must be tool_calls, messages, memories or seconds"):
        answer(still, "metric_usage", [], metric="tokens")


# Percentiles ----------------------------------------------------------------------------------------------


def test_session_percentiles_are_the_models(still: Connection) -> None:
    @FEW
    @given(st.data(), st.sampled_from([0, 1, 30]), st.sampled_from(ZONES))
    def check(data: st.DataObject, days: int, zone: str) -> None:
        sessions = data.draw(sessions_around(days))
        counted = within(sessions, NOW - days * DAY, NOW)
        expected: Rows = []
        for metric in METRICS:
            values = [getattr(session, metric) for session in counted]
            mean = Fraction(sum(values), len(values)) if values else None
            expected.append((metric, len(values), mean, *percentiles(values), max(values, default=None)))
        rows = answer(still, "session_percentiles", sessions, zone=zone, days=days)
        assert rows == nearly(expected)

    check()


def test_session_percentiles_without_sessions_are_null(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW), Session(NOW - 30 * DAY - INSTANT)])
    assert rows == [(metric, 0, *[None] * 6) for metric in METRICS]


def test_session_percentiles_of_one_session_are_its_numbers(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW - 30 * DAY, "ac_1", 1, 2, 3, 4)])
    assert [row[1:] for row in rows] == [(1, *[n] * 6) for n in (1, 2, 3, 4)]


def test_session_percentiles_are_interpolated_between_neighbours(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW - DAY, messages=n) for n in (10, 0)])
    assert rows[0] == ("messages", 2, 5, 5, 9, Fraction("9.5"), Fraction("9.9"), 10)
