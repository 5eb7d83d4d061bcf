-- Define which sessions the application's messages make, and how the table is brought in line with them.
--
-- Why: rebuild_sessions and the triggers of live/attach.sql must give the same rows, so the rules stand here once. The
--      application's tables need not exist: their names are looked up when a function runs.
-- Locks: none.
-- Rollback: drops the functions. Refused while live/attach.sql is in effect, because its triggers call them.
SET LOCAL lock_timeout = '500ms';
-- The bodies name tables that may not exist yet.
SET LOCAL check_function_bodies = off;

-- STABLE, so that it is inlined: CONVERT_TO is not IMMUTABLE.
CREATE OR REPLACE FUNCTION alicia_session_stats_session_id(conversation TEXT, started_at TIMESTAMP) RETURNS TEXT
LANGUAGE sql STABLE PARALLEL SAFE
AS $function$
SELECT 'ass_'::TEXT || TRANSLATE(ENCODE(SUBSTR(SHA256(CONVERT_TO(
    conversation || ' '::TEXT || EXTRACT(EPOCH FROM started_at)::TEXT, 'UTF8'::NAME
)), 1, 16), 'base64'::TEXT), '+/='::TEXT, '-_'::TEXT)
$function$;

COMMENT ON FUNCTION alicia_session_stats_session_id(TEXT, TIMESTAMP) IS
'Private: the id of a session that is computed from messages. A row is a computed one while its id is that of its own conversation and start.';

CREATE OR REPLACE FUNCTION alicia_session_stats_compute(conversations TEXT[], gap_minutes INTEGER)
RETURNS TABLE (
    id TEXT, conversation_id TEXT, created_at TIMESTAMP, message_count INTEGER, tool_call_count INTEGER, memories_used INTEGER,
    session_duration_seconds INTEGER
)
LANGUAGE sql STABLE
AS $function$
WITH spaced_messages AS (
    SELECT
        m.id,
        m.conversation_id,
        m.created_at,
        -- The first, or at another instant and more than the gap later. LEAST, because the sum must not pass the last time
        -- of the type.
        PG_CATALOG.LAG(m.created_at) OVER conversation IS NULL
        OR m.created_at > PG_CATALOG.LAG(m.created_at) OVER conversation
        AND m.created_at > MAKE_INTERVAL(mins => alicia_session_stats_compute.gap_minutes) + LEAST(
            PG_CATALOG.LAG(m.created_at) OVER conversation,
            TIMESTAMP '294276-12-31 23:59:59.999999' - MAKE_INTERVAL(mins => alicia_session_stats_compute.gap_minutes)
        ) AS starts_session
    FROM alicia_messages AS m
    -- With the function's name, since the application's table may have columns of the parameters' names.
    WHERE m.deleted_at IS NULL AND m.conversation_id = ANY(alicia_session_stats_compute.conversations)
        -- Where alicia_conversations has no deleted_at, the name means that of the message, which is NULL.
        AND NOT EXISTS (SELECT FROM alicia_conversations AS c WHERE c.id = m.conversation_id AND deleted_at IS NOT NULL)
    WINDOW conversation AS (PARTITION BY m.conversation_id ORDER BY m.created_at)
),

-- A message belongs to the session that started last. Messages of the same instant are peers, so they stay together.
messages AS (
    SELECT
        s.id,
        s.conversation_id,
        s.created_at,
        MAX(s.created_at) FILTER (WHERE s.starts_session) OVER (PARTITION BY s.conversation_id ORDER BY s.created_at) AS started_at
    FROM spaced_messages AS s
),

-- One row for each thing to count.
events (conversation_id, started_at, last_at, messages, tool_calls, memories) AS (
    SELECT m.conversation_id, m.started_at, m.created_at, 1, 0, 0
    FROM messages AS m
    UNION ALL
    SELECT m.conversation_id, m.started_at, NULL, 0, 1, 0
    FROM messages AS m
    INNER JOIN alicia_tool_uses AS t ON t.message_id = m.id
    WHERE t.deleted_at IS NULL
    UNION ALL
    SELECT r.conversation_id, r.started_at, NULL, 0, 0, 1
    FROM (
        SELECT DISTINCT m.conversation_id, m.started_at, u.memory_id
        FROM messages AS m
        INNER JOIN alicia_memory_used AS u ON u.message_id = m.id
        WHERE u.deleted_at IS NULL AND u.memory_id IS NOT NULL
    ) AS r
)

SELECT
    alicia_session_stats_session_id(e.conversation_id, e.started_at),
    e.conversation_id,
    e.started_at,
    SUM(e.messages)::INTEGER,
    SUM(e.tool_calls)::INTEGER,
    SUM(e.memories)::INTEGER,
    CASE
        WHEN MAX(e.last_at) = e.started_at THEN 0
        ELSE LEAST(FLOOR(EXTRACT(EPOCH FROM MAX(e.last_at)) - EXTRACT(EPOCH FROM e.started_at)), 2147483647)::INTEGER
    END
FROM events AS e
GROUP BY e.conversation_id, e.started_at
$function$;

COMMENT ON FUNCTION alicia_session_stats_compute(TEXT[], INTEGER) IS
'Private: the sessions that the messages of these conversations make. A session ends where the next message is more than gap_minutes later.';

CREATE OR REPLACE FUNCTION alicia_session_stats_compare(conversations TEXT[], gap_minutes INTEGER)
RETURNS TABLE (
    action TEXT, id TEXT, conversation_id TEXT, created_at TIMESTAMP, message_count INTEGER, tool_call_count INTEGER,
    memories_used INTEGER, session_duration_seconds INTEGER
)
LANGUAGE sql STABLE
AS $function$
SELECT
    CASE
        WHEN n.id IS NULL THEN 'delete'
        WHEN s.id IS NOT NULL AND (s.message_count, s.tool_call_count, s.memories_used, s.session_duration_seconds)
            = (n.message_count, n.tool_call_count, n.memories_used, n.session_duration_seconds) THEN 'keep'
        WHEN s.id IS NOT NULL THEN 'update'
        WHEN EXISTS (SELECT FROM alicia_conversations AS c WHERE c.id = n.conversation_id) THEN 'insert'
        ELSE 'leave out'
    END,
    COALESCE(n.id, s.id),
    COALESCE(n.conversation_id, s.conversation_id),
    COALESCE(n.created_at, s.created_at),
    n.message_count,
    n.tool_call_count,
    n.memories_used,
    n.session_duration_seconds
FROM alicia_session_stats_compute(conversations, gap_minutes) AS n
-- Any other join might compare every session with every other while statistics are outdated.
FULL JOIN (
    SELECT r.*
    FROM alicia_session_stats AS r
    WHERE r.conversation_id = ANY(alicia_session_stats_compare.conversations) AND r.id = alicia_session_stats_session_id(r.conversation_id, r.created_at)
) AS s ON s.id = n.id
$function$;

COMMENT ON FUNCTION alicia_session_stats_compare(TEXT[], INTEGER) IS
'Private: the computed sessions of these conversations beside those in the table, and what to do with each';

CREATE OR REPLACE FUNCTION alicia_session_stats_recompute(conversations TEXT[], gap_minutes INTEGER)
RETURNS TABLE (inserted BIGINT, updated BIGINT, deleted BIGINT, unchanged BIGINT, orphaned BIGINT)
LANGUAGE plpgsql
-- A plan for one conversation is too slow for thousands, and the reverse.
SET plan_cache_mode = force_custom_plan
AS $function$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM alicia_session_stats_compare(conversations, gap_minutes) AS c
    ),

    inserted AS (
        INSERT INTO alicia_session_stats (
            id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at, updated_at
        )
        SELECT
            n.id, n.conversation_id, n.message_count, n.tool_call_count, n.memories_used, n.session_duration_seconds,
            n.created_at, NOW() AT TIME ZONE 'UTC'::TEXT
        FROM compared AS n
        WHERE n.action = 'insert'::TEXT
        -- In the order in which recording would have inserted them.
        ORDER BY n.created_at, n.id
        ON CONFLICT (id) DO NOTHING
        RETURNING id
    ),

    -- ON CONFLICT finds each row by its key, and its WHERE skips a row that is no longer a computed one.
    updated AS (
        INSERT INTO alicia_session_stats AS s (
            id, conversation_id, message_count, tool_call_count, memories_used, session_duration_seconds, created_at, updated_at
        )
        SELECT
            n.id, n.conversation_id, n.message_count, n.tool_call_count, n.memories_used, n.session_duration_seconds,
            n.created_at, NOW() AT TIME ZONE 'UTC'::TEXT
        FROM compared AS n
        WHERE n.action = 'update'::TEXT
        ON CONFLICT (id) DO UPDATE
        SET message_count = excluded.message_count,
            tool_call_count = excluded.tool_call_count,
            memories_used = excluded.memories_used,
            session_duration_seconds = excluded.session_duration_seconds
        WHERE s.conversation_id = excluded.conversation_id AND s.created_at = excluded.created_at
        RETURNING id
    ),

    deleted AS (
        DELETE FROM alicia_session_stats AS s
        WHERE s.id = ANY(ARRAY(SELECT n.id FROM compared AS n WHERE n.action = 'delete'::TEXT))
            AND s.id = alicia_session_stats_session_id(s.conversation_id, s.created_at)
        RETURNING id
    )

    SELECT
        (SELECT COUNT(*) FROM inserted),
        (SELECT COUNT(*) FROM updated),
        (SELECT COUNT(*) FROM deleted),
        COUNT(*) FILTER (WHERE n.action IN ('insert'::TEXT, 'update'::TEXT, 'keep'::TEXT))
        - (SELECT COUNT(*) FROM inserted) - (SELECT COUNT(*) FROM updated),
        COUNT(*) FILTER (WHERE n.action = 'leave out'::TEXT)
    FROM compared AS n;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_recompute(TEXT[], INTEGER) IS
'Private: brings the computed sessions of these conversations in line with their messages, and writes no other row';

CREATE OR REPLACE FUNCTION alicia_session_stats_attached_gap() RETURNS INTEGER
LANGUAGE sql STABLE
AS $function$
SELECT (REGEXP_MATCH(PG_GET_TRIGGERDEF(t.oid), '\(''(\d+)''\)$'))[1]::INTEGER
FROM pg_trigger AS t
INNER JOIN pg_proc AS f ON f.oid = t.tgfoid
WHERE f.oid = TO_REGPROCEDURE('alicia_session_stats_live_on_message()')
LIMIT 1
$function$;

COMMENT ON FUNCTION alicia_session_stats_attached_gap() IS
'Private: the gap in minutes with which live/attach.sql records sessions; NULL where it does not';

CREATE OR REPLACE FUNCTION alicia_session_stats_source_tables() RETURNS TABLE (name TEXT, relation REGCLASS)
LANGUAGE sql STABLE
AS $function$
SELECT t.name, COALESCE(v.relation, TO_REGCLASS(t.name))
FROM (
    VALUES ('alicia_conversations'::TEXT), ('alicia_messages'::TEXT), ('alicia_tool_uses'::TEXT), ('alicia_memory_used'::TEXT)
) AS t (name)
LEFT JOIN LATERAL (
    SELECT DISTINCT d.refobjid::REGCLASS AS relation
    FROM pg_rewrite AS r
    INNER JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::REGCLASS AND d.objid = r.oid
        AND d.refclassid = 'pg_class'::REGCLASS AND d.refobjid <> r.ev_class
    INNER JOIN pg_class AS c ON c.oid = r.ev_class AND c.relkind = 'v'::"char"
    WHERE r.ev_class = TO_REGCLASS(t.name)
) AS v ON TRUE
$function$;

COMMENT ON FUNCTION alicia_session_stats_source_tables() IS
'Private: the tables from which sessions are computed. Where a name is that of a view, relation is the table that it reads.';

CREATE OR REPLACE FUNCTION alicia_session_stats_source_problems(is_attaching BOOLEAN) RETURNS TEXT
LANGUAGE sql STABLE
AS $function$
WITH needed AS (
    SELECT n.*, s.relation
    FROM (
        VALUES
        (1, 'alicia_conversations', 'id', 'TEXT', '{text,varchar}'::REGTYPE[], TRUE, FALSE),
        (2, 'alicia_conversations', 'deleted_at', 'TIMESTAMP', '{timestamp}', FALSE, FALSE),
        (3, 'alicia_messages', 'id', 'TEXT', '{text,varchar}', TRUE, FALSE),
        (4, 'alicia_messages', 'conversation_id', 'TEXT', '{text,varchar}', TRUE, TRUE),
        (5, 'alicia_messages', 'created_at', 'TIMESTAMP', '{timestamp}', TRUE, FALSE),
        (6, 'alicia_messages', 'deleted_at', 'TIMESTAMP', '{timestamp}', TRUE, FALSE),
        (7, 'alicia_tool_uses', 'message_id', 'TEXT', '{text,varchar}', TRUE, TRUE),
        (8, 'alicia_tool_uses', 'deleted_at', 'TIMESTAMP', '{timestamp}', TRUE, FALSE),
        (9, 'alicia_memory_used', 'message_id', 'TEXT', '{text,varchar}', TRUE, TRUE),
        (10, 'alicia_memory_used', 'memory_id', 'TEXT', NULL, TRUE, FALSE),
        (11, 'alicia_memory_used', 'deleted_at', 'TIMESTAMP', '{timestamp}', TRUE, FALSE)
    ) AS n (position, name, attribute, wanted, types, is_required, is_foreign_key)
    INNER JOIN alicia_session_stats_source_tables() AS s ON s.name = n.name
    WHERE TO_REGCLASS(n.name) IS NOT NULL
)

SELECT STRING_AGG(p.problem, ', '::TEXT ORDER BY p.position)
FROM (
    SELECT
        n.position,
        FORMAT(
            '%s.%s must be %s and is %s', n.name, n.attribute, n.wanted, COALESCE(UPPER(FORMAT_TYPE(a.atttypid, NULL)), 'missing')
        ) AS problem
    FROM needed AS n
    LEFT JOIN pg_attribute AS a ON a.attrelid = TO_REGCLASS(n.name) AND a.attname = n.attribute
    WHERE CASE WHEN a.atttypid IS NULL THEN n.is_required ELSE a.atttypid <> ALL(n.types) END
    UNION ALL
    -- The triggers read the changed rows of the table under its view. Its times may have another type, and a use no deleted_at.
    SELECT n.position, FORMAT('%s.%s is missing, which %s reads under another name', n.relation, n.attribute, n.name)
    FROM needed AS n
    WHERE is_attaching AND n.relation <> TO_REGCLASS(n.name)
        AND (n.attribute IN ('conversation_id', 'message_id', 'memory_id') OR n.name = 'alicia_messages')
        AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = n.relation AND a.attname = n.attribute)
    UNION ALL
    -- So that a message has no tool use before it is inserted, and a conversation no message.
    SELECT n.position, FORMAT('%s has no foreign key on %s that is checked at once', n.relation, n.attribute)
    FROM needed AS n
    WHERE is_attaching AND n.is_foreign_key AND NOT EXISTS (
        SELECT FROM pg_constraint AS c
        INNER JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND ARRAY[a.attnum] = c.conkey
        WHERE c.conrelid = n.relation AND c.contype = 'f'::"char" AND NOT c.condeferrable AND a.attname = n.attribute
            AND TO_JSONB(c) ->> 'conenforced' IS DISTINCT FROM 'false'
    )
) AS p
$function$;

COMMENT ON FUNCTION alicia_session_stats_source_problems(BOOLEAN) IS
'Private: what the application''s tables lack for computing sessions, and if is_attaching for recording them live. NULL: nothing.';

CREATE OR REPLACE FUNCTION alicia_session_stats_rebuild(since_days INTEGER, gap_minutes INTEGER)
RETURNS TABLE (inserted BIGINT, updated BIGINT, deleted BIGINT, unchanged BIGINT, orphaned BIGINT)
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan
-- Compiling costs more than it saves. A row costs ten times the default, because where the tables are in memory, the default
-- makes a scan of all tool uses look cheaper than the look-ups for some thousand messages, which take a tenth of its time.
SET jit = off
SET cpu_tuple_cost = 0.1
AS $function$
#variable_conflict use_variable
DECLARE
    -- In the query below, the expression itself would be computed for each message.
    since CONSTANT TIMESTAMP := NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => since_days);
    live_gap CONSTANT INTEGER := alicia_session_stats_attached_gap();
    conversations TEXT[];
    differing TEXT[];
    right_before BIGINT;
    left_out BIGINT;
    problems CONSTANT TEXT := alicia_session_stats_source_problems(is_attaching => FALSE);
BEGIN
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'the application''s tables do not fit: %', problems
            USING ERRCODE = 'invalid_table_definition', HINT = 'For other names or types, see the views in live/unprefixed.sql.';
    END IF;
    IF live_gap <> gap_minutes THEN
        RAISE EXCEPTION 'sessions are recorded live with a gap of % minutes, and would be rebuilt with one of %', live_gap, gap_minutes
            USING ERRCODE = 'invalid_parameter_value', HINT = FORMAT('Set gap_minutes to %s.', live_gap);
    END IF;

    -- One rebuild at a time: two that write the same rows in different orders would deadlock.
    PERFORM PG_ADVISORY_XACT_LOCK(HASHTEXT('rebuild_sessions'), 'alicia_session_stats'::REGCLASS::OID::INTEGER);
    conversations := ARRAY(
        SELECT m.conversation_id FROM alicia_messages AS m WHERE m.created_at >= since OR m.deleted_at >= since
        UNION
        SELECT s.conversation_id FROM alicia_session_stats AS s WHERE s.created_at >= since
        UNION
        -- Where alicia_conversations has no deleted_at, the name means that of the outer row.
        SELECT c.id
        FROM (SELECT NULL::TIMESTAMP AS deleted_at) AS absent
        CROSS JOIN LATERAL (SELECT id FROM alicia_conversations WHERE deleted_at >= since) AS c
    );
    IF live_gap IS NULL THEN
        RETURN QUERY SELECT r.* FROM alicia_session_stats_recompute(conversations, gap_minutes) AS r;
        RETURN;
    END IF;

    -- Beside live recording: lock the conversations that differ, and no other, then compute them again.
    SELECT
        PG_CATALOG.ARRAY_AGG(DISTINCT c.conversation_id) FILTER (WHERE c.differs),
        COUNT(*) FILTER (WHERE c.action = 'keep' AND NOT c.differs),
        COUNT(*) FILTER (WHERE c.action = 'leave out')
    INTO differing, right_before, left_out
    FROM (
        SELECT
            d.action, d.conversation_id,
            BOOL_OR(d.action IN ('insert', 'update', 'delete')) OVER (PARTITION BY d.conversation_id) AS differs
        FROM alicia_session_stats_compare(conversations, gap_minutes) AS d
    ) AS c;
    IF differing IS NOT NULL THEN
        PERFORM alicia_session_stats_live_lock(differing);
        PERFORM alicia_session_stats_live_touch(differing);
    END IF;
    RETURN QUERY
    SELECT r.inserted, r.updated, r.deleted, r.unchanged + right_before, r.orphaned + left_out
    FROM alicia_session_stats_recompute(COALESCE(differing, '{}'), gap_minutes) AS r;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_rebuild(INTEGER, INTEGER) IS
'Private: what the query rebuild_sessions does, one at a time, also beside live recording';

SELECT alicia_session_stats_own('FUNCTION alicia_session_stats_' || created)
FROM UNNEST(ARRAY[
    'session_id(text,timestamp without time zone)', 'compute(text[],integer)', 'compare(text[],integer)',
    'recompute(text[],integer)', 'attached_gap()', 'source_tables()', 'source_problems(boolean)', 'rebuild(integer,integer)'
]) AS created;
