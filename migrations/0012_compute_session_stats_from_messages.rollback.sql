-- Drop the functions that compute sessions from messages.
--
-- Why: taken back with the package. Sessions that they computed stay in the table.
-- Locks: none.
-- Rollback: refused while live/attach.sql is in effect, because every message would then fail; and while the
--           table is distributed, because scale/citus.sql has replaced what the earlier rollbacks drop.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    -- Only here, because no earlier migration is rolled back before this one.
    IF TO_REGCLASS('alicia_session_stats_undistributed') IS NOT NULL THEN
        RAISE EXCEPTION 'alicia_session_stats is distributed over the workers of a Citus cluster'
            USING HINT = 'Nothing was changed. Run scale/citus.rollback.sql first.';
    END IF;
    IF TO_REGPROCEDURE('alicia_session_stats_live_on_message()') IS NOT NULL THEN
        RAISE EXCEPTION 'sessions are recorded live: triggers on the application''s tables call what this rollback drops'
            USING ERRCODE = 'dependent_objects_still_exist', HINT = 'Run detach first, or psql -f live/detach.sql.';
    END IF;
END
$migration$;

SELECT alicia_session_stats_drop('FUNCTION alicia_session_stats_' || name)
FROM UNNEST(ARRAY[
    'rebuild(integer,integer)', 'source_problems(boolean)', 'source_tables()', 'attached_gap()', 'recompute(text[],integer)',
    'compare(text[],integer)', 'compute(text[],integer)',
    'session_id(text,timestamp without time zone)'
]) AS name;
