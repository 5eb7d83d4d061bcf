-- Bring alicia_session_stats, its conversations and its rollup back from the workers to one machine.
--
-- Why: the way back of citus.sql, to what the migrations created. The table can be distributed again.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats, alicia_conversations, the rollup and every view that reads them until
--        every row is back: readers and writers wait. It is one transaction: if it is interrupted, nothing has changed. It
--        waits half a second for each lock, then fails before any row has moved; run it again.
-- Rollback: citus.sql. No session is lost. It fails if two conversations hold the same session id. Every table that
--           foreign keys link to alicia_conversations comes back too, also those of the application. It refuses if the
--           application distributed alicia_conversations itself.
--
-- psql -v ON_ERROR_STOP=1 -f scale/citus.rollback.sql
--
-- Run it on the coordinator, whose disk must hold every row. Where nothing is distributed, it does nothing.

-- Citus warns of each view that is on the coordinator only.
SET client_min_messages = error;
-- Remove what moved or split shards left behind: its triggers use a function that is dropped below.
SELECT 'CALL citus_cleanup_orphaned_resources()' FROM pg_proc WHERE proname = 'citus_cleanup_orphaned_resources'
\gexec
BEGIN;
SET LOCAL lock_timeout = '500ms';
SET LOCAL citus.enable_unsafe_triggers = on;
SET LOCAL citus.multi_shard_modify_mode = 'sequential';

DO $scale$
DECLARE
    -- Citus creates the tables again, and the views that read them, without comments and without the views' grants.
    comments_and_grants CONSTANT TEXT := $query$
        SELECT FORMAT(
            'COMMENT ON %s %s IS %L', REGEXP_REPLACE(o.type, '.* (column|constraint)$', '\1'), o.identity, d.description
        )
        FROM pg_description AS d
        CROSS JOIN LATERAL PG_IDENTIFY_OBJECT(d.classoid, d.objoid, d.objsubid) AS o
        WHERE d.classoid IN ('pg_class'::REGCLASS, 'pg_constraint'::REGCLASS, 'pg_trigger'::REGCLASS) AND d.objoid >= 16384
        UNION
        SELECT FORMAT(
            'GRANT %s ON %s TO %s%s', g.privilege_type, c.oid::REGCLASS,
            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END,
            CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        FROM pg_class AS c
        CROSS JOIN LATERAL ACLEXPLODE(c.relacl) AS g
        WHERE c.relkind = 'v' AND c.oid >= 16384 AND g.grantee <> c.relowner
    $query$;
    before TEXT[];
    statement TEXT;
BEGIN
    IF NOT EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'TABLE alicia_session_stats_undistributed') THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM alicia_session_stats_undistributed WHERE object = 'TABLE alicia_conversations') THEN
        RAISE EXCEPTION 'the application distributed alicia_conversations, and the sessions come back only with it'
            USING HINT = 'DELETE FROM alicia_session_stats_undistributed WHERE object = ''TABLE alicia_conversations''; then run '
                'this again. It brings back every table that foreign keys link to alicia_conversations.';
    END IF;
    -- Citus replaces every view that reads a distributed table, by itself or through other views. The views are locked
    -- before the tables, the outermost first, as their readers do: a reader that holds a view and waits for its table
    -- would deadlock with the replacement of the view, after every row was moved. LOCK TABLE cannot do it, because it
    -- also locks what a view reads, before the next view. The statement below changes nothing.
    FOR statement IN
        WITH RECURSIVE readers AS (
            SELECT logicalrelid::OID AS relation, 0 AS depth FROM pg_dist_partition
            UNION
            SELECT w.ev_class, r.depth + 1
            FROM readers AS r
            INNER JOIN pg_depend AS d ON d.refclassid = 'pg_class'::REGCLASS AND d.refobjid = r.relation
            INNER JOIN pg_rewrite AS w ON d.classid = 'pg_rewrite'::REGCLASS AND d.objid = w.oid AND w.ev_class <> r.relation
        )

        SELECT FORMAT('ALTER VIEW %s OWNER TO %s', c.oid::REGCLASS, c.relowner::REGROLE)
        FROM readers AS r
        INNER JOIN pg_class AS c ON c.oid = r.relation AND c.relkind = 'v'
        GROUP BY c.oid
        ORDER BY MAX(r.depth) DESC
    LOOP
        EXECUTE statement;
    END LOOP;
    LOCK TABLE alicia_session_stats, alicia_conversations IN ACCESS EXCLUSIVE MODE;

    -- Moving the rows must not fire the triggers.
    FOR statement IN SELECT 'DROP ' || object FROM alicia_session_stats_undistributed WHERE object LIKE 'TRIGGER %' LOOP
        EXECUTE statement;
    END LOOP;

    EXECUTE FORMAT('SELECT ARRAY(%s)', comments_and_grants) INTO before;
    PERFORM UNDISTRIBUTE_TABLE('alicia_conversations', cascade_via_foreign_keys => TRUE);
    PERFORM UNDISTRIBUTE_TABLE('alicia_session_stats_shard_rollup');
    FOR statement IN EXECUTE FORMAT('SELECT UNNEST($1) EXCEPT (%s)', comments_and_grants) USING before LOOP
        EXECUTE statement;
    END LOOP;

    -- Restore what was replaced, and its records.
    PERFORM alicia_session_stats_drop('CONSTRAINT alicia_session_stats_pkey ON alicia_session_stats');
    INSERT INTO alicia_session_stats_owned_objects
    SELECT * FROM alicia_session_stats_undistributed
    ON CONFLICT (object) DO UPDATE SET definition = excluded.definition, comment = excluded.comment;
    PERFORM alicia_session_stats_restore(object) FROM alicia_session_stats_undistributed;
    -- The primary key of an adopted table is the application's.
    DELETE FROM alicia_session_stats_owned_objects
    WHERE object ~ '^CONSTRAINT .* ON alicia_session_stats$' AND definition ~ '^PRIMARY KEY'
        AND NOT EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'TABLE alicia_session_stats');
    PERFORM alicia_session_stats_drop('TABLE alicia_session_stats_shard_rollup');
    PERFORM alicia_session_stats_drop('FUNCTION alicia_session_stats_on_shard_change()');
    PERFORM alicia_session_stats_drop('TABLE alicia_session_stats_undistributed');
    -- Computes the rollup from the sessions.
    PERFORM alicia_session_stats_repair();
END
$scale$;
COMMIT;
