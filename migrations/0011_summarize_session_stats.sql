-- Keep value counts of whole hours and days, so that percentiles and distributions need not read the sessions.
--
-- Why: percentiles cannot be added up, but value counts can: (metric, value, sessions). Counts and seconds have few distinct
--      values, so those of a day take a few kilobytes, for any number of sessions.
-- How: no trigger writes a summary; alicia_session_stats_summarize() does. A summary remembers a stamp: the sum of the
--      hashes of the hour's or day's rollup rows, in the snapshot from which it was computed. Every write of a session's
--      counts changes a rollup row, its version number at least, and so the stamp. A reader uses a summary only where its
--      own snapshot has the same stamp, and otherwise reads the sessions of that hour or day.
--      docs/design.md explains it.
-- Locks: none on the application's tables. Readers and writers go on.
-- Rollback: drops the functions that read and write summaries. No session is lost.
SET LOCAL lock_timeout = '500ms';

-- As in the views of the rollup: empty for a role to which a policy applies, which then reads the sessions.
CREATE OR REPLACE VIEW alicia_session_stats_value_summaries AS
SELECT metric, hours, starts_at, stamp, counted_values, sessions
FROM alicia_session_stats_summaries
-- Not as the WHERE of the view itself, which could then be written to.
CROSS JOIN (SELECT WHERE NOT ROW_SECURITY_ACTIVE('alicia_session_stats'::REGCLASS)) AS sees_all_sessions;

COMMENT ON VIEW alicia_session_stats_value_summaries IS
'Private: alicia_session_stats_summaries, for the roles that may read the sessions. Read alicia_session_stats_value_counts() instead.';
COMMENT ON COLUMN alicia_session_stats_value_summaries.metric IS
'messages, tool_calls, memories, seconds or from_seconds';
COMMENT ON COLUMN alicia_session_stats_value_summaries.hours IS
'Length: 1, or 24 for a day (UTC)';
COMMENT ON COLUMN alicia_session_stats_value_summaries.starts_at IS
'Start of the hour or day (UTC)';
COMMENT ON COLUMN alicia_session_stats_value_summaries.stamp IS
'Stamp of the state from which it was computed';
COMMENT ON COLUMN alicia_session_stats_value_summaries.counted_values IS
'The distinct values of the metric, ascending';
COMMENT ON COLUMN alicia_session_stats_value_summaries.sessions IS
'For each of these values, the number of sessions that have it';

CREATE OR REPLACE FUNCTION alicia_session_stats_periods(since TIMESTAMP, until TIMESTAMP)
RETURNS TABLE (hours INTEGER, starts_at TIMESTAMP, stamp NUMERIC)
LANGUAGE sql STABLE
AS $function$
WITH by_hour AS (
    SELECT
        DATE_TRUNC('hour'::TEXT, s.bucket_start) AS starts_at,
        SUM(s.stamp) AS stamp
    FROM alicia_session_stats_stamps AS s
    WHERE s.bucket_start >= since AND s.bucket_start < until AND ISFINITE(s.bucket_start)
    GROUP BY DATE_TRUNC('hour'::TEXT, s.bucket_start)
)

SELECT 24, DATE_TRUNC('day'::TEXT, h.starts_at), SUM(h.stamp)
FROM by_hour AS h
GROUP BY DATE_TRUNC('day'::TEXT, h.starts_at)
HAVING DATE_TRUNC('day'::TEXT, h.starts_at) >= since AND DATE_TRUNC('day'::TEXT, h.starts_at) <= until - INTERVAL '24 hours'
UNION ALL
SELECT 1, h.starts_at, h.stamp
FROM by_hour AS h
WHERE h.starts_at >= since AND h.starts_at <= until - INTERVAL '1 hour'
$function$;

COMMENT ON FUNCTION alicia_session_stats_periods(TIMESTAMP, TIMESTAMP) IS
'Private: the whole days and whole hours of a window in which sessions start, with their stamps';

-- jit is off: a plan for so many sessions would start it, and compiling takes longer than it saves.
CREATE OR REPLACE FUNCTION alicia_session_stats_computed_summaries(since TIMESTAMP, until TIMESTAMP)
RETURNS TABLE (metric TEXT, hours INTEGER, starts_at TIMESTAMP, stamp NUMERIC, counted_values INTEGER[], sessions INTEGER[])
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET jit = off
AS $function$
WITH by_hour AS (
    SELECT
        DATE_TRUNC('hour'::TEXT, s.created_at) AS starts_at,
        -- In each of the groupings the columns of the others are NULL.
        CASE 0
            WHEN GROUPING(s.message_count) THEN 'messages'
            WHEN GROUPING(s.tool_call_count) THEN 'tool_calls'
            WHEN GROUPING(s.memories_used) THEN 'memories'
            WHEN GROUPING(s.session_duration_seconds) THEN 'seconds'
            ELSE 'from_seconds'
        END AS metric,
        COALESCE(
            s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds,
            alicia_session_stats_from_seconds(s.session_duration_seconds)
        ) AS value,
        COUNT(*) AS sessions
    FROM alicia_session_stats AS s
    WHERE s.created_at >= since AND s.created_at < until
    GROUP BY
        DATE_TRUNC('hour'::TEXT, s.created_at),
        GROUPING SETS (
            s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds,
            alicia_session_stats_from_seconds(s.session_duration_seconds)
        )
),

counts AS (
    SELECT 1 AS hours, h.starts_at, h.metric, h.value, h.sessions
    FROM by_hour AS h
    UNION ALL
    SELECT 24, DATE_TRUNC('day'::TEXT, h.starts_at), h.metric, h.value, SUM(h.sessions)
    FROM by_hour AS h
    GROUP BY DATE_TRUNC('day'::TEXT, h.starts_at), h.metric, h.value
),

summaries AS (
    SELECT
        c.metric,
        c.hours,
        c.starts_at,
        PG_CATALOG.ARRAY_AGG(c.value ORDER BY c.value) AS counted_values,
        PG_CATALOG.ARRAY_AGG(c.sessions::INTEGER ORDER BY c.value) AS sessions
    FROM counts AS c
    GROUP BY c.metric, c.hours, c.starts_at
)

SELECT
    m.metric,
    p.hours,
    p.starts_at,
    p.stamp,
    COALESCE(s.counted_values, '{}'),
    COALESCE(s.sessions, '{}')
FROM alicia_session_stats_periods(since, until) AS p
CROSS JOIN (VALUES ('messages'), ('tool_calls'), ('memories'), ('seconds'), ('from_seconds')) AS m (metric)
LEFT JOIN summaries AS s ON s.metric = m.metric AND s.hours = p.hours AND s.starts_at = p.starts_at
$function$;

COMMENT ON FUNCTION alicia_session_stats_computed_summaries(TIMESTAMP, TIMESTAMP) IS
'Private: what the summaries of a window''s whole hours and days should be, from its sessions. since and until begin a day or an hour.';

CREATE OR REPLACE FUNCTION alicia_session_stats_value_counts(metric TEXT, since TIMESTAMP, until TIMESTAMP)
RETURNS TABLE (sessions BIGINT, total NUMERIC, counted_values INTEGER[], sessions_up_to BIGINT[])
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 1
SET jit = off
AS $function$
WITH periods AS MATERIALIZED (
    SELECT p.hours, p.starts_at, p.stamp
    FROM alicia_session_stats_periods(since, until) AS p
),

days AS MATERIALIZED (
    SELECT s.hours, s.starts_at, s.counted_values, s.sessions
    FROM periods AS p
    INNER JOIN alicia_session_stats_value_summaries AS s
        ON s.hours = p.hours AND s.starts_at = p.starts_at AND s.stamp = p.stamp
    WHERE p.hours = 24 AND s.metric = $1
),

-- Of a day that is cut or not summarized, its hours.
summaries AS MATERIALIZED (
    SELECT d.hours, d.starts_at, d.counted_values, d.sessions
    FROM days AS d
    UNION ALL
    SELECT s.hours, s.starts_at, s.counted_values, s.sessions
    FROM periods AS p
    INNER JOIN alicia_session_stats_value_summaries AS s
        ON s.hours = p.hours AND s.starts_at = p.starts_at AND s.stamp = p.stamp
    WHERE p.hours = 1 AND s.metric = $1 AND DATE_TRUNC('day', p.starts_at) NOT IN (SELECT d.starts_at FROM days AS d)
),

-- What lies between the summaries is read from the sessions.
gaps AS (
    SELECT g.since, g.until
    FROM (
        SELECT e.ends_at AS since, LEAD(e.starts_at, 1, until) OVER (ORDER BY e.starts_at) AS until
        FROM (
            SELECT TIMESTAMP '-infinity' AS starts_at, since AS ends_at
            UNION ALL
            SELECT s.starts_at, s.starts_at + MAKE_INTERVAL(hours => s.hours)
            FROM summaries AS s
        ) AS e
    ) AS g
    WHERE g.since < g.until
),

counts AS (
    SELECT c.value, SUM(c.sessions) AS sessions
    FROM (
        SELECT UNNEST(s.counted_values) AS value, UNNEST(s.sessions) AS sessions
        FROM summaries AS s
        UNION ALL
        SELECT
            CASE $1
                WHEN 'messages' THEN s.message_count
                WHEN 'tool_calls' THEN s.tool_call_count
                WHEN 'memories' THEN s.memories_used
                WHEN 'seconds' THEN s.session_duration_seconds
                WHEN 'from_seconds' THEN alicia_session_stats_from_seconds(s.session_duration_seconds)
            END,
            COUNT(*)::INTEGER
        FROM gaps AS g
        INNER JOIN alicia_session_stats AS s ON s.created_at >= g.since AND s.created_at < g.until
        GROUP BY 1
    ) AS c
    GROUP BY c.value
),

running AS (
    SELECT c.value, c.sessions, SUM(c.sessions) OVER (ORDER BY c.value)::BIGINT AS sessions_up_to
    FROM counts AS c
)

SELECT
    COALESCE(SUM(r.sessions), 0)::BIGINT,
    COALESCE(SUM(r.value * r.sessions), 0),
    ARRAY_AGG(r.value ORDER BY r.value),
    ARRAY_AGG(r.sessions_up_to ORDER BY r.value)
FROM running AS r
$function$;

COMMENT ON FUNCTION alicia_session_stats_value_counts(TEXT, TIMESTAMP, TIMESTAMP) IS
'Of messages, tool_calls, memories, seconds or from_seconds: each value that a session with since <= created_at < until (UTC) has, and how many have it or less';

CREATE OR REPLACE FUNCTION alicia_session_stats_percentile(
    fraction FLOAT8, counted_values INTEGER[], sessions_up_to BIGINT[], skipped BIGINT DEFAULT 0
) RETURNS FLOAT8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $function$
-- As PERCENTILE_CONT: the session at this rank, from 0, or between the two next to it. WIDTH_BUCKET is a binary search.
SELECT v.low + (r.rank - FLOOR(r.rank)) * (v.high - v.low)
FROM (SELECT fraction * (NULLIF(sessions_up_to[CARDINALITY(sessions_up_to)] - skipped, 0) - 1) AS rank) AS r
CROSS JOIN LATERAL (
    SELECT
        counted_values[1 + WIDTH_BUCKET(skipped + FLOOR(r.rank)::BIGINT, sessions_up_to)] AS low,
        counted_values[1 + WIDTH_BUCKET(skipped + CEIL(r.rank)::BIGINT, sessions_up_to)] AS high
) AS v
$function$;

COMMENT ON FUNCTION alicia_session_stats_percentile(FLOAT8, INTEGER[], BIGINT[], BIGINT) IS
'A percentile, interpolated as by PERCENTILE_CONT, of what alicia_session_stats_value_counts() returns, without the first skipped sessions';

CREATE OR REPLACE FUNCTION alicia_session_stats_open_at(instant TIMESTAMP)
RETURNS TABLE (started_at TIMESTAMP, ended_at TIMESTAMP)
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET jit = off
AS $function$
-- No session is longer than the sum of its quarter of an hour, which excludes nearly all quarters without a look at a session.
WITH reaching AS MATERIALIZED (
    SELECT DISTINCT DATE_TRUNC('hour', b.bucket_start) AS starts_at
    FROM (
        SELECT p.bucket_start
        FROM alicia_session_stats_parts AS p
        WHERE p.bucket_start < instant AND ISFINITE(p.bucket_start)
        GROUP BY p.bucket_start
        HAVING SUM(p.seconds) > EXTRACT(EPOCH FROM instant - p.bucket_start) - 900
    ) AS b
),

-- Where a summary knows the longest session of the hour, that may exclude it, too.
hours AS (
    SELECT r.starts_at, r.starts_at + INTERVAL '1 hour' AS ends_at
    FROM reaching AS r
    WHERE NOT EXISTS (
        SELECT
        FROM alicia_session_stats_periods(r.starts_at, r.starts_at + INTERVAL '1 hour') AS p
        INNER JOIN alicia_session_stats_value_summaries AS s
            ON s.hours = p.hours AND s.starts_at = p.starts_at AND s.stamp = p.stamp
        WHERE p.hours = 1 AND s.metric = 'seconds'
            AND COALESCE(s.counted_values[CARDINALITY(s.counted_values)], 0) <= EXTRACT(EPOCH FROM instant - r.starts_at) - 3600
    )
)

SELECT s.created_at, s.created_at + MAKE_INTERVAL(secs => s.session_duration_seconds)
FROM hours AS h
INNER JOIN alicia_session_stats AS s ON s.created_at >= h.starts_at AND s.created_at < LEAST(h.ends_at, instant)
WHERE s.created_at + MAKE_INTERVAL(secs => s.session_duration_seconds) > instant
UNION ALL
-- For a role to which a policy applies, for which the rollup is empty.
SELECT s.created_at, s.created_at + MAKE_INTERVAL(secs => s.session_duration_seconds)
FROM alicia_session_stats AS s
WHERE ROW_SECURITY_ACTIVE('alicia_session_stats'::TEXT) AND s.created_at < instant
    AND s.created_at + MAKE_INTERVAL(secs => s.session_duration_seconds) > instant
$function$;

COMMENT ON FUNCTION alicia_session_stats_open_at(TIMESTAMP) IS
'The sessions that start before an instant (UTC) and end after it';

CREATE OR REPLACE FUNCTION alicia_session_stats_days_to_summarize(until TIMESTAMP)
RETURNS TABLE (day TIMESTAMP)
-- SECURITY DEFINER, because a role that may run table_health has no privilege on the summaries.
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN QUERY
    SELECT DISTINCT DATE_TRUNC('day'::TEXT, COALESCE(p.starts_at, s.starts_at))
    FROM alicia_session_stats_periods(TIMESTAMP '-infinity', until) AS p
    -- FULL, because a summary outlives the sessions of its period.
    FULL JOIN (
        SELECT v.hours, v.starts_at, v.stamp
        FROM alicia_session_stats_value_summaries AS v
        WHERE v.metric = 'messages'::TEXT
    ) AS s ON s.hours = p.hours AND s.starts_at = p.starts_at
    WHERE s.stamp IS DISTINCT FROM p.stamp;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_days_to_summarize(TIMESTAMP) IS
'Private: the days before an instant of which an hour, or the day itself, has no summary of its present state';

CREATE OR REPLACE FUNCTION alicia_session_stats_summarize(batch BIGINT DEFAULT 1000000)
RETURNS TABLE (days INTEGER, sessions BIGINT, remaining_days INTEGER)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $function$
#variable_conflict use_column
DECLARE
    lock_class CONSTANT INTEGER := 1634494819;
    summarize_lock CONSTANT INTEGER := -3;
    until CONSTANT TIMESTAMP := DATE_TRUNC('hour'::TEXT, CLOCK_TIMESTAMP() AT TIME ZONE 'UTC'::TEXT);
    is_alone CONSTANT BOOLEAN := PG_TRY_ADVISORY_XACT_LOCK(lock_class, summarize_lock);
    stale RECORD;
BEGIN
    IF ROW_SECURITY_ACTIVE('alicia_session_stats'::TEXT) THEN
        RAISE EXCEPTION 'a row-level security policy hides sessions from %, so that they cannot be summarized', CURRENT_USER
            USING ERRCODE = 'insufficient_privilege', HINT = 'ALTER TABLE alicia_session_stats NO FORCE ROW LEVEL SECURITY;';
    END IF;
    -- Under REPEATABLE READ the snapshot may be older than the summaries of another call.
    IF CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%' THEN
        RAISE EXCEPTION 'alicia_session_stats_summarize() must run under READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'SET default_transaction_isolation = ''read committed'';';
    END IF;
    days := 0;
    sessions := 0;
    remaining_days := 0;
    FOR stale IN
        SELECT d.day, COALESCE(SUM(r.sessions)::BIGINT, 0) AS sessions
        FROM alicia_session_stats_days_to_summarize(until) AS d
        LEFT JOIN alicia_session_stats_rollup AS r ON r.bucket_start >= d.day AND r.bucket_start < d.day + INTERVAL '24 hours'
        GROUP BY d.day
        ORDER BY d.day DESC
    LOOP
        -- Another call is at work: leave the days to it.
        IF NOT is_alone OR days > 0 AND sessions + stale.sessions > batch THEN
            remaining_days := remaining_days + 1;
            CONTINUE;
        END IF;
        DELETE FROM alicia_session_stats_summaries AS s
        WHERE s.starts_at >= stale.day AND s.starts_at < stale.day + INTERVAL '24 hours';
        -- One statement reads the stamps and the sessions in one snapshot. A write that commits later changes the stamp.
        INSERT INTO alicia_session_stats_summaries
        SELECT c.*
        FROM alicia_session_stats_computed_summaries(stale.day, LEAST(stale.day + INTERVAL '24 hours', until)) AS c;
        days := days + 1;
        sessions := sessions + stale.sessions;
    END LOOP;
    RETURN NEXT;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_summarize(BIGINT) IS
'Summarizes the newest days that need it, until it has read batch sessions. Returns how many days remain.';

DO $migration$
DECLARE
    window_of CONSTANT TEXT := 'timestamp without time zone,timestamp without time zone)';
BEGIN
    PERFORM alicia_session_stats_own('VIEW alicia_session_stats_value_summaries');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_periods(' || window_of);
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_computed_summaries(' || window_of);
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_value_counts(text,' || window_of);
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_percentile(double precision,integer[],bigint[],bigint)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_open_at(timestamp without time zone)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_days_to_summarize(timestamp without time zone)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_summarize(bigint)', is_closed => TRUE);
END
$migration$;
