"""Tool usage, memory usage and session percentiles answer what a model in plain Python does, over generated sessions."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from fractions import Fraction
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_usage import BIGGEST, FEW, ZONES, Connection, Rows, Session, ask, load, nearly, within
from test_usage import still as still  # fixtures
from test_usage import usage_database as usage_database

NOW = datetime(2024, 2, 29, 12)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


def answer(
    db: Connection, name: str, sessions: Iterable[Session], now: datetime = NOW, zone: str = "UTC", **params: object
) -> Rows:
    """What a query answers when these are all the sessions, it is now (UTC), and the session's TimeZone is zone."""
    with db.transaction(force_rollback=True):
        # A clock that stands where the test needs it: NOW() finds it before the server's own.
        db.execute("CREATE SCHEMA clock")
        db.execute(f"CREATE FUNCTION clock.now() RETURNS TIMESTAMPTZ STABLE RETURN TIMESTAMPTZ '{now}+00'".encode())
        db.execute("SELECT SET_CONFIG('search_path', 'clock, pg_catalog, ' || CURRENT_SCHEMA(), TRUE)")
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        load(db, sessions)
        return ask(db, name, **params)


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


# Tools and memories ---------------------------------------------------------------------------------------

USED = {"tool_usage": ("tools", "tool_calls"), "memory_usage": ("memories", "memories")}
both = pytest.mark.parametrize("name", USED)


def usage(name: str, sessions: list[Session]) -> dict[str, Fraction | int | None]:
    field, total = USED[name]
    used = [getattr(session, field) for session in sessions]
    return {
        "sessions": len(used),
        total: sum(used),
        "sessions_with_any_pct": per_hundred(sum(number > 0 for number in used), len(used)),
        **dict(zip([f"per_session_p{n}" for n in (50, 90, 95, 99)], percentiles(used), strict=True)),
        "per_session_max": max(used, default=None),
        "per_100_messages": per_hundred(sum(used), sum(session.messages for session in sessions)),
    }


def compared(this: dict[str, Fraction | int | None], before: dict[str, Fraction | int | None]) -> Rows:
    rows: Rows = []
    for metric, now in this.items():
        then = before[metric]
        change = None if now is None or then is None else now - then
        rows.append((metric, now, then, change, None if change is None or not then else Fraction(100 * change) / then))
    return rows


@both
def test_usage_is_the_models(name: str, still: Connection) -> None:
    @FEW
    @given(st.data(), st.sampled_from([0, 1, 30]), st.sampled_from(ZONES))
    def check(data: st.DataObject, days: int, zone: str) -> None:
        sessions = data.draw(sessions_around(days))
        start = NOW - days * DAY
        this, before = usage(name, within(sessions, start, NOW)), usage(name, within(sessions, start - days * DAY, start))
        rows = answer(still, name, sessions, zone=zone, days=days)
        assert rows == nearly(compared(this, before))
        assert not any(isinstance(value, float) for row in rows for value in row)  # 2.8, not 2.8000000000000003.
        assert all(0 <= share <= 100 for share in rows[2][1:3] if share is not None)

    check()


@both
def test_usage_of_no_session_is_nothing_but_zeros_for_the_sums(name: str, still: Connection) -> None:
    rows = answer(still, name, [])
    assert [row[1:] for row in rows] == [(0, 0, 0, None)] * 2 + [(None,) * 4] * 7


@both
def test_usage_without_messages_has_no_rate(name: str, still: Connection) -> None:
    rows = answer(still, name, [Session(NOW - DAY, tools=5, memories=5)])
    assert [row[:2] for row in rows[-2:]] == [("per_session_max", 5), ("per_100_messages", None)]


@both
def test_usage_counts_a_session_on_an_edge_once_in_the_later_period(name: str, still: Connection) -> None:
    # This very instant is not past, and a microsecond more than 60 days is too long ago.
    edges = [NOW, NOW - 30 * DAY, NOW - 60 * DAY]
    rows = answer(still, name, [Session(edge - step) for edge in edges for step in (0 * DAY, INSTANT)])
    assert rows[0][:3] == ("sessions", 2, 2)


@both
def test_usage_adds_up_the_largest_numbers(name: str, still: Connection) -> None:
    largest = Session(NOW - DAY, "ac_1", BIGGEST, BIGGEST, BIGGEST)
    rows = answer(still, name, [largest] * 3 + [Session(NOW - 31 * DAY, "ac_1", 1, 1, 1)])
    assert rows[1][1:] == (3 * BIGGEST, 1, 3 * BIGGEST - 1, 100 * (3 * BIGGEST - 1))
    assert rows[-1][1:] == (100, 100, 0, 0)


@both
def test_usage_takes_each_session_of_a_conversation_for_itself(name: str, still: Connection) -> None:
    rows = answer(still, name, [Session(NOW - DAY, "ac_1", 2, 4, 4)] * 4)
    assert [row[1] for row in rows] == [4, 16, 100, 4, 4, 4, 4, 4, 200]


# Percentiles ----------------------------------------------------------------------------------------------

METRICS = {"messages": "messages", "tool_calls": "tools", "memories": "memories", "duration_seconds": "seconds"}


def test_session_percentiles_are_the_models(still: Connection) -> None:
    @FEW
    @given(st.data(), st.sampled_from([0, 1, 30]), st.sampled_from(ZONES))
    def check(data: st.DataObject, days: int, zone: str) -> None:
        sessions = data.draw(sessions_around(days))
        counted = within(sessions, NOW - days * DAY, NOW)
        expected: Rows = []
        for metric, field in METRICS.items():
            values = [getattr(session, field) for session in counted]
            mean = Fraction(sum(values), len(values)) if values else None
            expected.append((metric, len(values), mean, *percentiles(values), max(values, default=None)))
        rows = answer(still, "session_percentiles", sessions, zone=zone, days=days)
        assert rows == nearly(expected)
        assert not any(isinstance(value, float) for row in rows for value in row)  # 2.8, not 2.8000000000000003.

    check()


def test_session_percentiles_of_no_session_are_null(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW), Session(NOW - 30 * DAY - INSTANT)])
    assert rows == [(metric, 0, *[None] * 6) for metric in METRICS]


def test_session_percentiles_of_one_session_are_its_numbers(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW - 30 * DAY, "ac_1", 1, 2, 3, 4)])
    assert [row[1:] for row in rows] == [(1, *[n] * 6) for n in (1, 2, 3, 4)]


def test_session_percentiles_lie_between_neighbours_and_are_exact(still: Connection) -> None:
    rows = answer(still, "session_percentiles", [Session(NOW - DAY, messages=n) for n in (10, 0)])
    assert rows[0] == ("messages", 2, 5, 5, 9, Fraction("9.5"), Fraction("9.9"), 10)
