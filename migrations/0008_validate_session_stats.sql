-- Hold the rows that were there before to the constraints on alicia_session_stats.
--
-- Why: apart from adding them, so that reading a large table blocks nobody.
-- Locks: SHARE UPDATE EXCLUSIVE on alicia_session_stats while it reads the table once: readers and
--        writers go on.
-- Rollback: nothing to take back; the constraints go with the migration that added them.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    name TEXT;
BEGIN
    FOR name IN
        SELECT c.conname
        FROM pg_constraint AS c
        JOIN alicia_session_stats_created AS o ON o.object = 'CONSTRAINT ' || c.conname
        WHERE c.conrelid = 'alicia_session_stats'::REGCLASS AND NOT c.convalidated
    LOOP
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats VALIDATE CONSTRAINT %I', name);
    END LOOP;
END
$migration$;
