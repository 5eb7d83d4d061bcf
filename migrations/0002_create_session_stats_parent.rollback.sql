-- Drop generate_random_id(text) and alicia_conversations, where this package created them.
--
-- Why: what the host had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_conversations for an instant.
-- Rollback: every conversation is lost. Refused while there is one, unless the setting
--           alicia_session_stats.allow_data_loss is on. Refused while an object of the host's uses them.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    lost BIGINT;
BEGIN
    DELETE FROM alicia_session_stats_created WHERE object = 'TABLE alicia_conversations';
    IF FOUND THEN
        IF CURRENT_SETTING('alicia_session_stats.allow_data_loss', TRUE) IS DISTINCT FROM 'on' THEN
            -- Counted before the lock, which would make writers wait for the count.
            SELECT COUNT(*) INTO lost FROM alicia_conversations;
            IF lost = 0 THEN
                LOCK TABLE alicia_conversations;
                SELECT COUNT(*) INTO lost FROM alicia_conversations;
            END IF;
            IF lost > 0 THEN
                RAISE EXCEPTION 'alicia_conversations holds % rows, which this rollback would delete', lost
                    USING HINT = 'Roll back with --allow-data-loss, or SET alicia_session_stats.allow_data_loss = on.';
            END IF;
        END IF;
        DROP TABLE alicia_conversations;
    END IF;

    DELETE FROM alicia_session_stats_created WHERE object = 'FUNCTION generate_random_id(text)';
    IF FOUND THEN
        DROP FUNCTION IF EXISTS generate_random_id(TEXT);
    END IF;
END
$migration$;
