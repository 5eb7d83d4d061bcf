-- Index alicia_session_stats on conversation_id: the sessions of one conversation, and cascade from it.
--
-- Why: CONCURRENTLY, since an adopted table may be large and live. What an interrupted build left behind
--      has the name but is INVALID: it is dropped and built again, not taken for done.
-- Locks: SHARE UPDATE EXCLUSIVE on alicia_session_stats while it builds: readers and writers go on. The
--        build waits for transactions older than itself, and nobody waits for it.
-- Rollback: drops the index, if this file created it.
-- transactional: false

-- Ends the transaction that psql -1 began; the build cannot run inside one. Elsewhere it does nothing.
COMMIT;

DO $migration$
DECLARE
    found_valid BOOLEAN;
BEGIN
    PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
    SELECT indisvalid INTO found_valid FROM pg_index WHERE indexrelid = TO_REGCLASS('idx_session_stats_conversation');
    IF found_valid IS NOT TRUE THEN
        DROP INDEX IF EXISTS idx_session_stats_conversation;
        -- Recorded before the build: a build that is killed is ours all the same.
        INSERT INTO alicia_session_stats_created VALUES ('INDEX idx_session_stats_conversation') ON CONFLICT DO NOTHING;
    END IF;
END
$migration$;

-- IF NOT EXISTS: a valid one may be there, the host's or ours.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_session_stats_conversation
ON alicia_session_stats (conversation_id);

DO $migration$
BEGIN
    PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
    IF EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'INDEX idx_session_stats_conversation') THEN
        COMMENT ON INDEX idx_session_stats_conversation IS
        'The sessions of one conversation, and cascade from it';
    END IF;
END
$migration$;
