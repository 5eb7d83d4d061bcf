"""Peak concurrency and growth forecast answer what models in plain Python do; table health what the catalog holds."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import conninfo_of, scalar
from hypothesis import given, settings
from hypothesis import strategies as st
from test_usage import BIGGEST, DAY, FEW, INSTANT, ZONES, Connection, Rows, Session, answer, bar, local
from test_usage import still as still  # fixtures
from test_usage import usage_database as usage_database

import alicia_session_stats as stats

HOUR = timedelta(hours=1)

# Peak concurrency -----------------------------------------------------------------------------------------

# A zone, and an hour (UTC) in which something is unusual there.
UNUSUAL = [
    ("UTC", datetime(2024, 2, 29)),  # a leap day begins
    ("Asia/Kathmandu", datetime(2024, 2, 29, 18)),  # its midnight is at 18:15
    ("Europe/Berlin", datetime(2024, 3, 31, 1)),  # from 2:00 to 3:00
    ("Europe/Berlin", datetime(2024, 10, 27, 1)),  # from 3:00 to 2:00
    ("Australia/Lord_Howe", datetime(2024, 4, 6, 15)),  # from 2:00 to 1:30
    ("America/Havana", datetime(2024, 3, 10, 5)),  # from 0:00 to 1:00: the day begins at 1:00
    ("America/Havana", datetime(2024, 11, 3, 5)),  # from 1:00 to 0:00: midnight comes twice
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2)),  # from 0:00 to 23:00 of the day before
    ("Pacific/Apia", datetime(2011, 12, 30, 10)),  # a whole day is left out
]


def peak_concurrency(sessions: Sequence[Session], now: datetime, days: int, tz: str) -> Rows:
    lives = [(each.created_at, each.created_at + timedelta(seconds=each.seconds)) for each in sessions if each.created_at < now]

    def open_at(at: datetime) -> int:
        return sum(start <= at < end for start, end in lives)

    peaks: list[tuple[date, int, datetime | None]] = []
    for n in reversed(range(days)):
        day = local(now - INSTANT, tz).date() - timedelta(n)
        begins = datetime.combine(day, time(), ZoneInfo(tz)).astimezone(UTC).replace(tzinfo=None)
        # The number only grows where a session starts.
        moments = sorted(at for at in {begins, *(start for start, _ in lives)} if local(at, tz).date() == day)
        first = max(moments, key=open_at, default=begins)
        peak = open_at(first) if moments else 0
        peaks.append((day, peak, local(first, tz).replace(tzinfo=None) if peak else None))
    most = max((peak for _, peak, _ in peaks), default=0)
    today = local(now, tz).date()
    return [(*row, row[0] == today, bar(row[1], most)) for row in peaks]


def test_peak_concurrency_is_the_models(still: Connection) -> None:
    # Quarters of an hour make for ties, and for sessions that begin and end with the day.
    quarters = st.integers(-120, 120).map(lambda n: n * HOUR / 4)
    steps = st.sampled_from([0, 0, 0, -1, 1]).map(lambda n: n * INSTANT)
    lengths = st.integers(0, 8).map(lambda n: n * 900) | st.integers(0, 4 * 86400) | st.just(BIGGEST)

    @settings(FEW, max_examples=50)
    @given(
        st.sampled_from(UNUSUAL),
        st.lists(st.tuples(quarters, steps, lengths), min_size=5, max_size=25),
        st.integers(1, 4),
        st.integers(-2, 30).map(lambda n: n * HOUR),
        st.sampled_from(ZONES),
    )
    def check(unusual: Any, drawn: Any, days: int, later: timedelta, zone: str) -> None:
        tz, hour = unusual
        sessions = [Session(hour + quarter + step, seconds=seconds) for quarter, step, seconds in drawn]
        rows = answer(still, "peak_concurrency", sessions, hour + later, zone, days=days, tz=tz)
        assert rows == peak_concurrency(sessions, hour + later, days, tz)

    check()


def peaks(db: Connection, *sessions: tuple[datetime, timedelta], days: int = 2, tz: str = "UTC") -> list[Any]:
    """Peak and time of each day up to 3 November 2024."""
    lives = [Session(start, seconds=round(length.total_seconds())) for start, length in sessions]
    return [row[1:3] for row in answer(db, "peak_concurrency", lives, datetime(2024, 11, 3, 20), days=days, tz=tz)]


def at(day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(2024, 11, day, hour, minute)


NONE = (0, None)


def test_without_sessions_every_day_has_a_peak_of_0(still: Connection) -> None:
    rows = answer(still, "peak_concurrency", [], at(3, 9))
    assert [row[0] for row in rows] == [date(2024, 10, 21) + timedelta(n) for n in range(14)]
    assert [row[1:] for row in rows] == [(0, None, n == 13, None) for n in range(14)]
    assert answer(still, "peak_concurrency", [Session(at(3), seconds=9)], at(3), days=0) == []


def test_session_that_ends_as_another_starts_does_not_overlap_it(still: Connection) -> None:
    assert peaks(still, (at(3, 1), HOUR), (at(3, 2), HOUR)) == [NONE, (1, at(3, 1))]


def test_session_of_zero_length_is_never_open(still: Connection) -> None:
    assert peaks(still, (at(3, 1), 0 * HOUR), (at(3, 1), 0 * HOUR)) == [NONE, NONE]
    assert peaks(still, (at(3, 1), 0 * HOUR), (at(3, 0, 30), HOUR)) == [NONE, (1, at(3, 0, 30))]


def test_session_over_midnight_counts_in_both_days(still: Connection) -> None:
    assert peaks(still, (at(2, 23), 2 * HOUR)) == [(1, at(2, 23)), (1, at(3))]


def test_session_that_ends_at_midnight_does_not_count_in_the_next_day(still: Connection) -> None:
    assert peaks(still, (at(2, 23), HOUR)) == [(1, at(2, 23)), NONE]


def test_session_that_began_before_the_window_counts(still: Connection) -> None:
    assert peaks(still, (datetime(1970, 1, 1), timedelta(seconds=BIGGEST))) == [(1, at(2)), (1, at(3))]
    assert peaks(still, (at(1, 23), HOUR + timedelta(seconds=1)), (at(1, 22), HOUR)) == [(1, at(2)), NONE]


def test_peak_at_is_the_first_of_equal_peaks(still: Connection) -> None:
    lives = [(at(3, hour, minute), HOUR) for hour in (4, 6) for minute in (0, 10)]
    assert peaks(still, *lives) == [NONE, (2, at(3, 4, 10))]


def test_midnight_that_comes_twice_begins_its_day_once(still: Connection) -> None:
    # Open from 23:50 to 0:10 on Havana's clocks, which then show 0:10 again an hour later.
    over_midnight = (at(3, 3, 50), HOUR / 3)
    assert peaks(still, over_midnight, tz="America/Havana") == [(1, at(2, 23, 50)), (1, at(3))]
    # 0:30 before the change and 0:30 after it are two instants, an hour apart.
    assert peaks(still, (at(3, 4, 30), HOUR), (at(3, 5, 30), HOUR), tz="America/Havana") == [NONE, (1, at(3, 0, 30))]


# Growth forecast ------------------------------------------------------------------------------------------

Matrix = list[list[Fraction]]


def inverse(matrix: Matrix) -> Matrix:
    """By Gauss and Jordan."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(k for k in range(i, size) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in set(range(size)) - {i}:
            rows[k] = [value - rows[k][i] * other for value, other in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]


def dot(left: Sequence[Fraction], right: Sequence[Fraction]) -> Fraction:
    return sum(map(lambda a, b: a * b, left, right), Fraction())


@cache
def student(df: int) -> float:
    """The 97.5 percent quantile of Student's t: bisection over Simpson's rule over the density."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)

    def below(t: float, steps: int = 400) -> float:
        heights = [scale * (1 + (t * i / steps) ** 2 / df) ** (-(df + 1) / 2) for i in range(steps + 1)]
        return 0.5 + t / steps / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]))

    low, high = 1.9, 2.2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return low


def regressors(day: date) -> list[Fraction]:
    """The day itself, and a constant for each weekday."""
    return [Fraction(day.toordinal()), *(Fraction(day.weekday() == n) for n in range(7))]


def fitted(days: list[date], values: list[int], ahead: list[date]) -> Iterator[tuple[Any, ...]]:
    """Expectation, interval and R squared for each day ahead, by the normal equations."""
    design = [regressors(day) for day in days]
    columns = list(zip(*design, strict=True))
    squares = inverse([[dot(left, right) for right in columns] for left in columns])
    products = [dot(column, [Fraction(value) for value in values]) for column in columns]
    coefficients = [dot(row, products) for row in squares]
    unexplained = sum((value - dot(coefficients, row)) ** 2 for row, value in zip(design, values, strict=True))
    total = sum((value - Fraction(sum(values), len(values))) ** 2 for value in values)
    r2 = pytest.approx(float(1 - unexplained / total), abs=0.00051) if total else None
    df = len(days) - 8
    for day in ahead:
        row = regressors(day)
        expected = dot(coefficients, row)
        leverage = dot(row, [dot(line, row) for line in squares])
        margin = student(df) * math.sqrt(unexplained / df * (1 + leverage))
        # The forecast is rounded to one decimal, and the expansion for Student's t is close to 1e-6.
        close = 0.051 + 1e-6 * (abs(expected) + margin)
        yield (*(pytest.approx(max(0, float(expected) + sign * margin), abs=close) for sign in (0, -1, 1)), r2)


def growth_forecast(sessions: Sequence[Session], now: datetime, days: int, horizon: int) -> Rows:
    today = now.date()
    first = min((session.created_at.date() for session in sessions), default=today)
    known = [today - timedelta(n) for n in range(1, days + 1) if today - timedelta(n) > first]
    ahead = [today + timedelta(n) for n in range(1, horizon + 1)]
    if len(known) < 28:
        return [(day, *[None] * 8, len(known)) for day in ahead]
    counts, messages = Counter[date](), Counter[date]()
    for session in sessions:
        counts[session.created_at.date()] += 1
        messages[session.created_at.date()] += session.messages
    forecasts = [fitted(known, [values[day] for day in known], ahead) for values in (counts, messages)]
    return [(day, *s, *m, len(known)) for day, s, m in zip(ahead, *forecasts, strict=True)]


def test_growth_forecast_is_the_least_squares_of_the_model(still: Connection) -> None:
    times = st.sampled_from([0 * HOUR, 9 * HOUR, DAY - INSTANT])
    messages = st.integers(0, 9) | st.integers(0, 5000) | st.just(BIGGEST)
    one_day = st.lists(st.tuples(times, messages), max_size=3)

    @FEW
    @given(
        st.lists(one_day, min_size=27, max_size=60),
        st.sampled_from([28, 29, 44, 90]),
        st.sampled_from([1, 9]),
        times,
        st.sampled_from(ZONES),
    )
    def check(drawn: Any, days: int, horizon: int, hour: timedelta, zone: str) -> None:
        today = datetime(2024, 2, 25)  # The leap day is ahead.
        sessions = [
            Session(today + day * DAY + time_of_day, messages=number)
            for day, those in enumerate(reversed(drawn), 2 - len(drawn))  # Up to tomorrow.
            for time_of_day, number in those
        ]
        found = answer(still, "growth_forecast", sessions, today + hour, zone, days=days, horizon=horizon)
        assert found == growth_forecast(sessions, today + hour, days, horizon)

    check()


def every_day(today: datetime, *messages: int) -> list[Session]:
    """A session at noon of every day up to yesterday, and one on the day before them, which is not whole."""
    return [Session(today - (n + 0.5) * DAY, messages=number) for n, number in enumerate([*reversed(messages), 1])]


MONDAY = datetime(2024, 2, 26)


def test_history_of_27_days_is_too_short(still: Connection) -> None:
    rows = answer(still, "growth_forecast", every_day(MONDAY, *[1] * 27), MONDAY)
    assert rows == [(MONDAY.date() + timedelta(n), *[None] * 8, 27) for n in range(1, 31)]


def test_history_of_28_days_is_enough(still: Connection) -> None:
    rows = answer(still, "growth_forecast", every_day(MONDAY, *range(28)), MONDAY, horizon=1)
    assert [(row[5], row[8], row[9]) for row in rows] == [(29, 1, 28)]


def test_window_of_27_days_is_too_short_for_any_history(still: Connection) -> None:
    rows = answer(still, "growth_forecast", every_day(MONDAY, *[1] * 60), MONDAY, days=27, horizon=1)
    assert rows == [(date(2024, 2, 27), *[None] * 8, 27)]


def test_history_without_a_complete_day_is_0_days(still: Connection) -> None:
    for sessions in ([], [Session(MONDAY + HOUR)], [Session(MONDAY + 3 * DAY)]):
        rows = answer(still, "growth_forecast", sessions, MONDAY + 2 * HOUR, horizon=1)
        assert rows == [(date(2024, 2, 27), *[None] * 8, 0)]


def test_line_with_a_weekday_pattern_is_forecast_exactly(still: Connection) -> None:
    def messages(day: datetime) -> int:
        return 3 * (day - MONDAY).days + [500, 510, 520, 530, 540, 400, 405][day.weekday()]

    days = [MONDAY + n * DAY for n in range(-56, 0)]
    rows = answer(still, "growth_forecast", every_day(MONDAY, *map(messages, days)), MONDAY, horizon=10)
    for n, (day, _, _, _, _, forecast, low, high, r2, _) in enumerate(rows, 1):
        assert day == (MONDAY + n * DAY).date()
        assert [forecast, low, high, r2] == [messages(MONDAY + n * DAY)] * 3 + [1]


def test_history_of_equal_days_has_no_r2(still: Connection) -> None:
    rows = answer(still, "growth_forecast", every_day(MONDAY, *[7] * 40), MONDAY, horizon=3)
    assert {row[1:] for row in rows} == {(1, 1, 1, None, 7, 7, 7, None, 40)}


def test_model_that_explains_nothing_has_an_r2_of_0(still: Connection) -> None:
    weeks = [0, 0, 0, 1, 0, 0, 0]  # No trend, no weekday pattern; and sevenths, which are rounded.
    rows = answer(still, "growth_forecast", every_day(MONDAY, *[week for week in weeks for _ in range(7)]), MONDAY, horizon=1)
    assert rows[0][8] == 0


def test_forecast_of_a_decline_stops_at_zero(still: Connection) -> None:
    rows = answer(still, "growth_forecast", every_day(MONDAY, *[1000 - 30 * n + n % 3 for n in range(33)]), MONDAY)
    assert min(min(row[5:8]) for row in rows) == max(row[5] for row in rows[5:]) == 0
    assert all(0 <= row[6] <= row[5] <= row[7] for row in rows)


def test_today_and_the_first_sessions_own_day_are_left_out(still: Connection) -> None:
    whole = every_day(MONDAY, *range(30))
    more = [*whole, Session(MONDAY + HOUR, messages=BIGGEST), Session(whole[-1].created_at + HOUR, messages=BIGGEST)]
    expected = answer(still, "growth_forecast", whole, MONDAY + 2 * HOUR)
    assert answer(still, "growth_forecast", more, MONDAY + 2 * HOUR) == expected


# Table health ---------------------------------------------------------------------------------------------

INDEXES = ["alicia_session_stats_pkey", "idx_session_stats_conversation", "idx_session_stats_created_at"]
HEALTH = ["object", "size_bytes", "rows", "dead_rows", "hot_pct", "index_scans", "vacuum_age_hours", "analyze_age_hours"]
HEALTH += ["stale_summaries"]


def health(db: Connection) -> dict[str, dict[str, Any]]:
    """The rows by object, after everything done so far has reached the server's statistics."""
    db.execute("SELECT pg_stat_force_next_flush()")
    return {row["object"]: row for row in stats.query(conninfo_of(db), "table_health")}


def test_table_health_lists_the_table_and_then_its_indexes(db: Connection) -> None:
    db.execute("CREATE INDEX added_by_the_application ON alicia_session_stats (updated_at)")
    rows = health(db)
    assert list(rows) == ["alicia_session_stats", "added_by_the_application", *INDEXES]
    assert all(list(row) == HEALTH for row in rows.values())


def test_the_sizes_add_up_to_the_whole(db: Connection, insert: Callable[..., str]) -> None:
    insert()
    whole = scalar(db, "SELECT PG_TOTAL_RELATION_SIZE('alicia_session_stats')")
    assert sum(row["size_bytes"] for row in health(db).values()) == whole


def test_estimates_and_ages_are_null_before_the_first_analyze(db: Connection) -> None:
    assert [list(row.values())[2:] for row in health(db).values()] == [
        [None, 0, None, 0, None, None, 0],
        *[[None, None, None, 0, None, None, None]] * 3,
    ]


def test_days_wait_for_summarize_days_until_it_has_run_and_again_when_a_session_changes(
    db: Connection, insert: Callable[..., str]
) -> None:
    for days in (1, 2):
        insert(created_at=datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days))
    assert health(db)["alicia_session_stats"]["stale_summaries"] == 2
    stats.query(db, "summarize_days")
    assert health(db)["alicia_session_stats"]["stale_summaries"] == 0
    db.execute("DELETE FROM alicia_session_stats WHERE created_at = (SELECT MIN(created_at) FROM alicia_session_stats)")
    assert health(db)["alicia_session_stats"]["stale_summaries"] == 1


def test_analyze_counts_rows_and_index_entries_and_sets_its_age(db: Connection, insert: Callable[..., str]) -> None:
    for _ in range(5):
        insert()
    db.execute("ANALYZE alicia_session_stats")
    rows = health(db)
    assert [row["rows"] for row in rows.values()] == [5] * 4
    assert [row["analyze_age_hours"] for row in rows.values()] == [0, None, None, None]
    assert [row["vacuum_age_hours"] for row in rows.values()] == [None] * 4


def test_dead_rows_count_until_vacuum(db: Connection, insert: Callable[..., str]) -> None:
    for _ in range(5):
        insert()
    db.execute("DELETE FROM alicia_session_stats WHERE id IN (SELECT id FROM alicia_session_stats LIMIT 2)")
    assert [row["dead_rows"] for row in health(db).values()] == [2, None, None, None]
    db.execute("VACUUM alicia_session_stats")
    table = health(db)["alicia_session_stats"]
    assert (table["rows"], table["dead_rows"], table["vacuum_age_hours"], table["analyze_age_hours"]) == (3, 0, 0, None)


def test_hot_updates_are_those_that_change_no_indexed_column(db: Connection, insert: Callable[..., str]) -> None:
    insert()
    for change in ("message_count = 1", "message_count = 2", "message_count = 3", "created_at = '2024-02-29'"):
        db.execute(f"UPDATE alicia_session_stats SET {change}".encode())
    assert [row["hot_pct"] for row in health(db).values()] == [75, None, None, None]


def test_scans_are_counted_for_each_index_and_together_for_the_table(db: Connection) -> None:
    db.execute("SET enable_seqscan = off")
    for _ in range(2):
        db.execute("SELECT FROM alicia_session_stats WHERE conversation_id = 'ac_1'")
    db.execute("SELECT FROM alicia_session_stats WHERE created_at < '2024-02-29'")
    assert [row["index_scans"] for row in health(db).values()] == [3, 0, 2, 1]


def test_select_on_the_table_is_enough_for_its_health(db: Connection) -> None:
    statement = stats.queries()["table_health"].statement.encode()
    expected = db.execute(statement).fetchall()
    with db.transaction(force_rollback=True):  # A role outlives its database.
        db.execute("CREATE ROLE alicia_health_reader")
        db.execute("GRANT SELECT ON alicia_session_stats TO alicia_health_reader")
        db.execute("SET LOCAL ROLE alicia_health_reader")
        assert db.execute(statement).fetchall() == expected


def test_database_without_the_table_gets_the_advice_to_migrate(bare: Connection) -> None:
    with pytest.raises(stats.SessionStatsError, match=r'"alicia_session_stats" does not exist.* run migrate'):
        stats.query(bare, "table_health")
