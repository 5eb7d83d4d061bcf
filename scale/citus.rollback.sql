-- Bring alicia_session_stats, its conversations and its sums back from the workers to one machine.
--
-- Why: the way back of citus.sql, to what the migrations made. It can be distributed again.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats, alicia_conversations and the sums until every row is back:
--        readers and writers wait. One transaction: a run that is killed has changed nothing.
-- Rollback: citus.sql. No session is lost. Two conversations that came to hold the same session id stop it. With
--           alicia_conversations, every table comes back that foreign keys link to it, the host's too; where the
--           host had distributed it before citus.sql, it stops: undistribute that first.
--
-- psql -v ON_ERROR_STOP=1 -f scale/citus.rollback.sql
--
-- On the coordinator, whose disk must hold every row. Where nothing is distributed, it does nothing.
BEGIN;
SET LOCAL lock_timeout = '500ms';
SET LOCAL citus.enable_unsafe_triggers = on;
SET LOCAL citus.multi_shard_modify_mode = 'sequential';
-- That a view stays on the coordinator is as it should be.
SET LOCAL client_min_messages = error;

DO $scale$
DECLARE
    -- What Citus loses of the tables that it brings back, and of the views on them: the comments, and the views' grants.
    -- PG_IDENTIFY_OBJECT writes what COMMENT ON takes, but for "table column" and "table constraint".
    remarks CONSTANT TEXT := $query$
        SELECT FORMAT('COMMENT ON %s %s IS %L', REPLACE(o.type, 'table c', 'c'), o.identity, d.description) AS remark
        FROM pg_description AS d
        CROSS JOIN LATERAL PG_IDENTIFY_OBJECT(d.classoid, d.objoid, d.objsubid) AS o
        WHERE d.classoid IN ('pg_class'::REGCLASS, 'pg_constraint'::REGCLASS, 'pg_trigger'::REGCLASS)
            AND o.identity NOT LIKE 'pg\_catalog.%'
        UNION
        SELECT FORMAT(
            'GRANT %s ON %s TO %s%s', g.privilege_type, c.oid::REGCLASS,
            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END,
            CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        FROM pg_class AS c
        CROSS JOIN LATERAL ACLEXPLODE(c.relacl) AS g
        WHERE c.relkind = 'v' AND c.relnamespace <> 'pg_catalog'::REGNAMESPACE AND g.grantee <> c.relowner
    $query$;
    kept TEXT[];
    statement TEXT;
BEGIN
    IF NOT EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'TABLE alicia_session_stats_undistributed') THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM alicia_session_stats_undistributed WHERE step = 0) THEN
        RAISE EXCEPTION 'alicia_conversations was distributed before alicia_session_stats, and not by this package'
            USING HINT = 'Undistribute it, with what refers to it; then INSERT INTO alicia_session_stats_undistributed '
                'VALUES (0, ''SELECT''), and run this again.';
    END IF;
    LOCK TABLE alicia_conversations, alicia_session_stats, alicia_session_stats_shard_counters IN ACCESS EXCLUSIVE MODE;

    FOR statement IN
        SELECT FORMAT('DROP TRIGGER %I ON alicia_session_stats', tgname)
        FROM pg_trigger
        WHERE tgrelid = 'alicia_session_stats'::REGCLASS AND tgname LIKE 'count\_session\_stats\_%'
    LOOP
        EXECUTE statement;
    END LOOP;
    DROP FUNCTION alicia_session_stats_shard_counted();

    EXECUTE FORMAT('SELECT ARRAY_AGG(remark) FROM (%s) AS r', remarks) INTO kept;
    SELECT u.statement INTO statement FROM alicia_session_stats_undistributed AS u WHERE u.step = 0;
    EXECUTE statement;
    -- Not dropped yet: as long as it is distributed, Citus does not let its view read another table.
    PERFORM UNDISTRIBUTE_TABLE('alicia_session_stats_shard_counters');
    FOR statement IN EXECUTE 'SELECT UNNEST($1) EXCEPT (' || remarks || ')' USING kept LOOP
        EXECUTE statement;
    END LOOP;

    FOR statement IN
        SELECT u.statement FROM alicia_session_stats_undistributed AS u WHERE u.step > 0 ORDER BY u.step
    LOOP
        EXECUTE statement;
    END LOOP;
    DROP TABLE alicia_session_stats_undistributed;
    DROP TABLE alicia_session_stats_shard_counters;
    DELETE FROM alicia_session_stats_created
    WHERE object IN (
        'TABLE alicia_session_stats_undistributed', 'TABLE alicia_session_stats_shard_counters',
        'FUNCTION alicia_session_stats_shard_counted()'
    );

    -- No candidate and the highest floor: repair lowers it to the thousandth session, and counts all.
    UPDATE alicia_session_stats_floor SET message_count = 2147483647;
    PERFORM alicia_session_stats_repair();
END
$scale$;
COMMIT;
