-- Close the record of what this package created.
--
-- Why: by now everything on it is dropped.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats_created, which only migrations use.
-- Rollback: no row of anybody's is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    -- A rollback killed before yoyo unmarked it comes through here again.
    IF TO_REGCLASS('alicia_session_stats_created') IS NULL THEN
        RETURN;
    END IF;
    -- Without the record, nobody would know what is still to be dropped.
    IF EXISTS (SELECT FROM alicia_session_stats_created) THEN
        RAISE EXCEPTION 'what this package created is still there: %',
            (SELECT STRING_AGG(object, ', ' ORDER BY object) FROM alicia_session_stats_created)
            USING HINT = 'Roll back the newer migrations first.';
    END IF;
    DROP TABLE alicia_session_stats_created;
END
$migration$;
