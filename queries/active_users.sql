-- Daily, weekly and monthly active users, new and returning ones, and stickiness, for each calendar day.
--
-- Purpose: user engagement
-- Param days (integer, default 30): number of calendar days, that of until included.
-- Param until (timestamp, default now): where the last day ends; in tz unless it carries an offset. What is later than now
--     is left out.
-- Param tz (text, default UTC): time zone of the days, an IANA name such as Europe/Berlin.
-- Returns: one row per day, oldest first. A user is active on a day on which a session of the user's begins.
--     daily_users                  users active on that day (DAU)
--     weekly_users                 users active on that day or one of the 6 days before it (WAU)
--     monthly_users                users active on that day or one of the 29 days before it (MAU)
--     new_users                    daily_users whose first session in the table begins on that day
--     returning_users              the other daily_users
--     stickiness_pct               daily_users in percent of monthly_users; NULL without these, and for a day that is
--                                  not over
--     is_partial                   true for a day that is not over, at until or now
--     A conversation belongs to the user in alicia_conversations.user_id, a column of the application's. Without that
--     column there is an error (SQLSTATE 0A000); where it is NULL, the conversation is left out.
--     After old sessions were deleted, a user who comes back may count as new.
-- Cost: reads the sessions of the window and the 30 days before it, and the conversations of their users.
-- Reads: idx_session_stats_created_at, idx_session_stats_conversation
--
-- psql -v days=7 -v tz=Asia/Kathmandu -f queries/active_users.sql
\if :{?days}
\else
\set days 30
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?tz}
\else
\set tz UTC
\endif
-- A microsecond is the resolution of created_at: where until is a midnight, the last day is the one before it.
WITH asked AS (
    SELECT
        ((
            (alicia_session_stats_utc(:'until', :'tz') - INTERVAL '1 microsecond') AT TIME ZONE 'UTC'
        ) AT TIME ZONE :'tz')::DATE AS last_day,
        ((alicia_session_stats_window_end(:'until', :'tz') AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS unfinished_day
    WHERE
        alicia_session_stats_is_time_zone(:'tz')
        AND CASE
            WHEN
                EXISTS (
                    SELECT FROM pg_attribute
                    WHERE attrelid = 'alicia_conversations'::REGCLASS AND attname = 'user_id' AND NOT attisdropped
                )
                THEN TRUE
            ELSE
                alicia_session_stats_raise('0A000', 'there are no users: alicia_conversations has no column user_id')::BOOLEAN
        END
),

days AS (
    SELECT
        n,
        last_day - n AS day,
        last_day - n = unfinished_day AS is_partial
    FROM asked
    -- 29 more days, whose users are still active on the first one.
    CROSS JOIN GENERATE_SERIES(0, :'days'::INTEGER + 28) AS n
    WHERE last_day - n <= unfinished_day
),

-- Where alicia_conversations has no user_id, the name in the inner query means that of absent, so that the statement
-- can say what is missing.
conversations AS NOT MATERIALIZED (
    SELECT
        c.id,
        c.user_id
    FROM (VALUES (NULL::TEXT)) AS absent (user_id)
    CROSS JOIN LATERAL (
        SELECT
            id,
            user_id::TEXT AS user_id -- noqa: RF03
        FROM alicia_conversations
    ) AS c
    WHERE c.user_id IS NOT NULL
),

-- The scan begins before the first day does in any time zone.
active_days AS (
    SELECT DISTINCT
        c.user_id,
        ((s.created_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS day
    FROM alicia_session_stats AS s
    INNER JOIN conversations AS c ON s.conversation_id = c.id
    WHERE
        s.created_at >= alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 30)
        AND s.created_at < alicia_session_stats_window_end(:'until', :'tz')
),

-- A subquery that looks each conversation up in the index: a join might read every session.
known_users AS (
    SELECT DISTINCT c.user_id
    FROM conversations AS c
    WHERE
        c.user_id IN (SELECT user_id FROM active_days)
        AND (
            SELECT TRUE
            FROM alicia_session_stats AS s
            WHERE
                s.conversation_id = c.id
                AND s.created_at < alicia_session_stats_utc(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 30)
            LIMIT 1 -- noqa: AM09
        )
),

spans AS (
    SELECT
        a.day,
        LEAD(a.day) OVER (PARTITION BY a.user_id ORDER BY a.day) AS next_day,
        k.user_id IS NULL AND ROW_NUMBER() OVER (PARTITION BY a.user_id ORDER BY a.day) = 1 AS is_first
    FROM active_days AS a
    LEFT JOIN known_users AS k ON a.user_id = k.user_id
),

-- A user counts from each active day until the next one, or until the week or month is over.
changes AS (
    SELECT
        c.day,
        SUM(c.daily) AS daily_users,
        SUM(c.first) AS new_users,
        SUM(c.weekly) AS weekly_change,
        SUM(c.monthly) AS monthly_change
    FROM spans AS s
    CROSS JOIN LATERAL (
        VALUES
        (s.day, 1, s.is_first::INTEGER, 1, 1),
        (LEAST(s.day + 7, s.next_day), 0, 0, -1, 0),
        (LEAST(s.day + 30, s.next_day), 0, 0, 0, -1)
    ) AS c (day, daily, first, weekly, monthly)
    -- The scan may begin a day earlier.
    WHERE s.day >= (SELECT MIN(d.day) FROM days AS d)
    GROUP BY c.day
),

users AS (
    SELECT
        d.n,
        d.day,
        d.is_partial,
        COALESCE(c.daily_users, 0) AS daily_users,
        COALESCE(SUM(c.weekly_change) OVER (ORDER BY d.day), 0)::BIGINT AS weekly_users,
        COALESCE(SUM(c.monthly_change) OVER (ORDER BY d.day), 0)::BIGINT AS monthly_users,
        COALESCE(c.new_users, 0) AS new_users
    FROM days AS d
    LEFT JOIN changes AS c ON d.day = c.day
)

SELECT
    day,
    daily_users,
    weekly_users,
    monthly_users,
    new_users,
    daily_users - new_users AS returning_users,
    CASE WHEN NOT is_partial THEN ROUND(100.0 * daily_users / NULLIF(monthly_users, 0), 2) END AS stickiness_pct,
    is_partial
FROM users
WHERE n < :'days'::INTEGER
ORDER BY day;
