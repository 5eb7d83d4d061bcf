"""Every query with a window answers for a window in the past as it would have answered then."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from conftest import conninfo_of, psql, scalar
from hypothesis import given
from hypothesis import strategies as st
from test_usage import BIGGEST, DAY, FEW, INSTANT, INSTANTS, ZONES, Connection, Rows, Session, answer, load
from test_usage import still as still  # fixtures
from test_usage import usage_database as usage_database

import alicia_session_stats as stats

QUERIES = stats.queries()
# verify_rollup has no row in any window here.
WINDOWED = [name for name, query in QUERIES.items() if "until" in [p.name for p in query.params] and name != "verify_rollup"]
ZONED = [name for name, query in QUERIES.items() if "tz" in [param.name for param in query.params]]
SIZES = {"days", "weeks"}
OPEN = {"average_session_metrics"}  # Its default window has no end.

every_windowed = pytest.mark.parametrize("name", WINDOWED)
every_zoned = pytest.mark.parametrize("name", ZONED)


@pytest.fixture
def users(still: Connection) -> Connection:
    """The empty database of an application with a user for each conversation."""
    still.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT GENERATED ALWAYS AS (id) STORED")
    return still


def without_ids(name: str, rows: Rows) -> Rows:
    """The rows, without the ids that the server draws."""
    return sorted(row[1:] for row in rows) if name == "list_sessions" else rows


def test_every_query_with_a_window_takes_its_end() -> None:
    sized = [name for name, query in QUERIES.items() if not query.writes and SIZES & {param.name for param in query.params}]
    assert sorted(sized) == sorted([*WINDOWED, "verify_rollup", "sessions_before"])  # The last counts all before an instant.


@every_windowed
def test_window_in_the_past_is_answered_as_it_was_then(name: str, users: Connection) -> None:
    counts = st.integers(0, 3) | st.just(BIGGEST)

    @FEW
    @given(st.data(), st.sampled_from(INSTANTS), st.timedeltas(0 * DAY, 40 * DAY), st.sampled_from(ZONES))
    def check(data: st.DataObject, until: datetime, later: timedelta, zone: str) -> None:
        moments = (st.integers(-2, 2).map(lambda n: n * INSTANT) | st.timedeltas(-50 * DAY, 2 * DAY)).map(lambda age: until + age)
        sessions = st.builds(Session, moments, st.sampled_from(["ac_1", "ac_2"]), counts, counts, counts, counts)
        drawn = data.draw(st.lists(sessions, max_size=25))
        tz = {"tz": data.draw(st.sampled_from(ZONES))} if name in ZONED else {}
        size = {"weeks" if name == "conversation_retention" else "days": data.draw(st.integers(0, 30))}
        known = [each for each in drawn if each.created_at < until] if name in OPEN else drawn
        then = answer(users, name, known, until, zone, **tz, **size)
        now = answer(users, name, drawn, until + later, zone, until=until.replace(tzinfo=UTC), **tz, **size)
        assert without_ids(name, now) == without_ids(name, then)

    check()


@every_windowed
def test_end_that_is_still_to_come_adds_nothing(name: str, users: Connection) -> None:
    now = datetime(2024, 2, 28, 12)  # A Wednesday; the week and the day are not over.
    until = datetime(2024, 3, 4)
    history = [Session(now - n * DAY / 3 - INSTANT, f"ac_{n // 20}", n % 4, 1, 1, 60 * n) for n in range(300)]
    to_come = [Session(now), Session(now + DAY / 4), Session(now + 2 * DAY), Session(now + 9 * DAY)]
    now_and_later = without_ids(name, answer(users, name, [*history, *to_come], now, until=until))
    assert now_and_later == without_ids(name, answer(users, name, history, now, until=until))
    assert now_and_later != without_ids(name, answer(users, name, [], now, until=until))


@pytest.mark.parametrize(
    "until",
    [
        "2024-02-29 12:00",
        "2024-02-29T12:00:00Z",
        "2024-02-29 12:00:00+00",
        "2024-02-29 17:45+05:45",
        "2024-02-29 13:00 Europe/Berlin",
        "Feb 29 2024 7:00 EST",
    ],
)
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("style", ["ISO, MDY", "German, DMY", "SQL, YMD"])
def test_end_is_utc_unless_it_carries_an_offset(until: str, zone: str, style: str, still: Connection) -> None:
    still.execute("SELECT SET_CONFIG('TimeZone', %s, TRUE), SET_CONFIG('DateStyle', %s, TRUE)", [zone, style])
    noon = datetime(2024, 2, 29, 12)
    assert scalar(still, "SELECT alicia_session_stats_utc(%s)", until) == noon
    load(still, [Session(noon - INSTANT), Session(noon)])
    [row] = stats.query(still, "usage_change", until=until, conversations=False)[:1]
    assert (row["this_period"], row["previous_period"]) == (1, 0)


@pytest.mark.parametrize(
    ("until", "utc"),
    [
        ("2024-03-31", datetime(2024, 3, 30, 23)),
        ("2024-04-01", datetime(2024, 3, 31, 22)),
        ("2024-04-01 9:00 PM", datetime(2024, 4, 1, 19)),
        ("2024-04-01T09:00+05:45", datetime(2024, 4, 1, 3, 15)),
        ("2024-04-01T09:00Z", datetime(2024, 4, 1, 9)),
        ("2024-01-01 09:00 Europe/London", datetime(2024, 1, 1, 9)),
    ],
)
def test_end_is_in_the_time_zone_of_the_query(until: str, utc: datetime, still: Connection) -> None:
    still.execute("SET LOCAL TimeZone = 'America/New_York'")
    assert scalar(still, "SELECT alicia_session_stats_utc(%s, 'Europe/Berlin')", until) == utc
    load(still, [Session(utc - INSTANT), Session(utc)])
    assert len(stats.query(still, "list_sessions", until=until, tz="Europe/Berlin")) == 1


def test_today_begins_in_the_time_zone_of_the_query(still: Connection) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # At every instant at least one has another date than UTC.
        date = f"(NOW() AT TIME ZONE '{zone}')::DATE::TIMESTAMP"
        midnight = scalar(still, f"SELECT {date} AT TIME ZONE '{zone}' AT TIME ZONE 'UTC'")
        assert scalar(still, f"SELECT alicia_session_stats_utc('today', '{zone}')") == midnight


def test_days_of_a_list_are_calendar_days_where_clocks_change(still: Connection) -> None:
    first = datetime(2024, 2, 29, 23)  # March begins in Berlin.
    load(still, [Session(first - INSTANT), Session(first), Session(datetime(2024, 3, 31, 21, 59))])
    assert len(stats.query(still, "list_sessions", days=31, until="2024-04-01", tz="Europe/Berlin")) == 2


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("soon", 'invalid input syntax for type timestamp with time zone: "soon"'),
        ("2024-02-30", 'date/time field value out of range: "2024-02-30"'),
        ("1/2/2024", 'date/time field value out of range: "1/2/2024"'),
        ("infinity", "a time must be finite, not infinity"),
    ],
)
def test_end_that_is_no_time_is_a_usage_error(until: str, message: str, db: Connection) -> None:
    for name in WINDOWED:
        with pytest.raises(stats.UsageError, match=message):
            stats.query(db, name, until=until)
    done = psql(conninfo_of(db), "-v", f"until={until}", "-f", "queries/engagement.sql")
    assert (done.returncode, done.stdout) == (3, "")
    assert message in done.stderr.splitlines()[0]


# Time zones -----------------------------------------------------------------------------------------------


@every_zoned
@pytest.mark.parametrize("tz", ["+02:00", "UTC-2", "CEST", "Mars/Olympus", "<+02>-2", ""])
def test_what_is_no_name_of_a_time_zone_is_refused(name: str, tz: str, db: Connection) -> None:
    with pytest.raises(stats.UsageError, match=r"time zone") as raised:
        stats.query(db, name, tz=tz)
    assert raised.value.sqlstate == "22023"


@every_zoned
def test_every_name_of_a_time_zone_is_taken(name: str, users: Connection) -> None:
    for tz in ("utc", "Europe/Berlin", "europe/berlin", "Etc/GMT+2", "America/Port-au-Prince", "EST5EDT", "America/Indiana/Knox"):
        stats.query(users, name, tz=tz)


def test_usual_name_of_a_time_zone_is_not_looked_up(still: Connection) -> None:
    still.execute("CREATE SCHEMA hiding")
    still.execute("CREATE VIEW hiding.pg_timezone_names AS SELECT 'x' AS name FROM GENERATE_SERIES(1, 0) AS n WHERE 1 / n = 1")
    still.execute("SELECT SET_CONFIG('search_path', 'hiding, pg_catalog, ' || CURRENT_SCHEMA(), TRUE)")
    assert scalar(still, "SELECT alicia_session_stats_is_time_zone('Europe/Berlin')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"tz must be a time zone's name .* not CET"):
        still.execute("SELECT alicia_session_stats_is_time_zone('CET')")
