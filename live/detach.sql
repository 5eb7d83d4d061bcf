-- Stop recording sessions from the application's messages: drop what live/attach.sql created, and nothing else.
--
-- Why: restores the application's tables to what they were before attach. The sessions stay, and rebuild_sessions can
--      keep them up to date.
-- Locks: ACCESS EXCLUSIVE on the application's tables and on alicia_session_stats for an instant.
-- Needs: the role that attached.
--
-- psql -v ON_ERROR_STOP=1 -f live/detach.sql
BEGIN ISOLATION LEVEL READ COMMITTED;

SET LOCAL lock_timeout = '500ms';
SET LOCAL client_min_messages = warning;

-- Triggers first, and last what the others use.
DO $detach$
DECLARE
    owned TEXT;
BEGIN
    FOR owned IN
        SELECT o.object
        FROM alicia_session_stats_owned_objects AS o
        WHERE o.object ~ (
            '^(TRIGGER record_session_stats_|INDEX idx_session_stats_latest$|(TABLE|FUNCTION) alicia_session_stats_live_)'
        )
        ORDER BY o.object NOT LIKE 'TRIGGER %', o.object
    LOOP
        PERFORM alicia_session_stats_drop(owned);
    END LOOP;
END
$detach$;

COMMIT;
