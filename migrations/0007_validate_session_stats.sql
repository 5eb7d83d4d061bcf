-- Check the existing rows of alicia_session_stats against its constraints.
--
-- Why: apart from adding the constraints, so that reading a large table blocks neither readers nor writers.
-- Locks: SHARE UPDATE EXCLUSIVE on alicia_session_stats while the table is read once: readers and writers go on.
-- Rollback: nothing to take back; the constraints go with the migration that added them.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    name TEXT;
BEGIN
    FOR name IN
        SELECT SUBSTRING(m.object FROM '^CONSTRAINT (.*) ON ')
        FROM alicia_session_stats_misfits() AS m
        WHERE m.found = 'not validated'
    LOOP
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats VALIDATE CONSTRAINT %s', name);
    END LOOP;
END
$migration$;
