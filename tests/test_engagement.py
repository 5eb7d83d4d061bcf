"""Session lengths, engagement and retention answer what a model in plain Python does, and what their headers say."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from fractions import Fraction

import pytest
from conftest import ROOT, conninfo_of, psql
from hypothesis import given, settings
from hypothesis import strategies as st
from test_usage import (
    BIGGEST,
    DAY,
    FEW,
    INSTANT,
    INSTANTS,
    ZONES,
    Connection,
    Rows,
    Session,
    answer,
    ask,
    bar,
    column,
    holds,
    load,
    local,
    nearly,
    now_of,
    rounded,
    within,
)
from test_usage import still as still  # fixtures
from test_usage import usage_database as usage_database

import alicia_session_stats as stats

LENGTHS = {
    0: "0 s",
    1: "under 10 s",
    10: "10 to 30 s",
    30: "30 to 60 s",
    60: "1 to 3 min",
    180: "3 to 10 min",
    600: "10 to 30 min",
    1800: "30 to 60 min",
    3600: "1 h or more",
}


# Models ---------------------------------------------------------------------------------------------------


def share(part: int, whole: int, of: int = 100) -> Fraction | None:
    return Fraction(of * part, whole) if whole else None


def percentile(values: Sequence[int], part: Fraction) -> Fraction | None:
    """Interpolated between the two neighbours of the position."""
    if not values:
        return None
    ordered, position = sorted(values), part * (len(values) - 1)
    low, high = ordered[int(position)], ordered[-int(-position // 1)]
    return low + (high - low) * (position % 1)


def session_length_distribution(sessions: list[Session], now: datetime, days: int) -> Rows:
    edges = list(LENGTHS)
    recent = within(sessions, now - timedelta(days), now)
    counts = Counter(edges[bisect_right(edges, session.seconds) - 1] for session in recent)
    most = max(counts.values(), default=0)
    return [
        (
            name,
            edge,
            counts[edge],
            share(counts[edge], len(recent)),
            share(sum(counts[shorter] for shorter in edges if shorter <= edge), len(recent)),
            bar(counts[edge], most),
        )
        for edge, name in LENGTHS.items()
    ]


def engagement(sessions: list[Session], now: datetime, days: int) -> Rows:
    def measures(of: list[Session]) -> dict[str, Fraction | int | None]:
        conversations = Counter(session.conversation for session in of)
        lengths = [session.seconds for session in of]
        return {
            "sessions": len(of),
            "conversations": len(conversations),
            "sessions_per_conversation": share(len(of), len(conversations), of=1),
            "median_seconds": percentile(lengths, Fraction(1, 2)),
            "p90_seconds": percentile(lengths, Fraction(9, 10)),
            "one_message_pct": share(sum(session.messages == 1 for session in of), len(of)),
            "came_back_pct": share(sum(count > 1 for count in conversations.values()), len(conversations)),
        }

    recent = within(sessions, now - timedelta(days), now)
    nonzero = measures([session for session in recent if session.seconds])
    return [(metric, value, nonzero[metric]) for metric, value in measures(recent).items()]


def monday(at: datetime, tz: str) -> date:
    day = local(at, tz).date()
    return day - timedelta(day.weekday())


def conversation_retention(sessions: list[Session], now: datetime, weeks: int, tz: str) -> Rows:
    active: dict[str, set[date]] = {}
    for session in sessions:
        if session.created_at < now:
            active.setdefault(session.conversation, set()).add(monday(session.created_at, tz))
    rows: Rows = []
    for age in reversed(range(weeks)):
        cohort = monday(now - INSTANT, tz) - timedelta(weeks=age)
        members = [mondays for mondays in active.values() if min(mondays) == cohort]
        came = [sum(cohort + timedelta(weeks=n) in mondays for mondays in members) for n in range(min(age, 7) + 1)]
        shares = [*(share(count, len(members)) for count in came), *[None] * (8 - len(came))]
        oldest = min((local(session.created_at, tz) for session in sessions), default=None)
        is_truncated = oldest is not None and datetime.combine(cohort, time()) < oldest.replace(tzinfo=None)
        rows.append((cohort, len(members), *shares, cohort == monday(now, tz), is_truncated))
    return rows


def test_session_length_distribution_is_the_models(still: Connection) -> None:
    holds(still, "session_length_distribution", session_length_distribution, zoned=False)


def test_engagement_is_the_models(still: Connection) -> None:
    holds(still, "engagement", engagement, zoned=False)


def test_conversation_retention_is_the_models(still: Connection) -> None:
    holds(still, "conversation_retention", conversation_retention, zoned=True, weekly=True)


# Session lengths ------------------------------------------------------------------------------------------


def test_without_sessions_every_length_has_a_row_without_a_share(still: Connection) -> None:
    assert ask(still, "session_length_distribution") == [(name, edge, 0, None, None, None) for edge, name in LENGTHS.items()]


def test_length_on_the_edge_of_two_ranges_belongs_to_the_longer_one(still: Connection) -> None:
    yesterday = now_of(still) - timedelta(1)
    edges = list(LENGTHS)
    for shift in (0, 1):  # First each edge, then the last second before each next one.
        load(still, [Session(yesterday, f"ac_{shift}", seconds=edge - shift) for edge in edges if edge >= shift])
    assert column(still, "session_length_distribution", "sessions") == [2] * 8 + [1]


def test_cumulative_share_adds_up_the_shares_and_ends_at_100(still: Connection) -> None:
    yesterday = now_of(still) - timedelta(1)
    load(still, [Session(yesterday, seconds=seconds) for seconds in (0, 5, 5, BIGGEST, BIGGEST, BIGGEST, BIGGEST)])
    rows = ask(still, "session_length_distribution")
    assert [row[3] for row in rows] == [rounded(Fraction(100 * n, 7)) for n in (1, 2, 0, 0, 0, 0, 0, 0, 4)]
    assert [row[4] for row in rows] == [rounded(Fraction(100 * n, 7)) for n in (1, 3, 3, 3, 3, 3, 3, 3, 7)]


def test_bar_has_a_block_for_any_session_and_twenty_for_the_commonest_length(still: Connection) -> None:
    yesterday = now_of(still) - timedelta(1)
    load(still, [Session(yesterday)] + [Session(yesterday, seconds=60)] * 500)
    assert column(still, "session_length_distribution", "bar")[:5] == ["█", "", "", "", "█" * 20]


@pytest.mark.parametrize(("name", "row", "column"), [("session_length_distribution", 0, 2), ("engagement", 0, 1)])
def test_window_includes_its_start_and_excludes_its_end(still: Connection, name: str, row: int, column: int) -> None:
    now = now_of(still)
    start = now - timedelta(30)
    load(still, [Session(at) for at in (start - INSTANT, start, now - INSTANT, now, now + INSTANT)])
    assert ask(still, name)[row][column] == 2


# Engagement -----------------------------------------------------------------------------------------------


def answers(db: Connection, **params: object) -> dict[str, tuple[object, ...]]:
    return {row[0]: row[1:] for row in ask(db, "engagement", **params)}


def test_without_sessions_the_counts_are_0_and_the_rest_is_null(still: Connection) -> None:
    found = answers(still)
    assert found.pop("sessions") == found.pop("conversations") == (0, 0)
    assert list(found.values()) == [(None, None)] * 5


def test_without_sessions_that_last_only_the_second_column_is_null(still: Connection) -> None:
    load(still, [Session(now_of(still) - INSTANT, messages=1)])
    assert answers(still) == {
        "sessions": (1, 0),
        "conversations": (1, 0),
        "sessions_per_conversation": (1, None),
        "median_seconds": (0, None),
        "p90_seconds": (0, None),
        "one_message_pct": (100, None),
        "came_back_pct": (0, None),
    }


def test_percentiles_are_interpolated_with_and_without_sessions_of_zero_length(still: Connection) -> None:
    load(still, [Session(now_of(still) - INSTANT, seconds=seconds) for seconds in (0, 0, 10, 20, 30, 50)])
    found = answers(still)
    assert found["median_seconds"] == (15, 25)
    assert found["p90_seconds"] == (40, 44)


def test_bounce_is_a_session_with_one_message_not_with_none_or_two(still: Connection) -> None:
    load(still, [Session(now_of(still) - INSTANT, messages=messages, seconds=9 * (messages == 2)) for messages in (0, 1, 2, 1)])
    assert answers(still)["one_message_pct"] == (50, 0)


def test_conversation_with_two_sessions_in_the_window_came_back(still: Connection) -> None:
    now = now_of(still) - INSTANT
    load(
        still,
        [
            Session(now, "ac_tie"),
            Session(now, "ac_tie"),
            Session(now, "ac_once"),
            Session(now, "ac_old"),
            Session(datetime(2020, 1, 1), "ac_old"),
        ],
    )
    assert answers(still)["came_back_pct"] == (rounded(Fraction(100, 3)), None)
    assert answers(still)["sessions_per_conversation"] == (rounded(Fraction(4, 3)), None)


def test_lengths_at_the_integer_maximum_are_exact(still: Connection) -> None:
    load(still, [Session(now_of(still) - INSTANT, f"ac_{n}", 1, seconds=BIGGEST - n) for n in (0, 1)])
    assert answers(still)["median_seconds"] == (BIGGEST - Fraction(1, 2), BIGGEST - Fraction(1, 2))


# Retention ------------------------------------------------------------------------------------------------


def noon(db: Connection, weeks_ago: int, day: int = 0) -> datetime:
    """Noon of a day (0 Monday) of the week so many weeks ago, UTC."""
    return datetime.combine(monday(now_of(db), "UTC"), datetime.min.time()) + timedelta(day, weeks=-weeks_ago, hours=12)


def test_without_sessions_every_cohort_has_a_row_without_a_share(still: Connection) -> None:
    this_week = monday(now_of(still), "UTC")
    expected = [(this_week - timedelta(weeks=7 - n), 0, *[None] * 8, n == 7, False) for n in range(8)]
    assert ask(still, "conversation_retention") == expected


def test_week_without_a_return_is_0_and_a_week_to_come_is_null(still: Connection) -> None:
    load(still, [Session(noon(still, 3)), Session(noon(still, 3, 6)), Session(noon(still, 1)), Session(noon(still, 3), "ac_2")])
    (row,) = (row for row in ask(still, "conversation_retention") if row[1])
    assert row == (monday(noon(still, 3), "UTC"), 2, 100, 0, 50, 0, None, None, None, None, False, True)


def test_conversation_belongs_to_the_week_of_its_first_session_ever(still: Connection) -> None:
    load(
        still,
        [Session(noon(still, age)) for age in (0, 1, 7, 8, 9)]
        + [Session(datetime(2020, 1, 1), "ac_2"), Session(noon(still, 3), "ac_2")],
    )
    assert set(column(still, "conversation_retention", "conversations")) == {0}
    assert column(still, "conversation_retention", "conversations", weeks=10) == [1] + [0] * 9


def test_conversation_active_every_week_is_retained_in_every_week(still: Connection) -> None:
    load(still, [Session(noon(still, age)) for age in range(10)] * 2)
    assert ask(still, "conversation_retention", weeks=10)[0][1:] == (1, *[100] * 8, False, True)


def test_week_begins_on_monday_at_midnight_in_the_time_zone(still: Connection) -> None:
    midnight = datetime.combine(monday(noon(still, 2), "UTC"), datetime.min.time()) - timedelta(hours=5, minutes=45)
    load(still, [Session(midnight - INSTANT, "ac_sunday"), Session(midnight, "ac_monday")])
    sizes = {row[0]: row[1] for row in ask(still, "conversation_retention", tz="Asia/Kathmandu") if row[1]}
    assert sizes == {monday(noon(still, 3), "UTC"): 1, monday(noon(still, 2), "UTC"): 1}
    assert [size for size in column(still, "conversation_retention", "conversations") if size] == [2]


def test_cohorts_that_begin_before_the_oldest_kept_session_are_marked(still: Connection) -> None:
    load(still, [Session(noon(still, age), f"ac_{age}") for age in range(7)] + [Session(noon(still, 1), "ac_5")])
    assert column(still, "conversation_retention", "is_truncated") == [True, True] + [False] * 6
    stats.query(still, "delete_sessions_before", days=(now_of(still) - noon(still, 3, -1)).days)
    # What is left of the conversation that began before looks like a new one.
    assert column(still, "conversation_retention", "conversations") == [0, 0, 0, 0, 1, 1, 2, 1]
    assert column(still, "conversation_retention", "is_truncated") == [True] * 5 + [False] * 3


@pytest.mark.parametrize("tz", ZONES)
def test_every_conversation_is_in_one_cohort(still: Connection, tz: str) -> None:
    now = now_of(still)
    load(still, [Session(now - timedelta(hours=5 * n), f"ac_{n % 97}") for n in range(400)])
    rows = ask(still, "conversation_retention", weeks=14, tz=tz)
    assert sum(row[1] for row in rows) == 97
    assert all(share is None or 0 <= share <= 100 for row in rows for share in row[2:10])


# Active users ---------------------------------------------------------------------------------------------


def active_users(sessions: list[Session], now: datetime, days: int, tz: str, users: dict[str, str]) -> Rows:
    active: dict[date, set[str]] = {}
    for session in sessions:
        if session.created_at < now and session.conversation in users:
            active.setdefault(local(session.created_at, tz).date(), set()).add(users[session.conversation])
    last = local(now - INSTANT, tz).date()

    def in_days(day: date, count: int) -> set[str]:
        return set[str]().union(*(active.get(day - timedelta(n), set()) for n in range(count)))

    rows: Rows = []
    for day in (last - timedelta(n) for n in reversed(range(days))):
        daily, weekly, monthly = (in_days(day, count) for count in (1, 7, 30))
        before = set[str]().union(*(those for other, those in active.items() if other < day))
        is_partial = day == local(now, tz).date()
        stickiness = None if is_partial else share(len(daily), len(monthly))
        counts = (len(daily), len(weekly), len(monthly), len(daily - before), len(daily & before))
        rows.append((day, *counts, stickiness, is_partial))
    return rows


def test_active_users_are_the_models(still: Connection) -> None:
    users = {"ac_1": "1", "ac_2": "1", "ac_3": "2", "ac_4": "3"}  # Nobody has ac_5.
    still.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id INTEGER")
    ages = st.integers(0, 8) | st.integers(28, 42) | st.integers(0, 75) | st.just(200)

    @settings(FEW, max_examples=100)
    @given(
        st.lists(st.tuples(ages, st.integers(0, 95), st.integers(1, 5)), max_size=30),
        st.sampled_from(INSTANTS),
        st.sampled_from([0, 1, 8, 31]),
        st.sampled_from(ZONES),
        st.sampled_from(ZONES),
    )
    def check(drawn: list[tuple[int, int, int]], now: datetime, days: int, tz: str, zone: str) -> None:
        sessions = [Session(now + timedelta(hours=9) - DAY * n - DAY * m / 96, f"ac_{of}") for n, m, of in drawn]
        with still.transaction(force_rollback=True):
            # Conversations are loaded without a user.
            still.execute("""
                CREATE FUNCTION set_user() RETURNS TRIGGER LANGUAGE plpgsql AS $$
                BEGIN
                    NEW.user_id := (ARRAY[1, 1, 2, 3])[RIGHT(NEW.id, 1)::INTEGER];
                    RETURN NEW;
                END $$;
                CREATE TRIGGER set_user BEFORE INSERT ON alicia_conversations FOR EACH ROW EXECUTE FUNCTION set_user();
            """)
            found = answer(still, "active_users", sessions, now, zone, days=days, tz=tz)
        assert found == nearly(active_users(sessions, now, days, tz, users))

    check()


def test_application_without_users_gets_one_clear_line(db: Connection) -> None:
    message = "there are no users: alicia_conversations has no column user_id"
    with pytest.raises(stats.SessionStatsError, match=f"active_users: {message}$"):
        stats.query(db, "active_users")
    done = psql(conninfo_of(db), "-f", ROOT / "queries" / "active_users.sql")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[0].endswith(f"ERROR:  {message}")
