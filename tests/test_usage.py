"""usage_over_time, busiest_hours and usage_change answer what a model in plain Python does, and what their headers say."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg
import pytest
from conftest import SERVER, scalar
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats

Connection = psycopg.Connection[Any]
Rows = list[tuple[Any, ...]]

BIGGEST = 2**31 - 1
ZONES = ["UTC", "Asia/Kathmandu", "America/New_York", "America/Havana", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
INSTANTS = [
    datetime(2024, 2, 29, 12),  # A leap day.
    datetime(2024, 12, 29, 18, 15),  # Midnight in Kathmandu: the Monday of a week that belongs to two years.
    datetime(2025, 3, 9, 5),  # Havana goes from 0:00 to 1:00: that midnight does not exist.
    datetime(2025, 3, 9, 7),  # New York goes from 2:00 to 3:00.
    datetime(2025, 11, 2, 5),  # Havana goes from 1:00 to 0:00: that midnight comes twice.
    datetime(2025, 11, 2, 6),  # New York goes from 2:00 to 1:00.
]
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)
NOW = datetime(2024, 2, 29, 12)
FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Session(NamedTuple):
    created_at: datetime
    conversation: str = "ac_1"
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    seconds: int = 0


# Used by the tests of the other queries, too ---------------------------------------------------------------


@pytest.fixture(scope="module")
def usage_database() -> Iterator[Connection]:
    """One migrated database per file, whose tests all roll back: a clone for each would take most of the time."""
    conninfo = make_conninfo(**{**SERVER, "dbname": "alicia_usage"})
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS alicia_usage WITH (FORCE)")
        server.execute("CREATE DATABASE alicia_usage")
        stats.migrate(conninfo)
        with stats.connect(conninfo) as connection:
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


def ask(db: Connection, name: str, **params: Any) -> Rows:
    """What a query answers; decimals as fractions."""
    rows = stats.query(db, name, **params)
    return [tuple(Fraction(v) if isinstance(v, Decimal) else v for v in row.values()) for row in rows]


def answer(
    db: Connection, name: str, sessions: Iterable[Session], now: datetime = NOW, zone: str = "UTC", **params: object
) -> Rows:
    """What a query answers when these are all the sessions, it is now (UTC), and the session's TimeZone is zone."""
    with db.transaction(force_rollback=True):
        # NOW() finds this function before the server's own.
        db.execute("CREATE SCHEMA clock")
        db.execute(f"CREATE FUNCTION clock.now() RETURNS TIMESTAMPTZ STABLE RETURN TIMESTAMPTZ '{now}+00'".encode())
        db.execute("SELECT SET_CONFIG('search_path', 'clock, pg_catalog, ' || CURRENT_SCHEMA(), TRUE)")
        db.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE)", [zone])
        load(db, sessions)
        return ask(db, name, **params)


def column(db: Connection, name: str, column: str, **params: Any) -> list[Any]:
    """One column of what a query answers."""
    return [Fraction(v) if isinstance(v := row[column], Decimal) else v for row in stats.query(db, name, **params)]


def rounded(value: Fraction | None) -> Any:
    """A value of a model, to compare with a number that PostgreSQL rounded to two decimals."""
    return None if value is None else pytest.approx(value, rel=1e-12, abs=0.0050001)


def nearly(rows: Rows) -> Rows:
    """The rows of a model, to compare with what PostgreSQL rounded."""
    return [tuple(rounded(value) if isinstance(value, Fraction) else value for value in row) for row in rows]


@st.composite
def histories(draw: st.DrawFn, now: datetime) -> tuple[list[Session], int]:
    """Sessions, many of them near a special instant, and a window in days, which often begins there."""
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

MEASURES = ["sessions", "conversations", "messages", "tool_calls", "memories", "seconds"]


def totals(sessions: list[Session]) -> tuple[int, ...]:
    """The measures, in their order."""
    _, conversations, *counts = zip(*sessions, strict=True) if sessions else [()] * 6
    return len(sessions), len(set(conversations)), *map(sum, counts)


def period(at: datetime, unit: str) -> datetime:
    """The start of the hour, day, week or month of a local time."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match unit:
        case "hour":
            return at.replace(minute=0, second=0, microsecond=0)
        case "week":
            return midnight - timedelta(midnight.weekday())
        case "month":
            return midnight.replace(day=1)
        case _:
            return midnight


def usage_over_time(sessions: list[Session], now: datetime, days: int, tz: str, unit: str = "day") -> Rows:
    def start(at: datetime) -> datetime:
        return period(local(at, tz).replace(tzinfo=None, fold=0), unit)

    first = period(local(now - INSTANT, tz).replace(tzinfo=None, fold=0), "day") - timedelta(days - 1)
    # The periods that clocks have shown: by half-hours, because some zones go back or forward by one.
    step = timedelta(minutes=30 if unit == "hour" else 360)
    steps = (days + 40) * DAY // step
    by_period: dict[datetime, list[Session]] = {start(now - INSTANT - n * step): [] for n in reversed(range(steps))}
    for session in sessions:
        if session.created_at < now and start(session.created_at) in by_period:
            by_period[start(session.created_at)].append(session)
    # Clocks that go back from 3:45 to 2:45 show the hour 3, then the hour 2 again.
    last = max(start(now - INSTANT), *(each for each, those in by_period.items() if those), datetime.min)
    shown = [each for each in sorted(by_period) if period(first, unit) <= each <= last] if days else []
    most = max((len(by_period[each]) for each in shown), default=0)
    rows: Rows = []
    for each in shown:
        week = [len(those) for day, those in by_period.items() if each - timedelta(6) <= day <= each]
        is_partial = each >= start(now)
        mean = Fraction(sum(week), len(week)) if unit == "day" and not is_partial else None
        count = len(by_period[each])
        rows.append((each, *totals(by_period[each]), mean, is_partial, bar(count, most, 9)))
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
    return [
        (metric, new, old, new - old, Fraction(100 * (new - old), old) if old else None)
        for metric, new, old in zip(MEASURES, this, previous, strict=True)
    ]


def test_usage_over_time_by_day_is_the_models(still: Connection) -> None:
    holds(still, "usage_over_time", usage_over_time, zoned=True)


# Clocks go back or forward by an hour, by half an hour, or skip a day.
CHANGES = [
    ("America/New_York", datetime(2025, 3, 9, 7)),
    ("America/New_York", datetime(2025, 11, 2, 6)),
    ("America/Havana", datetime(2025, 3, 9, 5)),
    ("America/Havana", datetime(2025, 11, 2, 5)),
    ("Australia/Lord_Howe", datetime(2024, 4, 6, 15)),
    ("Australia/Lord_Howe", datetime(2024, 10, 5, 15, 30)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10)),
    ("Asia/Kathmandu", datetime(2024, 2, 28, 18, 15)),
    ("Pacific/Chatham", datetime(2024, 4, 6, 14)),
]


@pytest.mark.parametrize("unit", ["hour", "day", "week", "month"])
def test_usage_over_time_is_the_models_where_clocks_change(unit: str, still: Connection) -> None:
    @FEW
    @given(
        st.sampled_from(CHANGES),
        st.lists(st.tuples(st.integers(-400, 40), st.integers(-1, 1)), max_size=30),
        st.integers(-2, 120).map(lambda n: n * DAY / 48),
        st.sampled_from([0, 1, 2, 3, 9, 33]),
        st.sampled_from(ZONES),
    )
    def check(change: Any, drawn: Any, later: timedelta, days: int, zone: str) -> None:
        tz, at = change
        sessions = [Session(at + n * DAY / 96 + step * INSTANT, f"ac_{n % 3}", 1, 2, 3, 4) for n, step in drawn]
        found = answer(still, "usage_over_time", sessions, at + later, zone, days=days, tz=tz, unit=unit)
        assert found == nearly(usage_over_time(sessions, at + later, days, tz, unit))

    check()


def test_busiest_hours_are_the_models(still: Connection) -> None:
    holds(still, "busiest_hours", busiest_hours, zoned=True)


def test_usage_change_is_the_models(still: Connection) -> None:
    holds(still, "usage_change", usage_change, zoned=False)


# Facts ----------------------------------------------------------------------------------------------------


def days_since(db: Connection, day: date, tz: str) -> int:
    """How many days usage_over_time has to show for that one to be the first."""
    return (local(now_of(db), tz).date() - day).days + 1


def midnight(at: datetime) -> datetime:
    return datetime.combine(at.date(), time())


def hourly(start: datetime, hours: int) -> list[Session]:
    return [Session(start + timedelta(hours=n)) for n in range(hours)]


def test_without_sessions_every_day_has_a_row_of_zeros(still: Connection) -> None:
    today = midnight(now_of(still))
    expected = [(today - timedelta(29 - n), *[0] * 7, False, None) for n in range(29)]
    assert ask(still, "usage_over_time") == [*expected, (today, *[0] * 6, None, True, None)]


def test_without_sessions_every_hour_has_a_row_of_zeros(still: Connection) -> None:
    assert ask(still, "busiest_hours") == [(hour, *[0] * 8, None) for hour in range(24)]


def test_without_sessions_every_metric_is_0_and_its_change_in_percent_null(still: Connection) -> None:
    assert ask(still, "usage_change") == [(metric, 0, 0, 0, None) for metric in MEASURES]


def test_conversations_that_are_left_out_are_null_and_everything_else_the_same(still: Connection) -> None:
    load(still, [Session(now_of(still) - timedelta(n, microseconds=1), messages=n) for n in range(9)])
    days = stats.query(still, "usage_over_time")
    assert stats.query(still, "usage_over_time", conversations=False) == [{**row, "conversations": None} for row in days]
    sessions, conversations, *others = ask(still, "usage_change")
    assert ask(still, "usage_change", conversations=False) == [sessions, (conversations[0], *[None] * 4), *others]


def test_session_over_midnight_counts_in_the_day_it_starts_in(still: Connection) -> None:
    today = midnight(now_of(still))
    load(still, [Session(today - INSTANT, seconds=7200), Session(today)])
    assert [row[1:7] for row in ask(still, "usage_over_time", days=2)] == [(1, 1, 0, 0, 0, 7200), (1, 1, 0, 0, 0, 0)]


def test_day_in_kathmandu_begins_at_a_quarter_past_six_in_the_evening_utc(still: Connection) -> None:
    today = midnight(local(now_of(still), "Asia/Kathmandu").replace(tzinfo=None))
    begin = today - timedelta(hours=5, minutes=45)
    load(still, [Session(begin - INSTANT), Session(begin), Session(begin)])
    assert [row[:2] for row in ask(still, "usage_over_time", days=2, tz="Asia/Kathmandu")] == [
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
def test_day_on_which_clocks_change_has_23_or_25_hours(still: Connection, tz: str, day: date, hours: int) -> None:
    load(still, hourly(datetime.combine(day, datetime.min.time()) - timedelta(days=1), 72))
    days = days_since(still, day, tz)
    week = ask(still, "usage_over_time", days=days, tz=tz)[:7]
    assert week[0][:2] == (datetime.combine(day, time()), hours)
    mean = column(still, "usage_over_time", "sessions_7d_mean", days=days - 6, tz=tz)[0]
    assert mean == rounded(Fraction(sum(row[1] for row in week), 7))


@pytest.mark.parametrize("tz", ZONES)
def test_mean_of_the_first_day_includes_the_six_days_before_it(still: Connection, tz: str) -> None:
    today = local(now_of(still), tz).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = (today - timedelta(7)).astimezone(UTC).replace(tzinfo=None)
    load(still, [Session(begin - INSTANT), Session(begin), Session(begin), Session(today.astimezone(UTC).replace(tzinfo=None))])
    yesterday, unfinished = stats.query(still, "usage_over_time", days=2, tz=tz)
    assert (yesterday["sessions"], yesterday["sessions_7d_mean"]) == (0, Decimal("0.29"))
    assert (unfinished["sessions"], unfinished["sessions_7d_mean"]) == (1, None)


def test_bar_has_a_block_for_any_session_and_nine_for_the_busiest_day(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now - INSTANT)] * 100 + [Session(now - timedelta(1))])
    assert column(still, "usage_over_time", "bar", days=3) == ["", "█", "█" * 9]


def test_hour_that_comes_twice_counts_twice(still: Connection) -> None:
    day = date(2025, 11, 2)
    load(still, hourly(datetime(2025, 11, 2, 4), 25))  # A Sunday in New York.
    rows = ask(still, "busiest_hours", days=days_since(still, day, "UTC") + 1, tz="America/New_York")
    assert [row[1:9] for row in rows] == [(0, 0, 0, 0, 0, 0, 2 if hour == 1 else 1, 2 if hour == 1 else 1) for hour in range(24)]


def test_monday_evening_in_utc_is_tuesday_in_kathmandu(still: Connection) -> None:
    monday = now_of(still).date() - timedelta(now_of(still).weekday() + 7)
    load(still, [Session(datetime.combine(monday, datetime.min.time()) + timedelta(hours=18, minutes=14 + n)) for n in (0, 1)])
    in_kathmandu = stats.query(still, "busiest_hours", tz="Asia/Kathmandu")
    assert (in_kathmandu[23]["mon"], in_kathmandu[0]["tue"]) == (1, 1)
    assert column(still, "busiest_hours", "mon")[18] == 2


def test_window_includes_its_start_and_excludes_its_end(still: Connection) -> None:
    now, instant = now_of(still), timedelta(microseconds=1)
    week, four_weeks = timedelta(7), timedelta(28)
    load(still, [Session(at) for at in (now - four_weeks - instant, now - four_weeks, now - instant, now, now + instant)])
    assert sum(column(still, "busiest_hours", "sessions")) == 2
    assert ask(still, "usage_change", days=14)[0][:3] == ("sessions", 1, 1)
    load(still, [Session(at, "ac_2") for at in (now - week - instant, now - week, now - week)])
    assert ask(still, "usage_change")[0][:3] == ("sessions", 3, 1)


def test_conversation_counts_once_in_each_day_and_in_each_period(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now - timedelta(n, microseconds=1)) for n in (0, 0, 1, 7)])
    assert [row[1:3] for row in ask(still, "usage_over_time", days=3)][1:] == [(1, 1), (2, 1)]
    assert [row[:3] for row in ask(still, "usage_change")][:2] == [("sessions", 3, 1), ("conversations", 1, 1)]


def test_counts_at_the_integer_maximum_add_up(still: Connection) -> None:
    today = midnight(now_of(still))
    load(still, [Session(today - timedelta(hours=1), f"ac_{n}", BIGGEST, BIGGEST, BIGGEST, BIGGEST) for n in range(3)])
    assert ask(still, "usage_over_time", days=2)[0][1:7] == (3, 3, *[3 * BIGGEST] * 4)
    assert column(still, "usage_change", "this_period") == [3, 3, *[3 * BIGGEST] * 4]


@pytest.mark.parametrize("tz", ZONES)
def test_every_session_is_counted_once(still: Connection, tz: str) -> None:
    now = now_of(still)
    sessions = [Session(now - timedelta(hours=19 * n + 1), f"ac_{n % 7}", n, n % 5, n % 3, 9 * n) for n in range(490)]
    load(still, sessions)
    expected = dict(zip(MEASURES, totals(sessions), strict=True))
    del expected["conversations"]  # Those of two days are not those of both.
    days = stats.query(still, "usage_over_time", days=400, tz=tz)
    assert {measure: sum(row[measure] for row in days) for measure in expected} == expected
    hours = stats.query(still, "busiest_hours", days=400, tz=tz)
    weekdays = [day for day in hours[0] if day not in ("hour", "sessions", "bar")]
    assert [sum(row[day] for day in weekdays) for row in hours] == [row["sessions"] for row in hours]
    assert sum(row["sessions"] for row in hours) == expected["sessions"]
    changes = {row["metric"]: row["this_period"] + row["previous_period"] for row in stats.query(still, "usage_change", days=200)}
    assert {measure: changes[measure] for measure in expected} == expected


def test_change_from_nothing_has_no_percentage_and_change_to_nothing_is_100_percent(still: Connection) -> None:
    now = now_of(still)
    load(still, [Session(now - timedelta(1), messages=5), Session(now - timedelta(8), tool_calls=5)])
    assert {row[0]: row[1:] for row in ask(still, "usage_change")} == {
        "sessions": (1, 1, 0, 0),
        "conversations": (1, 1, 0, 0),
        "messages": (5, 0, 5, None),
        "tool_calls": (0, 5, -5, -100),
        "memories": (0, 0, 0, None),
        "seconds": (0, 0, 0, None),
    }


def test_week_begins_on_monday_and_month_on_its_first_day_also_before_the_window(still: Connection) -> None:
    thursday = datetime(2024, 2, 29, 12)
    sessions = [Session(thursday - n * DAY) for n in range(1, 80)]
    weeks = answer(still, "usage_over_time", sessions, thursday, unit="week", days=14)
    assert [(row[0], row[1], row[8]) for row in weeks] == [
        (datetime(2024, 2, 12), 7, False),
        (datetime(2024, 2, 19), 7, False),
        (datetime(2024, 2, 26), 3, True),
    ]
    months = answer(still, "usage_over_time", sessions, thursday, unit="month", days=30)
    assert [(row[0], row[1]) for row in months] == [(datetime(2024, 1, 1), 31), (datetime(2024, 2, 1), 28)]


def test_unfinished_day_is_in_no_mean(still: Connection) -> None:
    rows = answer(still, "usage_over_time", [Session(NOW - INSTANT)] * 70 + [Session(NOW - DAY)] * 7, days=2)
    assert [row[7:9] for row in rows] == [(1, False), (None, True)]


def test_unknown_unit_is_one_clear_error(still: Connection) -> None:
    load(still, [Session(now_of(still) - INSTANT)])
    with pytest.raises(stats.UsageError, match="usage_over_time: unit must be hour, day, week or month") as raised:
        stats.query(still, "usage_over_time", unit="year")
    assert raised.value.sqlstate == "22023"


# List of sessions -----------------------------------------------------------------------------------------


def test_list_sessions_is_the_models(still: Connection) -> None:
    counts = st.integers(0, 3)
    moments = st.integers(-2, 30).map(lambda n: NOW - n * DAY / 4) | st.sampled_from([NOW - INSTANT, NOW - 7 * DAY - INSTANT])

    @FEW
    @given(
        st.lists(st.builds(Session, moments, st.sampled_from(["ac_1", "ac_2"]), counts, counts, counts, counts), max_size=25),
        st.sampled_from(["all", "ac_1", "ac_none"]),
        counts,
        counts,
        st.sampled_from([0, 1, 5, 1000]),
        st.sampled_from(ZONES),
        st.sampled_from(ZONES),
    )
    def check(sessions: list[Session], of: str, messages: int, seconds: int, limit: int, tz: str, zone: str) -> None:
        given_values = {"conversation_id": of, "min_messages": messages, "min_seconds": seconds, "limit": limit, "tz": tz}
        found = answer(still, "list_sessions", sessions, zone=zone, **given_values)
        kept = [
            each
            for each in within(sessions, NOW - 7 * DAY, NOW)
            if of in ("all", each.conversation) and each.messages >= messages and each.seconds >= seconds
        ]
        rows = [
            (
                each.conversation,
                local(each.created_at, tz).replace(tzinfo=None),
                local(each.created_at + timedelta(seconds=each.seconds), tz).replace(tzinfo=None),
                *each[2:],
            )
            for each in kept
        ]
        assert len(found) == min(limit, len(rows))
        assert sorted((row[2], row[0]) for row in found) == sorted((row[2], row[0]) for row in found[::-1])
        assert [row[2] for row in found] == sorted((row[1] for row in rows), reverse=True)[:limit]
        assert not Counter(row[1:] for row in found) - Counter(rows)

    check()


def test_list_sessions_of_the_same_instant_are_in_the_order_of_their_ids(db: Connection, insert: Callable[..., str]) -> None:
    for n in (2, 3, 1):
        insert(id=f"ass_{n}", created_at="2025-01-01")
    rows = stats.query(db, "list_sessions", until="2025-01-02")
    assert [row["id"] for row in rows] == ["ass_3", "ass_2", "ass_1"]


def test_session_that_ends_after_clocks_went_back_ends_at_the_time_they_then_show(still: Connection) -> None:
    over_the_change = Session(datetime(2025, 11, 2, 5, 30), seconds=3600)
    (row,) = answer(still, "list_sessions", [over_the_change], datetime(2025, 11, 4), tz="America/New_York")
    assert row[2:4] == (datetime(2025, 11, 2, 1, 30), datetime(2025, 11, 2, 1, 30))


def test_list_of_the_newest_sessions_reads_no_more_than_it_lists(db: Connection) -> None:
    db.execute("INSERT INTO alicia_conversations VALUES ('ac_1')")
    db.execute(
        "INSERT INTO alicia_session_stats (conversation_id, created_at) "
        "SELECT 'ac_1', NOW()::TIMESTAMP - n * INTERVAL '10 seconds' FROM GENERATE_SERIES(1, 20000) AS n"
    )
    db.execute("ANALYZE alicia_session_stats")
    query = stats.queries()["list_sessions"]
    values = {param.name: param.default for param in query.params} | {"limit": "10"}
    lines = [line for (line,) in db.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {query.statement}".encode(), values)]
    (scan,) = (line for line in lines if "idx_session_stats_created_at" in line)
    assert float(re.findall(r"actual rows=([\d.]+)", scan)[0]) < 100
