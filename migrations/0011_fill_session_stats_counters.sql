-- Count the sessions that were there before, and open the sums and leaders to the queries.
--
-- Why: apart from the triggers, so that reading a large table blocks nobody. What is missing is one statement,
--      so one snapshot: a session that is written meanwhile is counted by its writer, and by nobody else.
--      The views come with it, so that no query can read half the sums.
-- Locks: ACCESS SHARE on alicia_session_stats, which is read. It waits for the writers that have reserved sums, not
--        they for it.
-- Rollback: drops the views and the functions. No session is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    reader RECORD;
BEGIN
    IF EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'VIEW alicia_session_stats_leaders') THEN
        RETURN;
    END IF;

    CREATE VIEW alicia_session_stats_quarter_hours AS
    SELECT quarter_hour, sessions, memories, active_seconds, messages, tool_calls
    FROM alicia_session_stats_counters;

    COMMENT ON VIEW alicia_session_stats_quarter_hours IS
    'Sums of the sessions that begin in a quarter of an hour (UTC). In parts: there may be several rows for one.';

    CREATE VIEW alicia_session_stats_leaders AS
    SELECT c.message_count, c.created_at, c.id, c.conversation_id
    FROM alicia_session_stats_candidates AS c
    CROSS JOIN alicia_session_stats_floor AS f
    WHERE (c.message_count, c.created_at, c.id) >= (f.message_count, f.created_at, f.id);

    COMMENT ON VIEW alicia_session_stats_leaders IS
    'A thousand sessions or more with the most messages. Some are there twice; some are outdated: joined to alicia_session_stats on every column, they drop out.';

    -- Not a view: that would forbid the host to change the type of a column that it reads. Not in SQL: Citus does not plan that.
    CREATE FUNCTION alicia_session_stats_differences() RETURNS TABLE (
        quarter_hour TIMESTAMP, sessions NUMERIC, memories NUMERIC, active_seconds NUMERIC, messages NUMERIC, tool_calls NUMERIC
    )
    LANGUAGE plpgsql STABLE
    AS $function$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT
            quarter_hour,
            SUM(sessions),
            SUM(memories),
            SUM(active_seconds),
            SUM(messages),
            SUM(tool_calls)
        FROM (
            SELECT
                DATE_BIN('15 minutes', created_at::TIMESTAMP, '2000-01-01') AS quarter_hour,
                COUNT(*) AS sessions,
                SUM(memories_used) AS memories,
                SUM(session_duration_seconds) AS active_seconds,
                SUM(message_count) AS messages,
                SUM(tool_call_count) AS tool_calls
            FROM alicia_session_stats
            GROUP BY 1
            UNION ALL
            SELECT quarter_hour, -sessions, -memories, -active_seconds, -messages, -tool_calls
            FROM alicia_session_stats_quarter_hours
        ) AS parts
        GROUP BY quarter_hour
        HAVING (SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)) <> (0, 0, 0, 0, 0);
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_differences() IS
    'What the sums lack to be those of alicia_session_stats: no row, unless something was written past the triggers. Reads every session.';

    CREATE FUNCTION alicia_session_stats_repair() RETURNS TABLE (object TEXT, corrections BIGINT)
    LANGUAGE plpgsql
    AS $function$
    DECLARE
        step BIGINT;
        is_lowered BOOLEAN := FALSE;
    BEGIN
        -- Every first slot is reserved, so that writers go to the next ones. This waits for them, they do not for this.
        PERFORM PG_ADVISORY_XACT_LOCK(1634494819, stripe) FROM GENERATE_SERIES(0, 255) AS s (stripe);
        -- Inserted: no row that others change is touched.
        INSERT INTO alicia_session_stats_counters
        SELECT
            d.quarter_hour,
            CASE WHEN NOT EXISTS (
                SELECT FROM alicia_session_stats_counters AS c WHERE c.quarter_hour = d.quarter_hour AND c.slot = 0
            ) THEN 0 END,
            (SELECT f.message_count FROM alicia_session_stats_floor AS f),
            d.sessions,
            d.memories,
            d.active_seconds,
            d.messages,
            d.tool_calls
        FROM alicia_session_stats_differences() AS d
        ORDER BY d.quarter_hour;
        object := 'quarter hours';
        GET DIAGNOSTICS corrections = ROW_COUNT;
        RETURN NEXT;
        -- What changes of many sessions at once have left.
        PERFORM alicia_session_stats_count(quarter_hour, 0, 0, 0, 0, 0, may_gather => TRUE)
        FROM (SELECT quarter_hour FROM alicia_session_stats_counters GROUP BY quarter_hour HAVING COUNT(*) > 1) AS several;

        object := 'leaders';
        INSERT INTO alicia_session_stats_floor
        SELECT 2147483647, 'infinity', ''
        WHERE NOT EXISTS (SELECT FROM alicia_session_stats_floor);
        GET DIAGNOSTICS corrections = ROW_COUNT;
        LOOP
            INSERT INTO alicia_session_stats_candidates
            SELECT s.message_count, s.created_at, s.id, s.conversation_id
            FROM alicia_session_stats AS s
            CROSS JOIN alicia_session_stats_floor AS f
            WHERE (s.message_count, s.created_at, s.id) >= (f.message_count, f.created_at, f.id)
                AND NOT EXISTS (
                    SELECT FROM alicia_session_stats_candidates AS c
                    WHERE c.message_count = s.message_count AND c.created_at = s.created_at
                        AND c.id = s.id AND c.conversation_id = s.conversation_id
                );
            GET DIAGNOSTICS step = ROW_COUNT;
            corrections := corrections + step;
            EXIT WHEN is_lowered OR CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%'
                OR (SELECT message_count FROM alicia_session_stats_floor) < 0
                OR (
                    SELECT COUNT(DISTINCT id)
                    FROM alicia_session_stats_leaders
                    INNER JOIN alicia_session_stats USING (message_count, created_at, id, conversation_id)
                ) >= 500;

            -- So few are left, after all, that most_active_sessions may have to read the table: lower the floor.
            -- Writers that know the old one must be done, so here, and only here, they wait.
            LOCK TABLE alicia_session_stats IN SHARE ROW EXCLUSIVE MODE;
            UPDATE alicia_session_stats_floor SET (message_count, created_at, id) = (
                SELECT f.message_count, f.created_at, f.id
                FROM (
                    (
                        SELECT s.message_count, s.created_at, s.id
                        FROM alicia_session_stats AS s
                        ORDER BY s.message_count DESC, s.created_at DESC, s.id DESC
                        OFFSET 999 LIMIT 1
                    )
                    UNION ALL
                    SELECT -1, '-infinity', ''
                ) AS f
                ORDER BY f.message_count DESC
                LIMIT 1
            );
            UPDATE alicia_session_stats_counters AS c
            SET floor = f.message_count
            FROM alicia_session_stats_floor AS f
            WHERE c.floor > f.message_count;
            is_lowered := TRUE;
        END LOOP;
        RETURN NEXT;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_repair() IS
    'Makes the sums and candidates agree with alicia_session_stats again; tells how many did not';
    EXECUTE FORMAT(
        'ALTER FUNCTION alicia_session_stats_repair() SET search_path = pg_catalog, %I, %s, pg_temp', CURRENT_SCHEMA(),
        (SELECT relnamespace::REGNAMESPACE FROM pg_class WHERE oid = 'alicia_session_stats'::REGCLASS)
    );
    REVOKE EXECUTE ON FUNCTION alicia_session_stats_repair() FROM PUBLIC;

    PERFORM alicia_session_stats_repair();

    -- Whoever reads the sessions reads their sums.
    FOR reader IN
        SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END AS name
        FROM pg_class AS c
        CROSS JOIN LATERAL ACLEXPLODE(c.relacl) AS g
        WHERE c.oid = 'alicia_session_stats'::REGCLASS AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner
    LOOP
        EXECUTE FORMAT('GRANT SELECT ON alicia_session_stats_quarter_hours, alicia_session_stats_leaders TO %s', reader.name);
    END LOOP;

    INSERT INTO alicia_session_stats_created VALUES
    ('FUNCTION alicia_session_stats_differences()'),
    ('FUNCTION alicia_session_stats_repair()'),
    ('VIEW alicia_session_stats_quarter_hours'),
    ('VIEW alicia_session_stats_leaders');
END
$migration$;
