-- Constrain counts and durations to be 0 or more, and a session to belong to a conversation.
--
-- Why: a negative count is a bug of the writer and falsifies every sum. NOT VALID: new rows are checked at once; the
--      next migration checks the existing rows without blocking. One CHECK, not four: PostgreSQL reads
--      the constraints of a table from the catalog for each statement that writes to it. A constraint of the application's
--      that says the same is left as it is. The foreign key is missing only from an adopted table.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant; for the foreign key also SHARE ROW EXCLUSIVE on
--        alicia_conversations. No row is read.
-- Rollback: drops the constraints that this file created. No row is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    missing RECORD;
BEGIN
    FOR missing IN
        SELECT m.object, m.expected, c.name, c.comment
        FROM (
            VALUES
            ('session_stats_counts_and_duration_not_negative', 'Each count and the duration is 0 or more'),
            ('alicia_session_stats_conversation_id_fkey', 'A session is deleted with its conversation')
        ) AS c (name, comment)
        INNER JOIN alicia_session_stats_misfits() AS m ON m.object = FORMAT('CONSTRAINT %I ON alicia_session_stats', c.name)
        WHERE m.found = 'missing'
    LOOP
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats ADD CONSTRAINT %I %s NOT VALID', missing.name, missing.expected);
        EXECUTE FORMAT('COMMENT ON %s IS %L', missing.object, missing.comment);
        PERFORM alicia_session_stats_own(missing.object);
    END LOOP;
END
$migration$;
