-- Distribute alicia_session_stats, its conversations and its rollup over the workers of a Citus cluster.
--
-- Why: one machine no longer takes the writes. Each conversation lives on one shard, with its sessions and their part
--      of the rollup. The existing rows move to the workers. The queries stay as they are.
-- How: on each shard, a trigger appends the change of a statement to the shard of alicia_session_stats_shard_rollup
--      with the same hash range, which Citus keeps on the same worker: no network, and no row that two writers share.
--      One write in fifty merges the appended rows. The top sessions are not kept: each worker sorts its sessions, and
--      the coordinator merges the first ones. alicia_session_stats_undistributed keeps the records of what is replaced.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats, alicia_conversations, the rollup and its views until every row has
--        moved: readers and writers wait. It is one transaction: if it is interrupted, nothing has changed. It waits half
--        a second for each lock, then fails before any row has moved; run it again. A query that waits in
--        alicia_session_stats_between() when it commits may fail once; its answer is never wrong.
-- Rollback: citus.rollback.sql, also before a migration is rolled back. No session is lost.
--
-- psql -v ON_ERROR_STOP=1 -f scale/citus.sql
--
-- Run it on the coordinator, after adding the workers, in a migrated database. A second run does nothing. README.md has
-- the set-up of the nodes, and what is different on Citus. Tested with Citus 13.2 on PostgreSQL 15. Variables:
--     without_workers   on: distribute without workers, all shards on the coordinator (off)
\if :{?without_workers}
\else
\set without_workers off
\endif
BEGIN;
SET LOCAL lock_timeout = '500ms';
-- Citus checks this when a trigger is created or its table is distributed, not when the trigger fires.
SET LOCAL citus.enable_unsafe_triggers = on;
-- One connection per worker, so that one transaction can create functions and tables.
SET LOCAL citus.multi_shard_modify_mode = 'sequential';
SET LOCAL client_min_messages = warning;
-- A DO block cannot read a psql variable.
SET LOCAL alicia_session_stats.without_workers = :'without_workers';

DO $scale$
DECLARE
    primary_key CONSTANT TEXT := 'CONSTRAINT alicia_session_stats_pkey ON alicia_session_stats';
    readers TEXT;
    referring TEXT;
    colocated TEXT;
    statement TEXT;
BEGIN
    IF TO_REGCLASS('pg_catalog.pg_dist_partition') IS NULL THEN
        RAISE EXCEPTION 'this database has no Citus'
            USING HINT = 'CREATE EXTENSION citus; then citus_set_coordinator_host(), and citus_add_node() for each worker.';
    END IF;
    IF TO_REGPROCEDURE('alicia_session_stats_attached_gap()') IS NULL THEN
        RAISE EXCEPTION 'this database is not migrated, or not by this release' USING HINT = 'Run migrate first.';
    END IF;
    IF EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'TABLE alicia_session_stats_undistributed') THEN
        RETURN;
    END IF;
    IF alicia_session_stats_attached_gap() IS NOT NULL THEN
        RAISE EXCEPTION 'sessions are recorded live, which does not work on Citus'
            USING HINT = 'Run detach first, and let the application record. The sessions stay.';
    END IF;
    IF NOT CURRENT_SETTING('alicia_session_stats.without_workers')::BOOLEAN
        AND NOT EXISTS (SELECT FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards AND groupid > 0)
    THEN
        RAISE EXCEPTION 'the cluster has no worker, so that every shard would be on the coordinator'
            USING HINT = 'Add workers with citus_add_node(), or run psql with -v without_workers=on.';
    END IF;
    IF (SELECT relrowsecurity FROM pg_class WHERE oid = 'alicia_session_stats'::REGCLASS) THEN
        RAISE EXCEPTION 'alicia_session_stats has row-level security, and on Citus its readers would read sums of every session'
            USING HINT = 'Workers check the privileges of the reader, who must be granted SELECT on the sums themselves.';
    END IF;
    -- A local table's foreign key would look for the conversations on the coordinator, where there are none any more.
    SELECT STRING_AGG(DISTINCT c.conrelid::REGCLASS::TEXT, ', ') INTO referring
    FROM pg_constraint AS c
    WHERE c.contype = 'f' AND c.confrelid = 'alicia_conversations'::REGCLASS AND c.conrelid <> 'alicia_session_stats'::REGCLASS
        AND NOT EXISTS (SELECT FROM pg_dist_partition AS p WHERE p.logicalrelid = c.conrelid AND p.partmethod = 'h');
    IF referring IS NOT NULL THEN
        RAISE EXCEPTION 'foreign keys link tables that are not distributed to alicia_conversations: %', referring
            USING HINT = 'Distribute alicia_conversations and these by the conversation, or drop their foreign keys.';
    END IF;
    -- The views first, as their readers do: a reader that holds a view and waits for its table would deadlock with the
    -- replacement of the view, after every row was moved. LOCK TABLE also locks what a view reads, down to the tables.
    LOCK TABLE alicia_session_stats_quarter_hours, alicia_session_stats_top_sessions, alicia_conversations
    IN ACCESS EXCLUSIVE MODE;

    -- Keep the records of what is replaced -----------------------------------------------------------------

    CREATE TABLE alicia_session_stats_undistributed (LIKE alicia_session_stats_owned_objects INCLUDING ALL);

    COMMENT ON TABLE alicia_session_stats_undistributed IS
    'Private: records of what scale/citus.sql replaced, for scale/citus.rollback.sql to restore';
    PERFORM alicia_session_stats_own('TABLE alicia_session_stats_undistributed', is_closed => TRUE);

    INSERT INTO alicia_session_stats_undistributed
    SELECT *
    FROM alicia_session_stats_owned_objects
    WHERE object ~ '^TRIGGER rollup_session_stats_'
        OR object ~ '^(VIEW|FUNCTION) alicia_session_stats_(parts|top_sessions|between|value_counts|open_at|repair)\M'
    UNION ALL
    -- The primary key of an adopted table is not in the record.
    SELECT object, definition, comment, FALSE, 0
    FROM alicia_session_stats_catalog()
    WHERE object ~ '^CONSTRAINT .* ON alicia_session_stats$' AND definition ~ '^PRIMARY KEY';

    -- Distribute the tables --------------------------------------------------------------------------------

    CREATE TABLE alicia_session_stats_shard_rollup (
        shard_key TEXT NOT NULL,
        bucket_start TIMESTAMP NOT NULL,
        is_merged BOOLEAN NOT NULL,
        sessions BIGINT NOT NULL,
        messages BIGINT NOT NULL,
        tool_calls BIGINT NOT NULL,
        memories BIGINT NOT NULL,
        seconds BIGINT NOT NULL
    );
    CREATE INDEX idx_session_stats_shard_rollup ON alicia_session_stats_shard_rollup (bucket_start);
    CREATE INDEX idx_session_stats_shard_appended ON alicia_session_stats_shard_rollup (bucket_start) WHERE NOT is_merged;
    -- It has no key, and Citus moves a shard by logical replication.
    ALTER TABLE alicia_session_stats_shard_rollup REPLICA IDENTITY FULL;

    COMMENT ON TABLE alicia_session_stats_shard_rollup IS
    'Private: sums of each shard of alicia_session_stats, in parts, kept by triggers. Read alicia_session_stats_quarter_hours instead.';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.shard_key IS
    'Distribution column: a conversation_id of the shard';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.bucket_start IS
    'Start of the quarter of an hour in which the sessions start (UTC)';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.is_merged IS
    'false: a writer appended the row, and it waits to be merged';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.sessions IS
    'Number of sessions (one row''s may be negative)';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.messages IS
    'Sum of message_count';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.tool_calls IS
    'Sum of tool_call_count';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.memories IS
    'Sum of memories_used';
    COMMENT ON COLUMN alicia_session_stats_shard_rollup.seconds IS
    'Sum of session_duration_seconds (seconds)';
    COMMENT ON INDEX idx_session_stats_shard_rollup IS
    'The sums of a time window';
    COMMENT ON INDEX idx_session_stats_shard_appended IS
    'The rows that wait to be merged';

    -- The existing sums may be on any shard.
    INSERT INTO alicia_session_stats_shard_rollup
    SELECT bucket_start::TEXT, bucket_start, TRUE, sessions, messages, tool_calls, memories, seconds
    FROM alicia_session_stats_quarter_hours;

    -- Moving the rows must not fire the triggers.
    FOR statement IN SELECT 'DROP ' || object FROM alicia_session_stats_undistributed WHERE object LIKE 'TRIGGER %' LOOP
        EXECUTE statement;
    END LOOP;
    DELETE FROM alicia_session_stats_rollup;
    DELETE FROM alicia_session_stats_top_candidates;
    UPDATE alicia_session_stats_top_cutoff SET message_count = 2147483647, created_at = 'infinity';

    SELECT FORMAT('ALTER TABLE alicia_session_stats DROP CONSTRAINT %I', conname) INTO statement
    FROM pg_constraint
    WHERE conrelid = 'alicia_session_stats'::REGCLASS AND contype = 'p';
    EXECUTE statement;
    ALTER TABLE alicia_session_stats ADD CONSTRAINT alicia_session_stats_pkey PRIMARY KEY (conversation_id, id);

    -- Conversations first, since the sessions refer to them; unless the application has distributed them.
    SELECT CASE partmethod WHEN 'h' THEN 'alicia_conversations' ELSE 'default' END INTO colocated
    FROM pg_dist_partition
    WHERE logicalrelid = 'alicia_conversations'::REGCLASS;
    IF colocated IS NULL THEN
        PERFORM CREATE_DISTRIBUTED_TABLE('alicia_conversations', 'id');
    END IF;
    PERFORM CREATE_DISTRIBUTED_TABLE(
        'alicia_session_stats', 'conversation_id', colocate_with => COALESCE(colocated, 'alicia_conversations')
    );
    PERFORM CREATE_DISTRIBUTED_TABLE('alicia_session_stats_shard_rollup', 'shard_key', colocate_with => 'alicia_session_stats');
    PERFORM TRUNCATE_LOCAL_DATA_AFTER_DISTRIBUTING_TABLE(name)
    FROM UNNEST(ARRAY['alicia_session_stats', 'alicia_conversations', 'alicia_session_stats_shard_rollup']::REGCLASS[]) AS t (name)
    WHERE PG_RELATION_SIZE(name) > 0;

    SELECT grantees INTO readers FROM alicia_session_stats_catalog() WHERE object = 'VIEW alicia_session_stats_quarter_hours';
    IF readers IS NOT NULL THEN
        EXECUTE 'GRANT SELECT ON alicia_session_stats_shard_rollup TO ' || readers;
    END IF;

    -- Replace what reads and writes them -------------------------------------------------------------------

    -- Fires for each statement on each shard; the transition tables hold the rows of the shard.
    CREATE FUNCTION alicia_session_stats_on_shard_change() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $function$
    DECLARE
        lock_class CONSTANT INTEGER := 1634494819;
        merge_share CONSTANT FLOAT8 := 0.02;
        sums CONSTANT TEXT := 'SUM(sessions), SUM(messages), SUM(tool_calls), SUM(memories), SUM(seconds)';
        changes CONSTANT TEXT := 'SELECT conversation_id AS shard_key, alicia_session_stats_bucket(created_at) AS bucket_start, '
            '%1$s AS sessions, %1$s * message_count::BIGINT AS messages, %1$s * tool_call_count::BIGINT AS tool_calls, '
            '%1$s * memories_used::BIGINT AS memories, %1$s * session_duration_seconds::BIGINT AS seconds FROM %2$s';
        inserted CONSTANT TEXT := FORMAT(changes, 1, 'new_rows');
        deleted CONSTANT TEXT := FORMAT(changes, -1, 'old_rows');
        shard BIGINT;
        rollup TEXT;
        appended BIGINT;
    BEGIN
        -- TRUNCATE fires on the coordinator, and also on a shard that Citus has moved.
        IF TG_OP = 'TRUNCATE' THEN
            IF TG_RELID = 'alicia_session_stats'::REGCLASS THEN
                TRUNCATE alicia_session_stats_shard_rollup;
            END IF;
            RETURN NULL;
        END IF;

        -- The rollup's shard is found by its hash range: after a split, the numbers of the shards do not match.
        SELECT r.shardid, SHARD_NAME(r.logicalrelid, r.shardid) INTO STRICT shard, rollup
        FROM pg_dist_shard AS s
        INNER JOIN pg_dist_shard AS r ON r.shardminvalue = s.shardminvalue AND r.shardmaxvalue = s.shardmaxvalue
        WHERE s.shardid = SUBSTRING(TG_TABLE_NAME FROM '_(\d+)$')::BIGINT
            AND r.logicalrelid = 'alicia_session_stats_shard_rollup'::REGCLASS;

        EXECUTE FORMAT(
            'INSERT INTO %1$s SELECT MIN(shard_key), bucket_start, FALSE, %2$s FROM (%3$s) AS changes '
            'GROUP BY bucket_start HAVING (%2$s) <> (0, 0, 0, 0, 0)',
            rollup, sums,
            CASE TG_OP WHEN 'INSERT' THEN inserted WHEN 'DELETE' THEN deleted ELSE inserted || ' UNION ALL ' || deleted END
        );
        GET DIAGNOSTICS appended = ROW_COUNT;

        -- One transaction merges at a time, while the others append: no writer waits. Under REPEATABLE READ, deleting a
        -- row that was merged concurrently would fail.
        IF RANDOM() < merge_share * appended AND CURRENT_SETTING('transaction_isolation') LIKE 'read%'
            AND PG_TRY_ADVISORY_XACT_LOCK(lock_class, (shard & 2147483647)::INTEGER)
        THEN
            EXECUTE FORMAT(
                'WITH appended AS (DELETE FROM %1$s WHERE NOT is_merged RETURNING *), '
                'merged AS (DELETE FROM %1$s WHERE is_merged AND bucket_start IN (SELECT bucket_start FROM appended) RETURNING *) '
                'INSERT INTO %1$s SELECT MIN(shard_key), bucket_start, TRUE, %2$s '
                'FROM (SELECT * FROM appended UNION ALL SELECT * FROM merged) AS parts '
                'GROUP BY bucket_start HAVING (%2$s) <> (0, 0, 0, 0, 0)',
                rollup, sums
            );
        END IF;
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_on_shard_change() IS
    'Private: trigger function that adds the changes of a shard of alicia_session_stats to the same shard of the rollup';
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_on_shard_change()', is_closed => TRUE);
    -- If the extension is newer than the migrations, the workers do not have these functions yet. Workers call them in the
    -- trigger and in the conditions of the named queries.
    PERFORM CREATE_DISTRIBUTED_FUNCTION(('alicia_session_stats_' || name)::REGPROCEDURE)
    FROM UNNEST(ARRAY[
        'bucket(timestamp)', 'raise(text,text)', 'parse_time(text,text)', 'utc(text,text)', 'window_end(text,text)',
        'is_time_zone(text)', 'from_seconds(integer)'
    ]) AS name;

    CREATE TRIGGER rollup_session_stats_insert
    AFTER INSERT ON alicia_session_stats
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_shard_change();

    CREATE TRIGGER rollup_session_stats_update
    AFTER UPDATE ON alicia_session_stats
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_shard_change();

    CREATE TRIGGER rollup_session_stats_delete
    AFTER DELETE ON alicia_session_stats
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_shard_change();

    CREATE TRIGGER rollup_session_stats_truncate
    AFTER TRUNCATE ON alicia_session_stats
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_shard_change();

    CREATE OR REPLACE VIEW alicia_session_stats_parts AS
    SELECT bucket_start, sessions, messages, tool_calls, memories, seconds
    FROM alicia_session_stats_shard_rollup;

    CREATE OR REPLACE VIEW alicia_session_stats_top_sessions AS
    SELECT message_count, created_at, id, conversation_id, tool_call_count, memories_used, session_duration_seconds
    FROM alicia_session_stats;

    COMMENT ON VIEW alicia_session_stats_top_sessions IS
    'Every session, while the table is distributed: each worker sorts its own. Times are UTC.';

    -- The same statement in PL/pgSQL: Citus cannot plan an SQL function that reads distributed tables. VOLATILE, so that a
    -- call that waits for citus.rollback.sql takes its snapshot after the wait: an older one would show empty tables.
    SELECT FORMAT(
        'CREATE OR REPLACE FUNCTION %s(%s) RETURNS %s LANGUAGE plpgsql VOLATILE AS %L',
        proname, PG_GET_FUNCTION_ARGUMENTS(oid), PG_GET_FUNCTION_RESULT(oid), 'BEGIN RETURN QUERY ' || prosrc || '; END'
    ) INTO statement
    FROM pg_proc
    WHERE oid = 'alicia_session_stats_between(timestamp, timestamp)'::REGPROCEDURE;
    EXECUTE statement;

    -- There are no summaries: the workers read the sessions. EXECUTE, because Citus cannot plan these with parameters.
    DELETE FROM alicia_session_stats_summaries;

    CREATE OR REPLACE FUNCTION alicia_session_stats_value_counts(metric TEXT, since TIMESTAMP, until TIMESTAMP)
    RETURNS TABLE (sessions BIGINT, total NUMERIC, counted_values INTEGER[], sessions_up_to BIGINT[])
    LANGUAGE plpgsql ROWS 1
    AS $function$
    BEGIN
        RETURN QUERY EXECUTE FORMAT(
            'SELECT COALESCE(SUM(r.sessions), 0)::BIGINT, COALESCE(SUM(r.value * r.sessions), 0), '
            'ARRAY_AGG(r.value ORDER BY r.value), ARRAY_AGG(r.sessions_up_to ORDER BY r.value) '
            'FROM (SELECT c.value, c.sessions, SUM(c.sessions) OVER (ORDER BY c.value)::BIGINT AS sessions_up_to '
            'FROM (SELECT %s AS value, COUNT(*) AS sessions FROM alicia_session_stats '
            'WHERE created_at >= %L AND created_at < %L GROUP BY 1) AS c) AS r',
            CASE metric
                WHEN 'messages' THEN 'message_count'
                WHEN 'tool_calls' THEN 'tool_call_count'
                WHEN 'memories' THEN 'memories_used'
                WHEN 'seconds' THEN 'session_duration_seconds'
                WHEN 'from_seconds' THEN 'alicia_session_stats_from_seconds(session_duration_seconds)'
                ELSE 'NULL::INTEGER'
            END,
            since, until
        );
    END
    $function$;

    CREATE OR REPLACE FUNCTION alicia_session_stats_open_at(instant TIMESTAMP)
    RETURNS TABLE (started_at TIMESTAMP, ended_at TIMESTAMP)
    LANGUAGE plpgsql
    AS $function$
    BEGIN
        RETURN QUERY EXECUTE FORMAT(
            'SELECT created_at, created_at + MAKE_INTERVAL(secs => session_duration_seconds) FROM alicia_session_stats '
            'WHERE created_at < %1$L AND created_at + MAKE_INTERVAL(secs => session_duration_seconds) > %1$L',
            instant
        );
    END
    $function$;

    CREATE OR REPLACE FUNCTION alicia_session_stats_repair() RETURNS TABLE (object TEXT, corrections BIGINT)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = 500
    AS $function$
    BEGIN
        IF CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%' THEN
            RAISE EXCEPTION 'alicia_session_stats_repair() must run under READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
        END IF;
        -- Writers wait on every node, since no snapshot spans the shards.
        LOCK TABLE alicia_session_stats IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO alicia_session_stats_shard_rollup
        SELECT d.starts_at::TEXT, d.starts_at, FALSE, d.sessions, d.messages, d.tool_calls, d.memories, d.seconds
        FROM alicia_session_stats_differences(TIMESTAMP '-infinity', TIMESTAMP 'infinity') AS d
        WHERE d.kind = 'quarter hours'::TEXT;
        object := 'quarter hours';
        GET DIAGNOSTICS corrections = ROW_COUNT;
        RETURN NEXT;
        object := 'top sessions';
        corrections := 0;
        RETURN NEXT;
    END
    $function$;

    -- Record it --------------------------------------------------------------------------------------------

    FOR statement IN
        SELECT FORMAT('COMMENT ON %s IS %L', object, comment) FROM alicia_session_stats_undistributed WHERE object LIKE 'TRIGGER %'
    LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM alicia_session_stats_own(object, is_closed)
    FROM alicia_session_stats_undistributed
    WHERE object NOT LIKE 'CONSTRAINT %';
    PERFORM alicia_session_stats_own(primary_key);
    PERFORM alicia_session_stats_own('TABLE alicia_session_stats_shard_rollup', is_closed => readers IS NULL);
    PERFORM alicia_session_stats_own('INDEX idx_session_stats_shard_rollup');
    PERFORM alicia_session_stats_own('INDEX idx_session_stats_shard_appended');
    -- citus.rollback.sql does not bring back what the application has distributed.
    INSERT INTO alicia_session_stats_undistributed
    SELECT 'TABLE alicia_conversations', 'distributed by the application', NULL, FALSE, 0
    WHERE colocated IS NOT NULL;
END
$scale$;
COMMIT;
