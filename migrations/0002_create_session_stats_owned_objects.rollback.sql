-- Drop the record of what the package creates, with its functions.
--
-- Why: everything in it is dropped by now. Refused otherwise, since the record tells what is still to be dropped.
-- Locks: ACCESS EXCLUSIVE on the record, which only migrations use.
-- Rollback: no row of the application is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    left_over TEXT;
BEGIN
    IF TO_REGCLASS('alicia_session_stats_owned_objects') IS NULL THEN
        RETURN;
    END IF;
    SELECT STRING_AGG(object, ', ' ORDER BY object) INTO left_over
    FROM alicia_session_stats_owned_objects
    WHERE object !~ 'alicia_session_stats_(owned_objects|catalog|fix|misfits|own|restore|drop)\M';
    IF left_over IS NOT NULL THEN
        RAISE EXCEPTION 'objects that the package created still exist: %', left_over
            USING HINT = 'Roll back the newer migrations first.';
    END IF;
    DROP FUNCTION alicia_session_stats_drop(TEXT);
    DROP FUNCTION alicia_session_stats_restore(TEXT);
    DROP FUNCTION alicia_session_stats_own(TEXT, BOOLEAN);
    DROP TABLE alicia_session_stats_owned_objects;
END
$migration$;
