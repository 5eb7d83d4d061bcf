-- Drop the tables that keep the sums of every quarter of an hour and the sessions with the most messages.
--
-- Why: nothing writes to them any more.
-- Locks: ACCESS EXCLUSIVE on these tables for an instant.
-- Rollback: no session is lost; the sums are computed from the sessions when this is migrated again.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    name TEXT;
BEGIN
    FOR name IN
        DELETE FROM alicia_session_stats_created
        WHERE object IN (
            'TABLE alicia_session_stats_counters', 'TABLE alicia_session_stats_candidates', 'TABLE alicia_session_stats_floor'
        )
        RETURNING SUBSTRING(object FROM 'TABLE (.*)')
    LOOP
        EXECUTE FORMAT('DROP TABLE IF EXISTS %I', name);
    END LOOP;
END
$migration$;
