-- Of the conversations that began in a week, the share that was active in each week since.
--
-- Purpose: user engagement
-- Param weeks (integer, default 8): how many cohorts, the one of the current week included.
-- Param tz (text, default UTC): the time zone whose weeks they are, an IANA name such as Europe/Berlin.
-- Returns: a row for each cohort, oldest first: the conversations whose first session ever starts in the ISO week
--     of the Monday in cohort (from its midnight up to, not including, the next Monday's, in tz). size: how
--     many. week_0 to week_7: the share, in percent, that has a session which starts in that very week, so many
--     weeks later; week_0 is 100 by definition. NULL when that week has not come yet or the cohort is empty; the
--     current week still grows.
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
WITH active_weeks AS (
    SELECT DISTINCT
        s.conversation_id,
        (
            DATE_TRUNC('week', NOW() AT TIME ZONE :'tz')::DATE
            - DATE_TRUNC('week', (s.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE
        ) / 7 AS weeks_ago
    FROM alicia_session_stats AS s
    -- A week more than is shown: in no zone does the first cohort's Monday begin longer ago.
    WHERE
        s.created_at >= NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
        AND NOT EXISTS (
            SELECT FROM alicia_session_stats AS earlier
            WHERE
                earlier.conversation_id = s.conversation_id
                AND earlier.created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(weeks => :'weeks'::INTEGER + 1)
        )
),

lifetimes AS (
    SELECT
        MAX(weeks_ago) OVER (PARTITION BY conversation_id) AS begun_weeks_ago,
        weeks_ago
    FROM active_weeks
),

-- Only the weeks that have come, so that the others are NULL below.
shares AS (
    SELECT
        c.begun_weeks_ago,
        w.week,
        COUNT(l.weeks_ago) AS active,
        100.0 * COUNT(l.weeks_ago)
        / NULLIF(FIRST_VALUE(COUNT(l.weeks_ago)) OVER (PARTITION BY c.begun_weeks_ago ORDER BY w.week), 0) AS active_pct
    FROM GENERATE_SERIES(0, :'weeks'::INTEGER - 1) AS c (begun_weeks_ago)
    CROSS JOIN LATERAL GENERATE_SERIES(0, LEAST(c.begun_weeks_ago, 7)) AS w (week)
    LEFT JOIN lifetimes AS l ON c.begun_weeks_ago = l.begun_weeks_ago AND c.begun_weeks_ago - w.week = l.weeks_ago
    GROUP BY c.begun_weeks_ago, w.week
)

SELECT
    DATE_TRUNC('week', NOW() AT TIME ZONE :'tz')::DATE - 7 * begun_weeks_ago AS cohort,
    MAX(active) FILTER (WHERE week = 0) AS size,
    MAX(active_pct) FILTER (WHERE week = 0) AS week_0,
    MAX(active_pct) FILTER (WHERE week = 1) AS week_1,
    MAX(active_pct) FILTER (WHERE week = 2) AS week_2,
    MAX(active_pct) FILTER (WHERE week = 3) AS week_3,
    MAX(active_pct) FILTER (WHERE week = 4) AS week_4,
    MAX(active_pct) FILTER (WHERE week = 5) AS week_5,
    MAX(active_pct) FILTER (WHERE week = 6) AS week_6,
    MAX(active_pct) FILTER (WHERE week = 7) AS week_7
FROM shares
GROUP BY begun_weeks_ago
ORDER BY cohort;
