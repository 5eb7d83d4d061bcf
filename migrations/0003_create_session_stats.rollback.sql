-- Drop alicia_session_stats, where this package created it.
--
-- Why: what the host had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: every session is lost. Refused while there is one, unless the setting
--           alicia_session_stats.allow_data_loss is on. Refused while an object of the host's uses it.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    lost BIGINT;
BEGIN
    DELETE FROM alicia_session_stats_created WHERE object = 'TABLE alicia_session_stats';
    IF FOUND THEN
        IF CURRENT_SETTING('alicia_session_stats.allow_data_loss', TRUE) IS DISTINCT FROM 'on' THEN
            -- Counted before the lock, which would make writers wait for the count.
            SELECT COUNT(*) INTO lost FROM alicia_session_stats;
            IF lost = 0 THEN
                LOCK TABLE alicia_session_stats;
                SELECT COUNT(*) INTO lost FROM alicia_session_stats;
            END IF;
            IF lost > 0 THEN
                RAISE EXCEPTION 'alicia_session_stats holds % rows, which this rollback would delete', lost
                    USING HINT = 'Roll back with --allow-data-loss, or SET alicia_session_stats.allow_data_loss = on.';
            END IF;
        END IF;
        DROP TABLE alicia_session_stats;
    END IF;
END
$migration$;
