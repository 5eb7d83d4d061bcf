"""daily_usage, busiest_hours and usage_change answer what a model in plain Python does, and the facts in their headers."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg
import pytest
from conftest import ROOT, SERVER, scalar
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from runner import connect, migrate, read_query

Connection = psycopg.Connection[Any]
Rows = list[tuple[Any, ...]]

BIGGEST = 2**31 - 1
ZONES = ["UTC", "Asia/Kathmandu", "America/New_York", "America/Havana", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
INSTANTS = [
    datetime(2024, 2, 29, 12),  # a leap day
    datetime(2024, 12, 29, 18, 15),  # midnight in Kathmandu: the Monday of a week that belongs to two years
    datetime(2025, 3, 9, 5),  # Havana goes from 0:00 to 1:00: that midnight does not exist
    datetime(2025, 3, 9, 7),  # New York goes from 2:00 to 3:00
    datetime(2025, 11, 2, 5),  # Havana goes from 1:00 to 0:00: that midnight comes twice
    datetime(2025, 11, 2, 6),  # New York goes from 2:00 to 1:00
]
FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Session(NamedTuple):
    created_at: datetime
    conversation: str = "ac_1"
    messages: int = 0
    tools: int = 0
    memories: int = 0
    seconds: int = 0


# What the tests of the other queries use too --------------------------------------------------------------


@pytest.fixture(scope="module")
def usage_database() -> Iterator[Connection]:
    """One migrated database for a whole file, whose tests all roll back: a clone for each would take most of the time."""
    conninfo = make_conninfo(**{**SERVER, "dbname": "alicia_usage"})
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS alicia_usage WITH (FORCE)")
        server.execute("CREATE DATABASE alicia_usage")
        migrate(conninfo)
        with connect(conninfo) as connection:
            yield connection
        server.execute("DROP DATABASE alicia_usage WITH (FORCE)")


@pytest.fixture
def still(usage_database: Connection) -> Iterator[Connection]:
    """The empty database in a transaction that is rolled back: NOW() stands still in it."""
    with usage_database.transaction(force_rollback=True):
        yield usage_database


def now_of(db: Connection) -> datetime:
    return scalar(db, "SELECT NOW() AT TIME ZONE 'UTC'")


def load(db: Connection, sessions: Iterable[Session]) -> None:
    sessions = list(sessions)
    columns = "created_at, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds"
    with db.cursor() as cursor:
        with cursor.copy("COPY alicia_conversations (id) FROM STDIN") as copy:
            for conversation in sorted({session.conversation for session in sessions}):
                copy.write_row((conversation,))
        with cursor.copy(f"COPY alicia_session_stats ({columns}) FROM STDIN".encode()) as copy:
            for session in sessions:
                copy.write_row(session)


def ask(db: Connection, name: str, **params: object) -> Rows:
    """What a query answers, its parameters given as text; decimals as fractions."""
    query = read_query(ROOT / "queries" / f"{name}.sql")
    values = {param.name: str(params.get(param.name, param.default)) for param in query.params}
    rows = db.execute(query.statement.encode(), values).fetchall()
    return [tuple(Fraction(value) if isinstance(value, Decimal) else value for value in row) for row in rows]


def nearly(rows: Rows) -> Rows:
    """The rows of a model, to compare with: fractions as close as PostgreSQL's decimals are."""
    return [tuple(pytest.approx(v, rel=1e-12) if isinstance(v, Fraction) else v for v in row) for row in rows]


@st.composite
def histories(draw: st.DrawFn, now: datetime) -> tuple[list[Session], int]:
    """Sessions, many of them where things happen, and a window in days, which often begins there."""
    instant = draw(st.sampled_from(INSTANTS))
    days = draw(st.integers(0, 40) | st.integers(0, 2).map(lambda more: (now - instant).days + more))
    moments = (
        st.builds(lambda n, shift: now - timedelta(n * days, microseconds=shift), st.integers(0, 2), st.integers(-1, 1))
        | st.integers(0, 80 * 24 * 60).map(lambda minutes: now - timedelta(minutes=minutes))
        | st.builds(lambda n, minutes: instant + timedelta(n, minutes=minutes), st.integers(-9, 9), st.integers(-99, 99))
    )
    counts = st.integers(0, 3) | st.integers(0, 5000) | st.just(BIGGEST)
    sessions = st.builds(Session, moments, st.sampled_from(["ac_1", "ac_2", "ac_3", "ac_4"]), counts, counts, counts, counts)
    return draw(st.lists(sessions, max_size=30)), days


def holds(db: Connection, name: str, model: Callable[..., Rows], zoned: bool, weekly: bool = False) -> None:
    """A query answers what its model does, over generated histories, windows and zones of data and session."""
    now = now_of(db)

    @FEW
    @given(histories(now), st.sampled_from(ZONES if zoned else ["UTC"]), st.sampled_from(ZONES))
    def check(history: tuple[list[Session], int], tz: str, session_zone: str) -> None:
        sessions, days = history
        size = {"weeks": -(-days // 7)} if weekly else {"days": days}
        with db.transaction(force_rollback=True):
            db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [session_zone])
            load(db, sessions)
            given_tz = {"tz": tz} if zoned else {}
            assert ask(db, name, **size, **given_tz) == nearly(model(sessions, now, *size.values(), *given_tz.values()))

    check()


def local(at: datetime, tz: str) -> datetime:
    return at.replace(tzinfo=UTC).astimezone(ZoneInfo(tz))


def within(sessions: Iterable[Session], start: datetime, end: datetime) -> list[Session]:
    return [session for session in sessions if start <= session.created_at < end]


def bar(value: int, largest: int, width: int = 20) -> str | None:
    return "█" * -(-width * value // largest) if largest else None


# Models ---------------------------------------------------------------------------------------------------


def totals(sessions: list[Session]) -> tuple[int, ...]:
    """Sessions, conversations, messages, tool calls, memories, seconds."""
    _, conversations, *counts = zip(*sessions, strict=True) if sessions else [()] * 6
    return len(sessions), len(set(conversations)), *map(sum, counts)


def daily_usage(sessions: list[Session], now: datetime, days: int, tz: str) -> Rows:
    today = local(now, tz).date()
    by_day: dict[date, list[Session]] = {today - timedelta(n): [] for n in range(days + 6)}
    for session in sessions:
        by_day.setdefault(local(session.created_at, tz).date(), []).append(session)
    shown = [today - timedelta(n) for n in reversed(range(days))]
    most = max((len(by_day[day]) for day in shown), default=0)
    rows: Rows = []
    for day in shown:
        *counts, seconds = totals(by_day[day])
        week = sum(len(by_day[day - timedelta(n)]) for n in range(7))
        rows.append((day, *counts, Fraction(seconds, 60), Fraction(week, 7), bar(counts[0], most, 9)))
    return rows


def busiest_hours(sessions: list[Session], now: datetime, days: int, tz: str) -> Rows:
    starts = [local(session.created_at, tz) for session in within(sessions, now - timedelta(days), now)]
    slots = Counter((at.hour, at.weekday()) for at in starts)
    hours = Counter(at.hour for at in starts)
    most = max(hours.values(), default=0)
    return [(hour, *(slots[hour, day] for day in range(7)), hours[hour], bar(hours[hour], most)) for hour in range(24)]


def usage_change(sessions: list[Session], now: datetime, days: int) -> Rows:
    start = now - timedelta(days)
    this = totals(within(sessions, start, now))
    previous = totals(within(sessions, start - timedelta(days), start))
    metrics = ["sessions", "conversations", "messages", "tool_calls", "memories", "active_seconds"]
    return [
        (metric, new, old, new - old, Fraction(100 * (new - old), old) if old else None)
        for metric, new, old in zip(metrics, this, previous, strict=True)
    ]


def test_daily_usage_is_the_models(still: Connection) -> None:
    holds(still, "daily_usage", daily_usage, zoned=True)


def test_busiest_hours_are_the_models(still: Connection) -> None:
    holds(still, "busiest_hours", busiest_hours, zoned=True)


def test_usage_change_is_the_models(still: Connection) -> None:
    holds(still, "usage_change", usage_change, zoned=False)


# Facts ----------------------------------------------------------------------------------------------------


def days_since(db: Connection, day: date, tz: str) -> int:
    """How many days daily_usage has to show for that one to be the first."""
    return (local(now_of(db), tz).date() - day).days + 1


def hourly(start: datetime, hours: int) -> list[Session]:
    return [Session(start + timedelta(hours=n)) for n in range(hours)]


def test_without_a_session_every_day_is_there_and_empty(still: Connection) -> None:
    today = now_of(still).date()
    assert ask(still, "daily_usage") == [(today - timedelta(29 - n), *[0] * 7, None) for n in range(30)]


def test_without_a_session_every_hour_is_there_and_empty(still: Connection) -> None:
    assert ask(still, "busiest_hours") == [(hour, *[0] * 8, None) for hour in range(24)]


def test_without_a_session_every_metric_is_there_and_its_change_in_percent_is_not(still: Connection) -> None:
    rows = ask(still, "usage_change")
    assert len(rows) == 6
    assert {row[1:] for row in rows} == {(0, 0, 0, None)}


def test_a_session_over_midnight_counts_in_the_day_it_starts_in(still: Connection) -> None:
    midnight = datetime.combine(now_of(still).date(), datetime.min.time())
    load(still, [Session(midnight - timedelta(microseconds=1), seconds=7200), Session(midnight)])
    assert [row[1:7] for row in ask(still, "daily_usage", days=2)] == [(1, 1, 0, 0, 0, 120), (1, 1, 0, 0, 0, 0)]


def test_a_day_in_kathmandu_begins_at_a_quarter_past_six_in_the_evening_utc(still: Connection) -> None:
    today = local(now_of(still), "Asia/Kathmandu").date()
    midnight = datetime.combine(today, datetime.min.time()) - timedelta(hours=5, minutes=45)
    load(still, [Session(midnight - timedelta(microseconds=1)), Session(midnight), Session(midnight)])
    assert [row[:2] for row in ask(still, "daily_usage", days=2, tz="Asia/Kathmandu")] == [
        (today - timedelta(1), 1),
        (today, 2),
    ]


@pytest.mark.parametrize(
    ("tz", "day", "hours"),
    [
        ("America/New_York", date(2025, 3, 8), 24),
        ("America/New_York", date(2025, 3, 9), 23),
        ("America/New_York", date(2025, 11, 2), 25),
        ("America/Havana", date(2025, 3, 9), 23),
        ("America/Havana", date(2025, 11, 2), 25),
        ("UTC", date(2024, 2, 29), 24),
    ],
)
def test_a_day_is_as_long_as_its_zone_makes_it_as_the_first_and_in_the_mean(
    still: Connection, tz: str, day: date, hours: int
) -> None:
    load(still, hourly(datetime.combine(day, datetime.min.time()) - timedelta(days=1), 72))
    days = days_since(still, day, tz)
    week = ask(still, "daily_usage", days=days, tz=tz)[:7]
    assert week[0][:2] == (day, hours)
    assert ask(still, "daily_usage", days=days - 6, tz=tz)[0][7] == pytest.approx(Fraction(sum(row[1] for row in week), 7))


@pytest.mark.parametrize("tz", ZONES)
def test_the_mean_of_the_first_day_looks_back_six_whole_days_beyond_the_window(still: Connection, tz: str) -> None:
    start = local(now_of(still), tz).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(6)
    begin = start.astimezone(UTC).replace(tzinfo=None)
    load(still, [Session(begin - timedelta(microseconds=1)), Session(begin), Session(begin), Session(now_of(still))])
    ((_, sessions, *_, mean, _),) = ask(still, "daily_usage", days=1, tz=tz)
    assert (sessions, mean) == (1, pytest.approx(Fraction(3, 7)))


def test_any_session_draws_a_block_and_the_most_draw_them_all(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now)] * 100 + [Session(now - timedelta(1))])
    assert [row[8] for row in ask(still, "daily_usage", days=3)] == ["", "█", "█" * 9]


def test_an_hour_that_comes_twice_counts_twice(still: Connection) -> None:
    day = date(2025, 11, 2)
    load(still, hourly(datetime(2025, 11, 2, 4), 25))  # A Sunday in New York.
    rows = ask(still, "busiest_hours", days=days_since(still, day, "UTC") + 1, tz="America/New_York")
    assert [row[1:9] for row in rows] == [(0, 0, 0, 0, 0, 0, 2 if hour == 1 else 1, 2 if hour == 1 else 1) for hour in range(24)]


def test_it_is_tuesday_in_kathmandu_when_it_is_monday_evening_in_utc(still: Connection) -> None:
    monday = now_of(still).date() - timedelta(now_of(still).weekday() + 7)
    load(still, [Session(datetime.combine(monday, datetime.min.time()) + timedelta(hours=18, minutes=14 + n)) for n in (0, 1)])
    rows = ask(still, "busiest_hours", tz="Asia/Kathmandu")
    assert (rows[23][1], rows[0][2]) == (1, 1)
    assert ask(still, "busiest_hours")[18][1] == 2


def test_a_window_includes_its_start_and_excludes_its_end(still: Connection) -> None:
    now, instant = now_of(still), timedelta(microseconds=1)
    week, four_weeks = timedelta(7), timedelta(28)
    load(still, [Session(at) for at in (now - four_weeks - instant, now - four_weeks, now - instant, now, now + instant)])
    assert sum(row[8] for row in ask(still, "busiest_hours")) == 2
    assert ask(still, "usage_change", days=14)[0][:3] == ("sessions", 1, 1)
    load(still, [Session(at, "ac_2") for at in (now - week - instant, now - week, now - week)])
    assert ask(still, "usage_change")[0][:3] == ("sessions", 3, 1)


def test_a_conversation_counts_once_in_each_day_and_period_that_it_is_active_in(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now - timedelta(n, microseconds=1)) for n in (0, 0, 1, 7)])
    assert [row[1:3] for row in ask(still, "daily_usage", days=3)][1:] == [(1, 1), (2, 1)]
    assert [row[:3] for row in ask(still, "usage_change")][:2] == [("sessions", 3, 1), ("conversations", 1, 1)]


def test_counts_at_the_integer_maximum_add_up(still: Connection) -> None:
    midnight = datetime.combine(now_of(still).date(), datetime.min.time())
    load(still, [Session(midnight - timedelta(hours=1), f"ac_{n}", BIGGEST, BIGGEST, BIGGEST, BIGGEST) for n in range(3)])
    assert ask(still, "daily_usage", days=2)[0][1:7] == (3, 3, *[3 * BIGGEST] * 3, pytest.approx(Fraction(BIGGEST, 20)))
    assert [row[1] for row in ask(still, "usage_change")] == [3, 3, *[3 * BIGGEST] * 4]


@pytest.mark.parametrize("tz", ZONES)
def test_nothing_is_counted_twice_or_left_out(still: Connection, tz: str) -> None:
    sample = read_query(ROOT / "bench" / "sample.sql")
    still.execute(sample.statement.encode(), {**{param.name: param.default for param in sample.params}, "last": "500"})
    raw = still.execute(
        "SELECT COUNT(*), SUM(message_count), SUM(tool_call_count), SUM(memories_used), SUM(session_duration_seconds) "
        "FROM alicia_session_stats"
    ).fetchone()
    assert raw is not None
    days = ask(still, "daily_usage", days=400, tz=tz)
    assert [sum(row[column] for row in days) for column in (1, 3, 4, 5)] == list(raw[:4])
    assert sum(row[6] for row in days) == pytest.approx(Fraction(raw[4], 60), rel=1e-12)
    hours = ask(still, "busiest_hours", days=400, tz=tz)
    assert [sum(row[1:8]) for row in hours] == [row[8] for row in hours]
    assert sum(row[8] for row in hours) == raw[0]
    changes = {row[0]: row[1] + row[2] for row in ask(still, "usage_change", days=200)}
    assert [changes[name] for name in ("sessions", "messages", "tool_calls", "memories", "active_seconds")] == list(raw)


def test_the_change_from_nothing_has_no_percentage_and_the_change_to_nothing_is_all(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now - timedelta(1), messages=5), Session(now - timedelta(8), tools=5)])
    assert {row[0]: row[1:] for row in ask(still, "usage_change")} == {
        "sessions": (1, 1, 0, 0),
        "conversations": (1, 1, 0, 0),
        "messages": (5, 0, 5, None),
        "tool_calls": (0, 5, -5, -100),
        "memories": (0, 0, 0, None),
        "active_seconds": (0, 0, 0, None),
    }
