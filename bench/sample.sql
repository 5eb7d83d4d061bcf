-- Load a year of realistic sessions, or the part of it from session number first to last.
--
-- Purpose: sample data
-- Mode: writes
-- Param rows (integer, default 20000): size of the whole sample, in sessions.
-- Param first (integer, default 1): number of the first session to load, from 1.
-- Param last (integer, default 20000): number of the last session to load.
-- Param seed (integer, default 1): the same seed gives the same sessions.
-- Param until (text, default now): the year ends on the day before this, a timestamp with time zone.
-- Returns: one row, the number of sessions loaded. A session that exists already is skipped.
-- Model: over the year, sessions per day grow 2.5 times. Fewer begin at night and on weekends. Some conversations have
--     many sessions. Counts are heavy-tailed, and one session in eight is a single message.
--
-- psql -v rows=1000 -v last=1000 -f bench/sample.sql
\if :{?rows}
\else
\set rows 20000
\endif
\if :{?first}
\else
\set first 1
\endif
\if :{?last}
\else
\set last 20000
\endif
\if :{?seed}
\else
\set seed 1
\endif
\if :{?until}
\else
\set until now
\endif
WITH drawn AS (
    -- Ten independent uniform numbers in (0, 1) for each session. They are hashes of its number, so that they do not
    -- depend on the order of evaluation.
    SELECT
        n,
        (
            SELECT ARRAY_AGG((HASHINT8EXTENDED(n, :'seed'::BIGINT * 100 + k) & 1048575) / 1048576.0::FLOAT8 + 4e-7 ORDER BY k)
            FROM GENERATE_SERIES(1, 10) AS k
        ) AS u
    FROM GENERATE_SERIES(:'first'::BIGINT, LEAST(:'last'::BIGINT, :'rows'::BIGINT)) AS n
),

placed AS (
    SELECT
        n,
        u,
        -- The inverse of the distribution whose density grows linearly from 1 to 2.5 over 364 days.
        FLOOR(364 * (SQRT(1 + 5.25 * u[1]) - 1) / 1.5)::INTEGER AS day,
        -- 6 percent at any hour, 54 percent around 11:30, 40 percent around 19:00.
        CASE
            WHEN u[2] < 0.06 THEN 24 * u[3]
            ELSE CASE WHEN u[2] < 0.6 THEN 11.5 ELSE 19 END + 3.2 * (u[3] + u[4] + u[5] - 1.5)
        END AS hour,
        -- A few conversations have many sessions.
        'ac_' || TRANSLATE(ENCODE(UUID_SEND(MD5(
            CONCAT_WS(' ', :'seed'::BIGINT, 'conversation', FLOOR(:'rows'::INTEGER * 0.45 * POWER(u[6], 1.8)))
        )::UUID), 'base64'), '+/=', '-_') AS conversation_id,
        -- A Pareto distribution: half the sessions have fewer than six messages, one in a thousand has hundreds.
        CASE WHEN u[7] < 0.125 THEN 1 ELSE LEAST(2 + FLOOR(3 * (POWER(1 - u[8], -0.75) - 1)), 5000) END::INTEGER AS messages
    FROM drawn
),

sessions AS (
    SELECT
        n,
        u,
        conversation_id,
        messages,
        -- Two in five of the weekend's sessions move to a weekday before it.
        midnight + MAKE_INTERVAL(
            days => CASE
                WHEN u[9] < 0.4 AND day > 6 AND EXTRACT(ISODOW FROM midnight) >= 6 THEN -2 - FLOOR(u[10] * 3)::INTEGER
                ELSE 0
            END,
            secs => 3600 * hour
        ) AS created_at
    FROM placed
    CROSS JOIN LATERAL (
        SELECT DATE_TRUNC('day', :'until'::TIMESTAMPTZ AT TIME ZONE 'UTC') - MAKE_INTERVAL(days => 364 - day) AS midnight
    ) AS d
),

conversations AS (
    INSERT INTO alicia_conversations (id)
    SELECT DISTINCT conversation_id FROM sessions
    ON CONFLICT DO NOTHING
),

loaded AS (
    INSERT INTO alicia_session_stats (
        id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at, updated_at
    )
    SELECT
        'ass_' || TRANSLATE(ENCODE(UUID_SEND(MD5(
            CONCAT_WS(' ', :'seed'::BIGINT, 'session', n)
        )::UUID), 'base64'), '+/=', '-_'),
        conversation_id,
        messages,
        CASE WHEN u[9] < 0.35 THEN FLOOR(messages * u[8] * u[10])::INTEGER ELSE 0 END,
        CASE WHEN u[10] < 0.55 THEN FLOOR(LN(1 + messages) * 2.5 * u[3])::INTEGER ELSE 0 END,
        CASE WHEN messages = 1 THEN 0 ELSE FLOOR(messages * (12 + 60 * u[4] * u[5]))::INTEGER END,
        created_at,
        created_at AS updated_at
    FROM sessions
    ON CONFLICT DO NOTHING
    RETURNING 1
)

SELECT COUNT(*) AS sessions FROM loaded;
