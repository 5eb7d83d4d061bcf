-- Share of each week's new conversations that are active in each of the weeks after it.
--
-- Purpose: user engagement
-- Param weeks (integer, default 8): number of cohorts, that of until included.
-- Param until (timestamp, default now): where the last week ends; in tz unless it carries an offset. What is later than now is
--     left out.
-- Param tz (text, default UTC): time zone of the weeks, an IANA name such as Europe/Berlin.
-- Returns: one row per cohort, oldest first. A cohort is the conversations whose first session ever begins in one week.
--     cohort                       Monday of that week (ISO weeks)
--     conversations                conversations of the cohort
--     week_0_pct, …, week_7_pct    percent of them with a session in the week so many weeks later; 100 in week 0;
--                                  NULL in a week still to come, and for an empty cohort
--     is_partial                   true for a week that is not over, at until or now. Then the last number of the
--                                  other rows may still grow, too
--     is_truncated                 true for a week that begins before the oldest session in the table: some of its
--                                  sessions may have been deleted
--     After old sessions were deleted, a conversation's first session is the first one that is left. Then a
--     conversation that comes back may count as a new one.
-- Reads: idx_session_stats_created_at
--
-- psql -v weeks=4 -v tz=Asia/Kathmandu -f queries/conversation_retention.sql
\if :{?weeks}
\else
\set weeks 8
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?tz}
\else
\set tz UTC
\endif
-- A microsecond is the resolution of created_at: where until is a Monday's midnight, the last week is the one before it.
WITH asked AS (
    SELECT
        DATE_TRUNC('week', (
            (alicia_session_stats_utc(:'until', :'tz') - INTERVAL '1 microsecond') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS last_week,
        DATE_TRUNC('week', (
            (alicia_session_stats_window_end(:'until', :'tz') - INTERVAL '1 microsecond') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS last_begun_week,
        DATE_TRUNC('week', (
            alicia_session_stats_window_end(:'until', :'tz') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS unfinished_week,
        -- Not earlier than the scan begins, since a time long ago has no equivalent in other time zones.
        (
            SELECT
                (GREATEST(
                    MIN(created_at), alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
                ) AT TIME ZONE 'UTC') AT TIME ZONE :'tz'
            FROM alicia_session_stats
            WHERE created_at > '-infinity'
        ) AS oldest_at
    WHERE alicia_session_stats_is_time_zone(:'tz')
),

-- Materialized, so that until is not read again for each active week.
cohorts AS MATERIALIZED (
    SELECT
        a.last_week - 7 * n AS cohort,
        -- Weeks since then that have begun.
        (a.last_begun_week - (a.last_week - 7 * n)) / 7 AS age,
        a.last_week - 7 * n = a.unfinished_week AS is_partial,
        a.last_week - 7 * n < a.oldest_at AS is_truncated
    FROM asked AS a
    CROSS JOIN GENERATE_SERIES(0, :'weeks'::INTEGER - 1) AS n
    WHERE a.last_week - 7 * n <= a.last_begun_week
),

-- The scan begins before the first cohort does in any time zone.
active_weeks AS (
    SELECT DISTINCT
        s.conversation_id,
        DATE_TRUNC('week', (s.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS week
    FROM alicia_session_stats AS s
    WHERE
        s.created_at >= alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
        AND s.created_at < alicia_session_stats_window_end(:'until', :'tz')
        AND NOT EXISTS (
            SELECT FROM alicia_session_stats AS earlier
            WHERE
                earlier.conversation_id = s.conversation_id
                AND earlier.created_at < alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
        )
),

lifetimes AS (
    SELECT
        MIN(week) OVER (PARTITION BY conversation_id) AS cohort,
        week
    FROM active_weeks
),

-- Weeks still to come have no row here, so that they are NULL below.
shares AS (
    SELECT
        c.cohort,
        c.is_partial,
        c.is_truncated,
        w.weeks_later,
        COUNT(l.week) AS active,
        ROUND(
            100.0 * COUNT(l.week)
            / NULLIF(FIRST_VALUE(COUNT(l.week)) OVER (PARTITION BY c.cohort ORDER BY w.weeks_later), 0), 2
        ) AS active_pct
    FROM cohorts AS c
    CROSS JOIN LATERAL GENERATE_SERIES(0, LEAST(c.age, 7)) AS w (weeks_later)
    LEFT JOIN lifetimes AS l ON c.cohort = l.cohort AND c.cohort + 7 * w.weeks_later = l.week
    GROUP BY c.cohort, c.is_partial, c.is_truncated, w.weeks_later
)

SELECT
    cohort,
    MAX(active) FILTER (WHERE weeks_later = 0) AS conversations,
    MAX(active_pct) FILTER (WHERE weeks_later = 0) AS week_0_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 1) AS week_1_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 2) AS week_2_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 3) AS week_3_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 4) AS week_4_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 5) AS week_5_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 6) AS week_6_pct,
    MAX(active_pct) FILTER (WHERE weeks_later = 7) AS week_7_pct,
    is_partial,
    is_truncated
FROM shares
GROUP BY cohort, is_partial, is_truncated
ORDER BY cohort;
