-- Distribute alicia_session_stats, its conversations and its sums over the workers of a Citus cluster.
--
-- Why: when one machine no longer takes the writes. Each conversation lives, with its sessions and their sums, on
--      one shard; every worker takes writes for its own. The rows that are there are moved, and the queries stay as
--      they are: they read the same tables and views.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats, alicia_conversations and the sums until every row is moved:
--        readers and writers wait. One transaction: a run that is killed has changed nothing. It waits half a
--        second for its locks; where that is too short, run it again.
-- Rollback: citus.rollback.sql. No session is lost.
--
-- psql -v ON_ERROR_STOP=1 -f scale/citus.sql
--
-- On the coordinator of a cluster with its workers added, in a database that is migrated. Where it has been run
-- already, it does nothing. The number of shards is citus.shard_count. Tried with Citus 13.2 on PostgreSQL 15.
--
-- How the sums stay exact. A trigger runs on each shard, in the transaction that writes, and appends what changes to
-- the counters' shard of the same hash range, which Citus keeps on the same worker: no network, and no row that two
-- writers share. Now and then it gathers what was appended, if nobody else is at it. bucket is some conversation_id
-- of the shard, so that Citus can move and split shards of the counters with those of the sessions. The leaders
-- are no longer kept: each worker sorts its own sessions, and the coordinator merges the first ones.
--
-- What Citus does not take:
-- * An id that is unique by itself: the primary key becomes (conversation_id, id). The 122 random bits of an id stay.
-- * A session that moves to another conversation: UPDATE of conversation_id is refused.
-- * rebuild_sessions, which Citus cannot plan, and delete_sessions_before, for FOR UPDATE SKIP LOCKED: both are
--   refused with an error, and change nothing. Delete old sessions with citus.purge.sql.
-- * record_activity finds its session by id alone, and so asks every shard. Where the application knows the
--   conversation, ask one: UPDATE alicia_session_stats SET ... WHERE conversation_id = 'ac_xxx' AND id = 'ass_xxx'.
-- * table_health shows the coordinator's empty tables, not the shards: see SELECT * FROM citus_tables.
-- * The rights of a view's owner: whoever reads alicia_session_stats_quarter_hours needs SELECT on
--   alicia_session_stats_shard_counters too; those who may read it now are granted that. And every role that reads or
--   writes must be able to log in at the workers.
-- * Splitting a shard while it is written: citus_split_shard_by_split_points needs 'block_writes'. Moving one does not,
--   where wal_level is logical.
-- * No snapshot spans the shards: each is exact at its own instant.
BEGIN;
SET LOCAL lock_timeout = '500ms';
-- Checked when a trigger is created or its table distributed, and only then: not when it fires.
SET LOCAL citus.enable_unsafe_triggers = on;
-- One connection to each worker, so that functions and tables can be created in the same transaction.
SET LOCAL citus.multi_shard_modify_mode = 'sequential';
SET LOCAL client_min_messages = warning;

DO $scale$
DECLARE
    replaced TEXT;
    conversations TEXT;
    readers TEXT[];
BEGIN
    IF TO_REGCLASS('pg_catalog.pg_dist_partition') IS NULL THEN
        RAISE EXCEPTION 'this database has no Citus'
            USING HINT = 'CREATE EXTENSION citus; then citus_set_coordinator_host() and citus_add_node() for each worker.';
    END IF;
    IF TO_REGCLASS('alicia_session_stats_leaders') IS NULL THEN
        RAISE EXCEPTION 'this database is not migrated' USING HINT = 'Run migrate first.';
    END IF;
    IF EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'TABLE alicia_session_stats_undistributed') THEN
        RETURN;
    END IF;
    LOCK TABLE alicia_conversations, alicia_session_stats, alicia_session_stats_counters IN ACCESS EXCLUSIVE MODE;

    -- What is replaced ------------------------------------------------------------------------------------

    CREATE TABLE alicia_session_stats_undistributed (
        step INTEGER CONSTRAINT alicia_session_stats_undistributed_pkey PRIMARY KEY,
        statement TEXT NOT NULL
    );

    COMMENT ON TABLE alicia_session_stats_undistributed IS
    'What scale/citus.sql replaced: the statements with which scale/citus.rollback.sql brings it back';
    COMMENT ON COLUMN alicia_session_stats_undistributed.step IS
    'Their order';
    COMMENT ON COLUMN alicia_session_stats_undistributed.statement IS
    'The statement, as it is executed';
    INSERT INTO alicia_session_stats_created VALUES ('TABLE alicia_session_stats_undistributed');

    -- Each shard asks for the reader's own rights on what a view reads, not for those of the view's owner.
    SELECT ARRAY_AGG(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END)
    INTO readers
    FROM pg_class AS c
    CROSS JOIN LATERAL ACLEXPLODE(c.relacl) AS g
    WHERE c.oid = 'alicia_session_stats_quarter_hours'::REGCLASS AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner;

    -- Comments last: they are on what the others create. PG_IDENTIFY_OBJECT writes what COMMENT ON takes.
    INSERT INTO alicia_session_stats_undistributed
    SELECT ROW_NUMBER() OVER (ORDER BY kind, statement), statement
    FROM (
        SELECT
            1 AS kind,
            FORMAT(
                'ALTER TABLE alicia_session_stats DROP CONSTRAINT %1$I, ADD CONSTRAINT %1$I %2$s',
                conname, PG_GET_CONSTRAINTDEF(oid)
            ) AS statement
        FROM pg_constraint
        WHERE conrelid = 'alicia_session_stats'::REGCLASS AND contype = 'p'
        UNION ALL
        SELECT 2, PG_GET_FUNCTIONDEF('alicia_session_stats_repair()'::REGPROCEDURE)
        UNION ALL
        SELECT 2, FORMAT('CREATE OR REPLACE VIEW %s AS %s', name, PG_GET_VIEWDEF(name))
        FROM UNNEST(ARRAY['alicia_session_stats_quarter_hours', 'alicia_session_stats_leaders']::REGCLASS[]) AS v (name)
        UNION ALL
        SELECT 3, PG_GET_TRIGGERDEF(oid)
        FROM pg_trigger
        WHERE tgrelid = 'alicia_session_stats'::REGCLASS AND tgname LIKE 'count\_session\_stats\_%'
        UNION ALL
        SELECT 4, FORMAT('COMMENT ON %s %s IS %L', o.type, o.identity, d.description)
        FROM pg_description AS d
        CROSS JOIN LATERAL PG_IDENTIFY_OBJECT(d.classoid, d.objoid, d.objsubid) AS o
        WHERE (d.classoid = 'pg_class'::REGCLASS AND d.objoid = 'alicia_session_stats_leaders'::REGCLASS AND d.objsubid = 0)
            OR (d.classoid = 'pg_trigger'::REGCLASS AND d.objoid IN (
                SELECT oid
                FROM pg_trigger
                WHERE tgrelid = 'alicia_session_stats'::REGCLASS AND tgname LIKE 'count\_session\_stats\_%'
            ))
    ) AS statements;

    -- While rows are moved, and the local ones removed, nothing may be counted.
    FOR replaced IN
        SELECT tgname FROM pg_trigger WHERE tgrelid = 'alicia_session_stats'::REGCLASS AND tgname LIKE 'count\_session\_stats\_%'
    LOOP
        EXECUTE FORMAT('DROP TRIGGER %I ON alicia_session_stats', replaced);
    END LOOP;

    -- What replaces it ------------------------------------------------------------------------------------

    -- For each statement, and on each shard that it writes to; the transition tables hold this shard's rows.
    CREATE FUNCTION alicia_session_stats_shard_counted() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $function$
    DECLARE
        counters TEXT := FORMAT('%I.alicia_session_stats_shard_counters', TG_TABLE_SCHEMA);
        changed CONSTANT TEXT := 'SELECT conversation_id, created_at, 1 AS sign, memories_used, session_duration_seconds, '
            'message_count, tool_call_count FROM new_rows';
        was CONSTANT TEXT := 'SELECT conversation_id, created_at, -1 AS sign, memories_used, session_duration_seconds, '
            'message_count, tool_call_count FROM old_rows';
        shard BIGINT;
        appended BIGINT;
    BEGIN
        -- The sibling is looked up by its hash range: after a split, the numbers of shards do not tell it.
        IF TG_TABLE_NAME <> 'alicia_session_stats' THEN
            SELECT c.shardid INTO STRICT shard
            FROM pg_dist_shard AS s
            INNER JOIN pg_dist_shard AS c USING (shardminvalue, shardmaxvalue)
            WHERE s.shardid = SUBSTRING(TG_TABLE_NAME FROM '_(\d+)$')::BIGINT AND c.logicalrelid = counters::REGCLASS;
            counters := FORMAT('%I.alicia_session_stats_shard_counters_%s', TG_TABLE_SCHEMA, shard);
        END IF;

        -- This one fires at the coordinator too, on the table itself.
        IF TG_OP = 'TRUNCATE' THEN
            EXECUTE 'DELETE FROM ' || counters;
            RETURN NULL;
        END IF;

        EXECUTE FORMAT(
            'INSERT INTO %s (bucket, quarter_hour, is_gathered, sessions, memories, active_seconds, messages, tool_calls) '
            'SELECT MIN(conversation_id), DATE_BIN(''15 minutes'', created_at, ''2000-01-01''), FALSE, SUM(sign), '
            'SUM(sign * memories_used::BIGINT), SUM(sign * session_duration_seconds::BIGINT), '
            'SUM(sign * message_count::BIGINT), SUM(sign * tool_call_count::BIGINT) FROM (%s) AS changes GROUP BY 2 '
            'HAVING (SUM(sign), SUM(sign * memories_used::BIGINT), SUM(sign * session_duration_seconds::BIGINT), '
            'SUM(sign * message_count::BIGINT), SUM(sign * tool_call_count::BIGINT)) <> (0, 0, 0, 0, 0)',
            counters, CASE TG_OP WHEN 'INSERT' THEN changed WHEN 'DELETE' THEN was ELSE changed || ' UNION ALL ' || was END
        );
        GET DIAGNOSTICS appended = ROW_COUNT;

        -- Whoever appends fifty rows gathers, and one in fifty of those who append one. Nobody waits: one at a time,
        -- and above read committed, where a row that another has gathered could not be deleted, not at all.
        IF RANDOM() * 50 < appended AND CURRENT_SETTING('transaction_isolation') LIKE 'read%'
            AND PG_TRY_ADVISORY_XACT_LOCK(1634494819, (shard & 2147483647)::INTEGER)
        THEN
            EXECUTE FORMAT(
                'WITH appended AS (DELETE FROM %1$s WHERE NOT is_gathered RETURNING *), '
                'gathered AS (DELETE FROM %1$s WHERE is_gathered AND quarter_hour IN (SELECT quarter_hour FROM appended) '
                'RETURNING *) '
                'INSERT INTO %1$s (bucket, quarter_hour, is_gathered, sessions, memories, active_seconds, messages, tool_calls) '
                'SELECT MIN(bucket), quarter_hour, TRUE, SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), '
                'SUM(tool_calls) FROM (SELECT * FROM appended UNION ALL SELECT * FROM gathered) AS parts GROUP BY quarter_hour '
                'HAVING (SUM(sessions), SUM(memories), SUM(active_seconds), SUM(messages), SUM(tool_calls)) <> (0, 0, 0, 0, 0)',
                counters
            );
        END IF;
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_shard_counted() IS
    'Trigger function: counts the changes of one shard of alicia_session_stats into the sums of the same shard';
    REVOKE EXECUTE ON FUNCTION alicia_session_stats_shard_counted() FROM PUBLIC;
    INSERT INTO alicia_session_stats_created VALUES ('FUNCTION alicia_session_stats_shard_counted()');

    -- Its owner, and who may call it, stay.
    EXECUTE FORMAT($create$
        CREATE OR REPLACE FUNCTION alicia_session_stats_repair() RETURNS TABLE (object TEXT, corrections BIGINT)
        LANGUAGE plpgsql
        SET search_path = pg_catalog, %I, %s, pg_temp
        AS $function$
        BEGIN
            -- Writers wait, on every node: no snapshot spans the shards.
            LOCK TABLE alicia_session_stats IN SHARE ROW EXCLUSIVE MODE;
            INSERT INTO alicia_session_stats_shard_counters (
                bucket, quarter_hour, is_gathered, sessions, memories, active_seconds, messages, tool_calls
            )
            SELECT quarter_hour::TEXT, quarter_hour, FALSE, sessions, memories, active_seconds, messages, tool_calls
            FROM alicia_session_stats_differences();
            object := 'quarter hours';
            GET DIAGNOSTICS corrections = ROW_COUNT;
            RETURN NEXT;
            object := 'leaders';
            corrections := 0;
            RETURN NEXT;
        END
        $function$
    $create$, CURRENT_SCHEMA(), (SELECT relnamespace::REGNAMESPACE FROM pg_class WHERE oid = 'alicia_session_stats'::REGCLASS));

    CREATE TABLE alicia_session_stats_shard_counters (
        bucket TEXT NOT NULL,
        quarter_hour TIMESTAMP NOT NULL,
        is_gathered BOOLEAN NOT NULL,
        sessions BIGINT NOT NULL,
        memories BIGINT NOT NULL,
        active_seconds BIGINT NOT NULL,
        messages BIGINT NOT NULL,
        tool_calls BIGINT NOT NULL
    );
    CREATE INDEX idx_session_stats_shard_counters ON alicia_session_stats_shard_counters (quarter_hour);
    CREATE INDEX idx_session_stats_appended ON alicia_session_stats_shard_counters (quarter_hour) WHERE NOT is_gathered;
    -- Without a key, by which Citus could move a shard while it is written.
    ALTER TABLE alicia_session_stats_shard_counters REPLICA IDENTITY FULL;

    COMMENT ON TABLE alicia_session_stats_shard_counters IS
    'Parts of the sums of alicia_session_stats, kept on each shard by its triggers. Times are UTC.';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.bucket IS
    'Text that hashes to the shard: a conversation_id of it';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.quarter_hour IS
    'Start of the quarter of an hour in which the sessions begin (UTC)';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.is_gathered IS
    'Whether the row is the shard''s one for its quarter of an hour, or was appended and is still to be gathered';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.sessions IS
    'Sessions, to be summed (may be negative in one row)';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.memories IS
    'Their memories_used, to be summed';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.active_seconds IS
    'Their session_duration_seconds, to be summed';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.messages IS
    'Their message_count, to be summed';
    COMMENT ON COLUMN alicia_session_stats_shard_counters.tool_calls IS
    'Their tool_call_count, to be summed';
    COMMENT ON INDEX idx_session_stats_shard_counters IS
    'The sums of a time window';
    COMMENT ON INDEX idx_session_stats_appended IS
    'The rows that are still to be gathered';
    INSERT INTO alicia_session_stats_created VALUES ('TABLE alicia_session_stats_shard_counters');

    -- What there is so far goes to any shard. What is added to it from now on is on the shard of the session.
    INSERT INTO alicia_session_stats_shard_counters
    SELECT
        quarter_hour::TEXT,
        quarter_hour,
        TRUE,
        SUM(sessions),
        SUM(memories),
        SUM(active_seconds),
        SUM(messages),
        SUM(tool_calls)
    FROM alicia_session_stats_quarter_hours
    GROUP BY quarter_hour;
    DELETE FROM alicia_session_stats_counters;
    DELETE FROM alicia_session_stats_candidates;

    -- The rows move -----------------------------------------------------------------------------------------

    SELECT conname INTO replaced FROM pg_constraint WHERE conrelid = 'alicia_session_stats'::REGCLASS AND contype = 'p';
    EXECUTE FORMAT('ALTER TABLE alicia_session_stats DROP CONSTRAINT %I', replaced);
    EXECUTE FORMAT('ALTER TABLE alicia_session_stats ADD CONSTRAINT %I PRIMARY KEY (conversation_id, id)', replaced);

    -- The parent first: its foreign key then is no obstacle. One that the host has distributed is taken as it is.
    SELECT CASE partmethod WHEN 'h' THEN 'alicia_conversations' ELSE 'default' END
    INTO conversations
    FROM pg_dist_partition
    WHERE logicalrelid = 'alicia_conversations'::REGCLASS;
    IF NOT FOUND THEN
        conversations := 'alicia_conversations';
        PERFORM CREATE_DISTRIBUTED_TABLE('alicia_conversations', 'id');
        INSERT INTO alicia_session_stats_undistributed VALUES
        (0, 'SELECT undistribute_table(''alicia_conversations'', cascade_via_foreign_keys => TRUE)');
    END IF;
    PERFORM CREATE_DISTRIBUTED_TABLE('alicia_session_stats', 'conversation_id', colocate_with => conversations);
    PERFORM CREATE_DISTRIBUTED_TABLE('alicia_session_stats_shard_counters', 'bucket', colocate_with => 'alicia_session_stats');
    PERFORM TRUNCATE_LOCAL_DATA_AFTER_DISTRIBUTING_TABLE(name)
    FROM UNNEST(
        ARRAY['alicia_session_stats', 'alicia_conversations', 'alicia_session_stats_shard_counters']::REGCLASS[]
    ) AS t (name)
    WHERE PG_RELATION_SIZE(name) > 0;

    IF readers IS NOT NULL THEN
        EXECUTE 'GRANT SELECT ON alicia_session_stats_shard_counters TO ' || ARRAY_TO_STRING(readers, ', ');
    END IF;

    CREATE OR REPLACE VIEW alicia_session_stats_quarter_hours AS
    SELECT quarter_hour, sessions, memories, active_seconds, messages, tool_calls
    FROM alicia_session_stats_shard_counters;

    CREATE OR REPLACE VIEW alicia_session_stats_leaders AS
    SELECT message_count, created_at, id, conversation_id FROM alicia_session_stats;

    COMMENT ON VIEW alicia_session_stats_leaders IS
    'Every session, while it is distributed: each worker sorts its own';

    CREATE TRIGGER count_session_stats_insert
    AFTER INSERT ON alicia_session_stats
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_shard_counted();

    CREATE TRIGGER count_session_stats_update
    AFTER UPDATE ON alicia_session_stats
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_shard_counted();

    CREATE TRIGGER count_session_stats_delete
    AFTER DELETE ON alicia_session_stats
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_shard_counted();

    CREATE TRIGGER count_session_stats_truncate
    AFTER TRUNCATE ON alicia_session_stats
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_shard_counted();

    COMMENT ON TRIGGER count_session_stats_insert ON alicia_session_stats IS
    'Counts new sessions into the sums of their shard';
    COMMENT ON TRIGGER count_session_stats_update ON alicia_session_stats IS
    'Counts changes of sessions into the sums of their shard';
    COMMENT ON TRIGGER count_session_stats_delete ON alicia_session_stats IS
    'Counts deleted sessions out of the sums of their shard';
    COMMENT ON TRIGGER count_session_stats_truncate ON alicia_session_stats IS
    'Empties the sums';
END
$scale$;
COMMIT;
