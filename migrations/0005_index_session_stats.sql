-- Index alicia_session_stats on conversation_id, and on created_at, newest first.
--
-- Why: for the sessions of one conversation, for the cascade from it, and for the sessions of a time window.
--      CONCURRENTLY, since an adopted table may be large and live. An interrupted build leaves an INVALID index with
--      the right name: it is dropped and built again.
-- Locks: SHARE UPDATE EXCLUSIVE on alicia_session_stats during the build: readers and writers go on. The build waits
--        for older transactions, and nothing waits for the build.
-- Rollback: drops the indexes that this file created. No row is lost.
-- transactional: false

-- Ends the transaction that psql -1 began, since the build cannot run inside one. Elsewhere it does nothing.
COMMIT;

DO $migration$
DECLARE
    name TEXT;
BEGIN
    PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
    FOREACH name IN ARRAY ARRAY['idx_session_stats_conversation', 'idx_session_stats_created_at'] LOOP
        IF (SELECT indisvalid FROM pg_index WHERE indexrelid = TO_REGCLASS(name)) IS NOT TRUE THEN
            EXECUTE 'DROP INDEX IF EXISTS ' || name;
            -- Recorded before the build, because a build that is killed leaves an index too.
            INSERT INTO alicia_session_stats_owned_objects VALUES ('INDEX ' || name, '', NULL, FALSE, 0)
            ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
END
$migration$;

-- IF NOT EXISTS, since a valid index of this name may be the application's.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_session_stats_conversation
ON alicia_session_stats (conversation_id);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_session_stats_created_at
ON alicia_session_stats (created_at DESC);

DO $migration$
BEGIN
    PERFORM SET_CONFIG('lock_timeout', '500ms', TRUE);
    IF EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'INDEX idx_session_stats_conversation') THEN
        COMMENT ON INDEX idx_session_stats_conversation IS
        'The sessions of one conversation, and cascade from it';
        PERFORM alicia_session_stats_own('INDEX idx_session_stats_conversation');
    END IF;
    IF EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'INDEX idx_session_stats_created_at') THEN
        COMMENT ON INDEX idx_session_stats_created_at IS
        'The sessions of a time window, newest first';
        PERFORM alicia_session_stats_own('INDEX idx_session_stats_created_at');
    END IF;
END
$migration$;
