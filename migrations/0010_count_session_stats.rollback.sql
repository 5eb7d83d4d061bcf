-- Drop the triggers that count sessions into their sums and candidates, and their functions.
--
-- Why: what they count into is about to be dropped.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no session is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    created TEXT;
BEGIN
    FOR created IN
        DELETE FROM alicia_session_stats_created WHERE object LIKE 'TRIGGER count_session_stats_%'
        RETURNING SUBSTRING(object FROM 'TRIGGER (.*)')
    LOOP
        EXECUTE FORMAT('DROP TRIGGER IF EXISTS %I ON alicia_session_stats', created);
    END LOOP;

    FOR created IN
        DELETE FROM alicia_session_stats_created WHERE object LIKE 'FUNCTION alicia_session_stats_%'
        RETURNING SUBSTRING(object FROM 'FUNCTION (.*)')
    LOOP
        EXECUTE FORMAT('DROP FUNCTION IF EXISTS %s', created);
    END LOOP;
END
$migration$;
