-- Drop the views on the sums and leaders, and the functions that compare and repair them.
--
-- Why: what they read is about to be dropped.
-- Locks: ACCESS EXCLUSIVE on the views for an instant.
-- Rollback: no session is lost; queries that read the sums no longer run.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    created TEXT;
BEGIN
    FOR created IN
        DELETE FROM alicia_session_stats_created
        WHERE object IN (
            'VIEW alicia_session_stats_leaders', 'VIEW alicia_session_stats_quarter_hours',
            'FUNCTION alicia_session_stats_differences()', 'FUNCTION alicia_session_stats_repair()'
        )
        RETURNING REPLACE(object, ' ', ' IF EXISTS ')
    LOOP
        EXECUTE 'DROP ' || created;
    END LOOP;
END
$migration$;
