-- Share of each week's new conversations that are active in each of the weeks after it.
--
-- Purpose: user engagement
-- Param weeks (integer, default 8): number of cohorts, the current week's included.
-- Param tz (text, default UTC): time zone of the weeks, an IANA name such as Europe/Berlin.
-- Returns: one row per cohort, oldest first. A cohort is the conversations whose first session ever begins in one week.
--     cohort                       Monday of that week (ISO weeks)
--     conversations                conversations of the cohort
--     week_0_pct, …, week_7_pct    percent of them with a session in the week so many weeks later; 100 in week 0;
--                                  NULL in a week still to come, and for an empty cohort
--     is_partial                   true for the current week's cohort. That week is not over, so the last number of
--                                  the other rows may still grow, too
-- Reads: idx_session_stats_created_at
--
-- psql -v weeks=4 -v tz=Asia/Kathmandu -f queries/conversation_retention.sql
\if :{?weeks}
\else
\set weeks 8
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH cohorts AS (
    SELECT
        weeks_ago,
        DATE_TRUNC('week', NOW() AT TIME ZONE :'tz')::DATE - 7 * weeks_ago AS cohort
    FROM GENERATE_SERIES(0, :'weeks'::INTEGER - 1) AS weeks_ago
),

-- The scan begins before the first cohort does in any time zone.
active_weeks AS (
    SELECT DISTINCT
        s.conversation_id,
        DATE_TRUNC('week', (s.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS week
    FROM alicia_session_stats AS s
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
        AND s.created_at < NOW() AT TIME ZONE 'UTC' + INTERVAL '2 days'
        AND NOT EXISTS (
            SELECT FROM alicia_session_stats AS earlier
            WHERE
                earlier.conversation_id = s.conversation_id
                AND earlier.created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
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
        c.weeks_ago,
        c.cohort,
        w.weeks_later,
        COUNT(l.week) AS active,
        ROUND(
            100.0 * COUNT(l.week)
            / NULLIF(FIRST_VALUE(COUNT(l.week)) OVER (PARTITION BY c.cohort ORDER BY w.weeks_later), 0), 2
        ) AS active_pct
    FROM cohorts AS c
    CROSS JOIN LATERAL GENERATE_SERIES(0, LEAST(c.weeks_ago, 7)) AS w (weeks_later)
    LEFT JOIN lifetimes AS l ON c.cohort = l.cohort AND c.cohort + 7 * w.weeks_later = l.week
    GROUP BY c.weeks_ago, c.cohort, w.weeks_later
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
    weeks_ago = 0 AS is_partial
FROM shares
GROUP BY weeks_ago, cohort
ORDER BY cohort;
