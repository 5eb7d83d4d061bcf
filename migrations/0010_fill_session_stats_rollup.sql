-- Fill the rollup with the existing sessions, and open it to the queries.
--
-- Why: apart from the triggers, so that reading a large table blocks neither readers nor writers. One statement, with one
--      snapshot, finds what is missing; the triggers add every session that is written after that snapshot. The views are
--      created in the same transaction, so that no query can read half of the sums.
-- Locks: ACCESS SHARE on alicia_session_stats, which is read twice. Readers and writers go on.
-- Rollback: drops the views and functions. No session is lost.
SET LOCAL lock_timeout = '500ms';

-- The sums count every session. So the views are empty for a role to which a policy applies (row-level security).
-- alicia_session_stats_between() and the named queries then read the sessions that the policy shows.

-- For sums over many buckets: grouping by bucket first would take longer than the sum itself.
CREATE OR REPLACE VIEW alicia_session_stats_parts AS
SELECT bucket_start, sessions, messages, tool_calls, memories, seconds
FROM alicia_session_stats_rollup
-- Not as the WHERE of the view itself, which could then be written to.
CROSS JOIN (SELECT WHERE NOT ROW_SECURITY_ACTIVE('alicia_session_stats'::REGCLASS)) AS sees_all_sessions;

COMMENT ON VIEW alicia_session_stats_parts IS
'Private: the sums of a quarter of an hour, in several rows. Read alicia_session_stats_quarter_hours instead.';
COMMENT ON COLUMN alicia_session_stats_parts.bucket_start IS
'Start of the quarter of an hour (UTC)';
COMMENT ON COLUMN alicia_session_stats_parts.sessions IS
'Sessions that start in it, to be summed';
COMMENT ON COLUMN alicia_session_stats_parts.messages IS
'Messages of these sessions, to be summed';
COMMENT ON COLUMN alicia_session_stats_parts.tool_calls IS
'Tool calls of these sessions, to be summed';
COMMENT ON COLUMN alicia_session_stats_parts.memories IS
'Memories retrieved in these sessions, to be summed';
COMMENT ON COLUMN alicia_session_stats_parts.seconds IS
'Duration of these sessions (seconds), to be summed';

-- Added up, not XORed: two rows that are equal must not cancel each other.
CREATE OR REPLACE VIEW alicia_session_stats_stamps AS
SELECT
    r.bucket_start,
    HASH_RECORD_EXTENDED(r, 0::BIGINT) AS stamp
FROM alicia_session_stats_rollup AS r
CROSS JOIN (SELECT WHERE NOT ROW_SECURITY_ACTIVE('alicia_session_stats'::REGCLASS)) AS sees_all_sessions;

COMMENT ON VIEW alicia_session_stats_stamps IS
'Private: a hash of each row of the rollup. The sum over a period identifies the state of its sessions.';
COMMENT ON COLUMN alicia_session_stats_stamps.bucket_start IS
'Start of the quarter of an hour (UTC)';
COMMENT ON COLUMN alicia_session_stats_stamps.stamp IS
'Hash of the rollup row';

CREATE OR REPLACE VIEW alicia_session_stats_quarter_hours AS
SELECT
    bucket_start,
    SUM(sessions)::BIGINT AS sessions,
    SUM(messages)::BIGINT AS messages,
    SUM(tool_calls)::BIGINT AS tool_calls,
    SUM(memories)::BIGINT AS memories,
    SUM(seconds)::BIGINT AS seconds
FROM alicia_session_stats_parts
GROUP BY bucket_start
HAVING SUM(sessions)::BIGINT > 0;

COMMENT ON VIEW alicia_session_stats_quarter_hours IS
'Sums of the sessions that start in a quarter of an hour: one row for each quarter that has sessions. Times are UTC.';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.bucket_start IS
'Start of the quarter of an hour (UTC)';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.sessions IS
'Sessions that start in it';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.messages IS
'Messages of these sessions';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.tool_calls IS
'Tool calls of these sessions';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.memories IS
'Memories retrieved in these sessions';
COMMENT ON COLUMN alicia_session_stats_quarter_hours.seconds IS
'Summed duration of these sessions (seconds)';

-- The join to the session excludes stale candidates, and NOT EXISTS all copies but one. Written so that a LIMIT reads few
-- candidates: DISTINCT, or a join that the planner expects to return one row, would read and sort all of them.
CREATE OR REPLACE VIEW alicia_session_stats_top_sessions AS
SELECT
    c.message_count,
    c.created_at,
    c.id,
    c.conversation_id,
    s.tool_call_count,
    s.memories_used,
    s.session_duration_seconds
FROM alicia_session_stats_top_candidates AS c
CROSS JOIN alicia_session_stats_top_cutoff AS t
CROSS JOIN LATERAL (
    SELECT s.tool_call_count, s.memories_used, s.session_duration_seconds
    FROM alicia_session_stats AS s
    WHERE s.id = c.id AND s.message_count = c.message_count
        AND s.created_at = c.created_at AND s.conversation_id = c.conversation_id
    OFFSET 0
) AS s
WHERE NOT ROW_SECURITY_ACTIVE('alicia_session_stats'::REGCLASS)
    -- Under FORCE ROW LEVEL SECURITY the policy also applies to the view's owner. Every reader would miss sessions.
    AND NOT EXISTS (
        SELECT FROM pg_class AS r
        INNER JOIN pg_roles AS o ON r.relowner = o.oid
        WHERE r.oid = 'alicia_session_stats'::REGCLASS AND r.relrowsecurity AND r.relforcerowsecurity
            AND NOT o.rolsuper AND NOT o.rolbypassrls
    )
    AND (c.message_count, c.created_at, c.id) >= (t.message_count, t.created_at, t.id)
    AND NOT EXISTS (
        SELECT FROM alicia_session_stats_top_candidates AS d
        WHERE d.message_count = c.message_count AND d.created_at = c.created_at
            AND d.id = c.id AND d.conversation_id = c.conversation_id AND d.ctid < c.ctid
    );

COMMENT ON VIEW alicia_session_stats_top_sessions IS
'The sessions with the most messages, about a thousand: every session from the top down to the last one here. Times are UTC.';
COMMENT ON COLUMN alicia_session_stats_top_sessions.message_count IS
'Messages in the session';
COMMENT ON COLUMN alicia_session_stats_top_sessions.created_at IS
'Start of the session (UTC)';
COMMENT ON COLUMN alicia_session_stats_top_sessions.id IS
'The session''s id';
COMMENT ON COLUMN alicia_session_stats_top_sessions.conversation_id IS
'The session''s conversation';
COMMENT ON COLUMN alicia_session_stats_top_sessions.tool_call_count IS
'Tool calls in the session';
COMMENT ON COLUMN alicia_session_stats_top_sessions.memories_used IS
'Distinct memories retrieved in the session';
COMMENT ON COLUMN alicia_session_stats_top_sessions.session_duration_seconds IS
'Duration of the session (seconds)';

CREATE OR REPLACE FUNCTION alicia_session_stats_between(since TIMESTAMP, until TIMESTAMP)
RETURNS TABLE (bucket_start TIMESTAMP, sessions BIGINT, messages BIGINT, tool_calls BIGINT, memories BIGINT, seconds BIGINT)
LANGUAGE sql STABLE PARALLEL SAFE
AS $function$
-- The quarters of an hour that lie in the window as a whole.
SELECT p.bucket_start, p.sessions, p.messages, p.tool_calls, p.memories, p.seconds
FROM alicia_session_stats_parts AS p
WHERE p.bucket_start >= since AND p.bucket_start <= until - INTERVAL '15 minutes'
UNION ALL
-- The sessions of the quarter in which the window starts, if it is cut.
SELECT
    alicia_session_stats_bucket(s.created_at), 1, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds
FROM alicia_session_stats AS s
WHERE s.created_at >= since
    AND s.created_at < LEAST(until, alicia_session_stats_bucket(since - INTERVAL '1 microsecond') + INTERVAL '15 minutes')
UNION ALL
-- The sessions of the quarter in which it ends.
SELECT
    alicia_session_stats_bucket(s.created_at), 1, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds
FROM alicia_session_stats AS s
WHERE s.created_at >= GREATEST(
        alicia_session_stats_bucket(until), alicia_session_stats_bucket(since - INTERVAL '1 microsecond') + INTERVAL '15 minutes'
    )
    AND s.created_at < until
UNION ALL
-- For a role to which a policy applies: the sessions between these quarters, too.
SELECT
    alicia_session_stats_bucket(s.created_at), 1, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds
FROM alicia_session_stats AS s
WHERE ROW_SECURITY_ACTIVE('alicia_session_stats'::TEXT)
    AND s.created_at >= alicia_session_stats_bucket(since - INTERVAL '1 microsecond') + INTERVAL '15 minutes'
    AND s.created_at < alicia_session_stats_bucket(until)
$function$;

COMMENT ON FUNCTION alicia_session_stats_between(TIMESTAMP, TIMESTAMP) IS
'Exact sums of the sessions with since <= created_at < until (UTC), in rows to be summed; until => infinity means no upper bound';

-- A call for each day sorts fewer sessions at a time than one query that groups by day, and none on disk. jit is off: the plan
-- is made for more sessions than a day has, and compiling it for each call would take longer than the call.
CREATE OR REPLACE FUNCTION alicia_session_stats_conversations(spans TSMULTIRANGE) RETURNS BIGINT
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET jit = off
AS $function$
BEGIN
    RETURN (
        SELECT COUNT(DISTINCT s.conversation_id)
        FROM alicia_session_stats AS s
        WHERE s.created_at >= LOWER(spans) AND s.created_at < UPPER(spans) AND s.created_at <@ spans
    );
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_conversations(TSMULTIRANGE) IS
'How many conversations have a session that starts in one of these spans (UTC)';

CREATE OR REPLACE FUNCTION alicia_session_stats_raise(state TEXT, message TEXT) RETURNS TEXT
LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION '%', message USING ERRCODE = state;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_raise(TEXT, TEXT) IS
'Private: raises an error with this SQLSTATE and message, for the named queries';

CREATE OR REPLACE FUNCTION alicia_session_stats_parse_time(value TEXT, tz TEXT) RETURNS TIMESTAMP
LANGUAGE plpgsql STABLE PARALLEL SAFE
-- A date such as 1/2/2025, which can be read in two ways, is an error.
SET TimeZone = 'UTC'
SET DateStyle = 'ISO, YMD'
AS $function$
DECLARE
    with_offset CONSTANT TIMESTAMP := value::TIMESTAMPTZ AT TIME ZONE 'UTC';
    -- A cast to TIMESTAMP ignores an offset.
    as_written TIMESTAMP := value::TIMESTAMP;
BEGIN
    IF NOT ISFINITE(with_offset) THEN
        RAISE EXCEPTION 'a time must be finite, not %', value USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- An offset of zero, too, which the times do not tell.
    IF with_offset <> as_written OR value ~* ':\d\d[\d.:]*\s*(?!am\M|pm\M)[a-z]|[-+]00(:?00)?\s*$|^\s*now\s*$' THEN
        RETURN with_offset;
    END IF;
    IF value ~* '(today|yesterday|tomorrow)' THEN
        as_written := as_written + ((NOW() AT TIME ZONE tz)::DATE - (NOW() AT TIME ZONE 'UTC')::DATE) * INTERVAL '1 day';
    END IF;
    RETURN (as_written AT TIME ZONE tz) AT TIME ZONE 'UTC';
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_parse_time(TEXT, TEXT) IS
'Private: a time as text, in the time zone tz unless it carries an offset, whatever the session''s TimeZone (UTC)';

-- Both are inlined, so that "now" costs no call and the planner sees a time. PARALLEL SAFE, so that a query may use workers.
CREATE OR REPLACE FUNCTION alicia_session_stats_utc(value TEXT, tz TEXT DEFAULT 'UTC') RETURNS TIMESTAMP
LANGUAGE sql STABLE PARALLEL SAFE
AS $function$
SELECT
    CASE
        WHEN value = 'now' THEN NOW() AT TIME ZONE 'UTC'
        ELSE alicia_session_stats_parse_time(value, tz)
    END
$function$;

COMMENT ON FUNCTION alicia_session_stats_utc(TEXT, TEXT) IS
'Private: the time that the parameter until of a query names (UTC)';

CREATE OR REPLACE FUNCTION alicia_session_stats_window_end(value TEXT, tz TEXT DEFAULT 'UTC') RETURNS TIMESTAMP
LANGUAGE sql STABLE PARALLEL SAFE
AS $function$
SELECT
    CASE
        WHEN value = 'now' THEN NOW() AT TIME ZONE 'UTC'
        ELSE LEAST(alicia_session_stats_parse_time(value, tz), NOW() AT TIME ZONE 'UTC')
    END
$function$;

COMMENT ON FUNCTION alicia_session_stats_window_end(TEXT, TEXT) IS
'Private: where the window of a query ends: at until, or now if that is earlier (UTC)';

CREATE OR REPLACE FUNCTION alicia_session_stats_is_time_zone(tz TEXT) RETURNS BOOLEAN
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $function$
BEGIN
    -- Reading pg_timezone_names takes 30 ms. AT TIME ZONE itself refuses an unknown name of the usual form.
    IF tz !~* '^(UTC|[a-z_]+(/[a-z_]+)+)$' AND NOT EXISTS (SELECT FROM pg_timezone_names AS n WHERE LOWER(n.name) = LOWER(tz)) THEN
        RAISE EXCEPTION 'tz must be a time zone''s name such as Europe/Berlin, not %', tz USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN NOW() AT TIME ZONE tz IS NOT NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_is_time_zone(TEXT) IS
'Private: true, or an error. AT TIME ZONE also accepts +02:00, with the sign of POSIX, and abbreviations.';

-- PL/pgSQL, whose every statement has a snapshot of its own: a concurrent call with the same id may commit while the INSERT
-- waits for it.
CREATE OR REPLACE FUNCTION alicia_session_stats_start(of_conversation TEXT, session_id TEXT) RETURNS TABLE (
    id TEXT, conversation_id TEXT, message_count INTEGER, tool_call_count INTEGER, memories_used INTEGER,
    session_duration_seconds INTEGER, created_at TIMESTAMP, updated_at TIMESTAMP
)
LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
BEGIN
    IF session_id = 'new' THEN
        RETURN QUERY
        INSERT INTO alicia_session_stats AS s (conversation_id, created_at, updated_at)
        VALUES (of_conversation, NOW() AT TIME ZONE 'UTC', NOW() AT TIME ZONE 'UTC')
        RETURNING
            s.id, s.conversation_id, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds,
            s.created_at, s.updated_at;
        RETURN;
    END IF;

    RETURN QUERY
    INSERT INTO alicia_session_stats AS s (id, conversation_id, created_at, updated_at)
    VALUES (session_id, of_conversation, NOW() AT TIME ZONE 'UTC', NOW() AT TIME ZONE 'UTC')
    ON CONFLICT DO NOTHING
    RETURNING
        s.id, s.conversation_id, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds,
        s.created_at, s.updated_at;
    IF FOUND THEN
        RETURN;
    END IF;

    RETURN QUERY
    SELECT
        s.id, s.conversation_id, s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds,
        s.created_at, s.updated_at
    FROM alicia_session_stats AS s
    WHERE s.id = session_id AND s.conversation_id = of_conversation;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'session % belongs to another conversation than %', session_id, of_conversation
            USING ERRCODE = 'unique_violation';
    END IF;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_start(TEXT, TEXT) IS
'Private: starts a session of a conversation, for start_session; with an id other than new, once';

CREATE OR REPLACE FUNCTION alicia_session_stats_from_seconds(seconds INTEGER) RETURNS INTEGER
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $function$
SELECT CASE
    WHEN seconds < 1 THEN 0
    WHEN seconds < 10 THEN 1
    WHEN seconds < 30 THEN 10
    WHEN seconds < 60 THEN 30
    WHEN seconds < 180 THEN 60
    WHEN seconds < 600 THEN 180
    WHEN seconds < 1800 THEN 600
    WHEN seconds < 3600 THEN 1800
    ELSE 3600
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_from_seconds(INTEGER) IS
'Start of the range of durations in which session_length_distribution counts a session (seconds)';

CREATE OR REPLACE FUNCTION alicia_session_stats_differences(since TIMESTAMP, until TIMESTAMP)
RETURNS TABLE (
    kind TEXT, starts_at TIMESTAMP, hours INTEGER, sessions BIGINT, messages BIGINT, tool_calls BIGINT, memories BIGINT,
    seconds BIGINT
)
-- SECURITY DEFINER, so that a role that reads the views can verify them. It tells differences only.
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
SET plan_cache_mode = force_custom_plan -- A short window needs another plan than a long one.
SET enable_nestloop = off -- The planner expects only few of the summaries to hold.
AS $function$
#variable_conflict use_column
DECLARE
    -- Whole days, so that no quarter of an hour, hour or day is cut.
    opens CONSTANT TIMESTAMP := DATE_TRUNC('day'::TEXT, since);
    closes CONSTANT TIMESTAMP := DATE_TRUNC('day'::TEXT, until - INTERVAL '1 microsecond') + INTERVAL '24 hours';
    cutoff RECORD;
    listed BIGINT;
BEGIN
    IF ROW_SECURITY_ACTIVE('alicia_session_stats'::TEXT) THEN
        RAISE EXCEPTION 'a row-level security policy hides sessions from %, so that the rollup cannot be compared', CURRENT_USER
            USING ERRCODE = 'insufficient_privilege', HINT = 'ALTER TABLE alicia_session_stats NO FORCE ROW LEVEL SECURITY;';
    END IF;
    SELECT * INTO cutoff FROM alicia_session_stats_top_cutoff;
    -- No session has so many messages: on Citus, where no candidates are kept and the view is every session.
    SELECT COUNT(*) INTO listed
    FROM alicia_session_stats_top_sessions AS t
    WHERE cutoff.message_count < 2147483647
        AND t.created_at >= opens AND (t.created_at < closes OR closes = 'infinity'::TIMESTAMP);

    RETURN QUERY
    -- The only read of the sessions.
    WITH counted AS MATERIALIZED (
        SELECT
            alicia_session_stats_bucket(s.created_at) AS bucket_start,
            COUNT(*) AS sessions,
            SUM(s.message_count) AS messages,
            SUM(s.tool_call_count) AS tool_calls,
            SUM(s.memories_used) AS memories,
            SUM(s.session_duration_seconds) AS seconds,
            COUNT(*) FILTER (
                WHERE (s.message_count, s.created_at, s.id) >= (cutoff.message_count, cutoff.created_at, cutoff.id)
            ) AS top_sessions,
            -- Value counts are compared by the sums of their hashes, because grouping by each value takes four times the CPU.
            SUM(HASHINT4(s.message_count)) AS message_hashes,
            SUM(HASHINT4(s.tool_call_count)) AS tool_call_hashes,
            SUM(HASHINT4(s.memories_used)) AS memory_hashes,
            SUM(HASHINT4(s.session_duration_seconds)) AS second_hashes,
            SUM(HASHINT4(alicia_session_stats_from_seconds(s.session_duration_seconds))) AS from_second_hashes
        FROM alicia_session_stats AS s
        WHERE s.created_at >= opens AND (s.created_at < closes OR closes = 'infinity'::TIMESTAMP)
        GROUP BY alicia_session_stats_bucket(s.created_at)
    ),

    differing AS (
        SELECT
            p.bucket_start,
            SUM(p.sessions)::BIGINT AS sessions,
            SUM(p.messages)::BIGINT AS messages,
            SUM(p.tool_calls)::BIGINT AS tool_calls,
            SUM(p.memories)::BIGINT AS memories,
            SUM(p.seconds)::BIGINT AS seconds
        FROM (
            SELECT c.bucket_start, c.sessions, c.messages, c.tool_calls, c.memories, c.seconds
            FROM counted AS c
            UNION ALL
            SELECT r.bucket_start, -r.sessions, -r.messages, -r.tool_calls, -r.memories, -r.seconds
            FROM alicia_session_stats_parts AS r
            WHERE r.bucket_start >= opens AND (r.bucket_start < closes OR closes = 'infinity'::TIMESTAMP)
        ) AS p
        GROUP BY p.bucket_start
    ),

    hashed AS (
        SELECT
            u.hours,
            DATE_TRUNC(u.unit, c.bucket_start) AS starts_at,
            SUM(c.message_hashes) AS messages,
            SUM(c.tool_call_hashes) AS tool_calls,
            SUM(c.memory_hashes) AS memories,
            SUM(c.second_hashes) AS seconds,
            SUM(c.from_second_hashes) AS from_seconds
        FROM counted AS c
        CROSS JOIN (VALUES (1, 'hour'::TEXT), (24, 'day'::TEXT)) AS u (hours, unit)
        GROUP BY u.hours, DATE_TRUNC(u.unit, c.bucket_start)
    ),

    stamped AS (
        SELECT u.hours, DATE_TRUNC(u.unit, r.bucket_start) AS starts_at, SUM(r.stamp) AS stamp
        FROM alicia_session_stats_stamps AS r
        CROSS JOIN (VALUES (1, 'hour'::TEXT), (24, 'day'::TEXT)) AS u (hours, unit)
        WHERE r.bucket_start >= opens AND r.bucket_start < closes
        GROUP BY u.hours, DATE_TRUNC(u.unit, r.bucket_start)
    ),

    summarized AS MATERIALIZED (
        SELECT
            s.metric,
            s.hours,
            s.starts_at,
            s.stamp,
            (
                SELECT SUM(HASHINT4(v.counted_value)::BIGINT * v.sessions)
                FROM UNNEST(s.counted_values, s.sessions) AS v (counted_value, sessions)
            ) AS hashes
        FROM alicia_session_stats_summaries AS s
        -- The first two are always true, and let the primary key find the window.
        WHERE s.metric IN ('messages'::TEXT, 'tool_calls'::TEXT, 'memories'::TEXT, 'seconds'::TEXT, 'from_seconds'::TEXT)
            AND s.hours IN (1, 24) AND s.starts_at >= opens AND s.starts_at < closes
    )

    SELECT 'quarter hours'::TEXT, d.bucket_start, 0, d.sessions, d.messages, d.tool_calls, d.memories, d.seconds
    FROM differing AS d
    WHERE (d.sessions, d.messages, d.tool_calls, d.memories, d.seconds) <> (0, 0, 0, 0, 0)
    UNION ALL
    SELECT 'top sessions'::TEXT, opens, 0, SUM(c.top_sessions)::BIGINT - listed, 0, 0, 0, 0
    FROM counted AS c
    HAVING SUM(c.top_sessions)::BIGINT > listed
    UNION ALL
    -- A summary whose stamp does not agree is not read.
    SELECT DISTINCT 'summaries'::TEXT, s.starts_at, s.hours, 0, 0, 0, 0, 0
    FROM summarized AS s
    INNER JOIN stamped AS p ON p.hours = s.hours AND p.starts_at = s.starts_at AND p.stamp = s.stamp
    LEFT JOIN hashed AS h ON h.hours = s.hours AND h.starts_at = s.starts_at
    WHERE s.hashes IS DISTINCT FROM CASE s.metric
        WHEN 'messages'::TEXT THEN h.messages
        WHEN 'tool_calls'::TEXT THEN h.tool_calls
        WHEN 'memories'::TEXT THEN h.memories
        WHEN 'seconds'::TEXT THEN h.seconds
        ELSE h.from_seconds
    END;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_differences(TIMESTAMP, TIMESTAMP) IS
'Private: what the rollup lacks of the sessions of the days of a window. No row, unless a write bypassed the triggers.';

CREATE OR REPLACE FUNCTION alicia_session_stats_repair() RETURNS TABLE (object TEXT, corrections BIGINT)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = 500 -- Milliseconds. Without a unit, so that it is recorded as it has to be restored.
AS $function$
DECLARE
    lock_class CONSTANT INTEGER := 1634494819;
    repair_lock CONSTANT INTEGER := -2;
    no_slot CONSTANT INTEGER := 2147483647;
    list_size CONSTANT BIGINT := 1000;
    summaries BIGINT;
    step BIGINT;
    is_lowered BOOLEAN := FALSE;
    holders TEXT;
BEGIN
    IF CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%' THEN
        RAISE EXCEPTION 'alicia_session_stats_repair() must run under READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'SET default_transaction_isolation = ''read committed'';';
    END IF;
    -- Two repairs would both insert what is missing: the second must see the rows of the first.
    PERFORM PG_ADVISORY_XACT_LOCK(lock_class, repair_lock);

    -- One statement reads the sessions once and corrects the sums and the summaries. The sums get rows to be merged, so that
    -- no row is touched that a writer changes, and neither waits for the other. The setting tells the trigger on the rollup
    -- that these are not the rows of a dump.
    PERFORM SET_CONFIG('alicia_session_stats.is_repair', 'on', TRUE);
    WITH found AS (
        SELECT *
        FROM alicia_session_stats_differences(TIMESTAMP '-infinity', TIMESTAMP 'infinity')
    ),

    added AS (
        INSERT INTO alicia_session_stats_rollup
        SELECT
            f.starts_at,
            no_slot,
            CLOCK_TIMESTAMP() AT TIME ZONE 'UTC',
            NULL,
            f.sessions,
            f.messages,
            f.tool_calls,
            f.memories,
            f.seconds
        FROM found AS f
        WHERE f.kind = 'quarter hours'::TEXT
        ORDER BY f.starts_at
    ),

    deleted AS (
        DELETE FROM alicia_session_stats_summaries AS s
        USING found AS f
        WHERE f.kind = 'summaries'::TEXT AND s.hours = f.hours AND s.starts_at = f.starts_at
    )

    SELECT
        COUNT(*) FILTER (WHERE f.kind = 'quarter hours'::TEXT),
        COUNT(*) FILTER (WHERE f.kind = 'summaries'::TEXT)
    INTO corrections, summaries
    FROM found AS f;
    PERFORM SET_CONFIG('alicia_session_stats.is_repair', 'off', TRUE);
    object := 'quarter hours';
    RETURN NEXT;

    object := 'top sessions';
    INSERT INTO alicia_session_stats_top_cutoff
    SELECT 2147483647, TIMESTAMP 'infinity', '', NEXTVAL('alicia_session_stats_lowerings'::REGCLASS)
    WHERE NOT EXISTS (SELECT FROM alicia_session_stats_top_cutoff);
    GET DIAGNOSTICS corrections = ROW_COUNT;
    LOOP
        INSERT INTO alicia_session_stats_top_candidates
        SELECT s.message_count, s.created_at, s.id, s.conversation_id
        FROM alicia_session_stats AS s
        CROSS JOIN alicia_session_stats_top_cutoff AS t
        WHERE (s.message_count, s.created_at, s.id) >= (t.message_count, t.created_at, t.id)
            AND NOT EXISTS (
                SELECT FROM alicia_session_stats_top_candidates AS c
                WHERE c.message_count = s.message_count AND c.created_at = s.created_at
                    AND c.id = s.id AND c.conversation_id = s.conversation_id
            );
        GET DIAGNOSTICS step = ROW_COUNT;
        corrections := corrections + step;
        EXIT WHEN is_lowered
            OR (SELECT t.message_count FROM alicia_session_stats_top_cutoff AS t) < 0
            OR (SELECT COUNT(*) FROM alicia_session_stats_top_sessions) >= list_size / 2;

        -- So many top sessions were deleted that most_active_sessions may have to read the table: lower the cutoff.
        -- Writers that have read the old cutoff must commit first. Only here do writers wait.
        LOCK TABLE alicia_session_stats IN SHARE ROW EXCLUSIVE MODE;
        UPDATE alicia_session_stats_top_cutoff SET (message_count, created_at, id, lowerings) = (
            SELECT n.message_count, n.created_at, n.id, NEXTVAL('alicia_session_stats_lowerings'::REGCLASS)
            FROM (
                (
                    SELECT s.message_count, s.created_at, s.id
                    FROM alicia_session_stats AS s
                    ORDER BY s.message_count DESC, s.created_at DESC, s.id DESC
                    OFFSET list_size - 1 LIMIT 1
                )
                UNION ALL
                SELECT -1, TIMESTAMP '-infinity', ''
            ) AS n
            ORDER BY n.message_count DESC
            LIMIT 1
        );
        UPDATE alicia_session_stats_rollup AS r
        SET cutoff = t.message_count
        FROM alicia_session_stats_top_cutoff AS t
        WHERE r.cutoff > t.message_count;
        is_lowered := TRUE;
    END LOOP;
    RETURN NEXT;

    object := 'summaries';
    corrections := summaries;
    RETURN NEXT;
EXCEPTION WHEN lock_not_available THEN
    SELECT STRING_AGG(
        DISTINCT COALESCE(
            'prepared transaction ' || QUOTE_LITERAL(p.gid),
            FORMAT('pid %s (%s)', l.pid, COALESCE(NULLIF(a.application_name, ''), a.usename))
        ),
        ', '
    ) INTO holders
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a ON l.pid = a.pid
    LEFT JOIN pg_locks AS x
        ON l.pid IS NULL AND l.virtualtransaction = x.virtualtransaction AND x.locktype = 'transactionid'
    LEFT JOIN pg_prepared_xacts AS p ON x.transactionid = p.transaction
    WHERE l.granted AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = CURRENT_DATABASE())
        AND l.pid IS DISTINCT FROM PG_BACKEND_PID()
        AND (
            l.relation = 'alicia_session_stats'::REGCLASS AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
            OR l.locktype = 'advisory' AND l.classid = lock_class AND l.objid = (4294967296 + repair_lock)::BIGINT::OID
        );
    RAISE EXCEPTION 'the repair waited half a second for a lock on alicia_session_stats%', COALESCE(' that is held by ' || holders, '')
        USING ERRCODE = 'lock_not_available',
            HINT = 'End it, or COMMIT PREPARED or ROLLBACK PREPARED a prepared transaction, and run the repair again.';
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_repair() IS
'Repairs the rollup after writes that bypassed the triggers, or many deletions. Returns the number of corrections.';

DO $migration$
DECLARE
    window_of CONSTANT TEXT := 'timestamp without time zone,timestamp without time zone)';
BEGIN
    PERFORM alicia_session_stats_own('VIEW alicia_session_stats_parts');
    PERFORM alicia_session_stats_own('VIEW alicia_session_stats_stamps');
    PERFORM alicia_session_stats_own('VIEW alicia_session_stats_quarter_hours');
    PERFORM alicia_session_stats_own('VIEW alicia_session_stats_top_sessions');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_between(' || window_of);
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_conversations(tsmultirange)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_raise(text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_parse_time(text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_utc(text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_window_end(text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_is_time_zone(text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_start(text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_from_seconds(integer)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_differences(' || window_of);
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_repair()', is_closed => TRUE);

    -- Computes the sums of the existing sessions. Others see the views when this commits.
    PERFORM alicia_session_stats_repair();
END
$migration$;
