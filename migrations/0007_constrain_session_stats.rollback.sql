-- Drop the constraints on alicia_session_stats that this package created.
--
-- Why: what the host had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    name TEXT;
BEGIN
    FOR name IN
        DELETE FROM alicia_session_stats_created WHERE object LIKE 'CONSTRAINT %'
        RETURNING SUBSTRING(object FROM 'CONSTRAINT (.*)')
    LOOP
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats DROP CONSTRAINT IF EXISTS %I', name);
    END LOOP;
END
$migration$;
