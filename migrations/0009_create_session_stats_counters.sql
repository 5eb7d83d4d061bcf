-- Create the tables that keep the sums of every quarter of an hour and the sessions with the most messages.
--
-- Why: averages, trends and the most active sessions are asked over and over, and must not cost more as
--      alicia_session_stats grows. A quarter of an hour, because the days of today's time zones begin on one.
-- Locks: ACCESS SHARE on alicia_session_stats, which is read once, for the floor of the candidates.
-- Rollback: drops the tables. No session is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    taken TEXT;
BEGIN
    IF EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'TABLE alicia_session_stats_counters') THEN
        RETURN;
    END IF;
    SELECT STRING_AGG(name, ', ' ORDER BY name) INTO taken
    FROM UNNEST(ARRAY[
        'alicia_session_stats_counters', 'alicia_session_stats_candidates', 'alicia_session_stats_floor',
        'alicia_session_stats_quarter_hours', 'alicia_session_stats_leaders'
    ]) AS t (name)
    WHERE TO_REGCLASS(name) IS NOT NULL;
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION 'this database does not fit: % is there already, and is not this package''s', taken
            USING ERRCODE = 'duplicate_table', HINT = 'Nothing was changed.';
    END IF;

    CREATE TABLE alicia_session_stats_counters (
        quarter_hour TIMESTAMP NOT NULL,
        slot INTEGER,
        floor INTEGER,
        sessions BIGINT NOT NULL,
        memories BIGINT NOT NULL,
        active_seconds BIGINT NOT NULL,
        messages BIGINT NOT NULL,
        tool_calls BIGINT NOT NULL,
        changes INTEGER NOT NULL DEFAULT 0,
        room TEXT NOT NULL DEFAULT REPEAT(' ', 40)
    );
    -- Only the holder of a slot inserts its row, so nobody waits for this index.
    CREATE UNIQUE INDEX idx_session_stats_counters ON alicia_session_stats_counters (quarter_hour, slot);

    COMMENT ON TABLE alicia_session_stats_counters IS
    'Parts of the sums of alicia_session_stats, kept by its triggers: those of a quarter of an hour add up to its sessions''. Times are UTC.';
    COMMENT ON COLUMN alicia_session_stats_counters.quarter_hour IS
    'Start of the quarter of an hour in which the sessions begin (UTC)';
    COMMENT ON COLUMN alicia_session_stats_counters.slot IS
    'Which of the concurrent writers may change the row, 0 the first; NULL: none, another gathers it';
    COMMENT ON COLUMN alicia_session_stats_counters.floor IS
    'message_count of the floor, or less: with fewer messages, no session is a candidate. NULL: not known';
    COMMENT ON COLUMN alicia_session_stats_counters.sessions IS
    'Sessions, to be summed (may be negative in one row)';
    COMMENT ON COLUMN alicia_session_stats_counters.memories IS
    'Their memories_used, to be summed';
    COMMENT ON COLUMN alicia_session_stats_counters.active_seconds IS
    'Their session_duration_seconds, to be summed';
    COMMENT ON COLUMN alicia_session_stats_counters.messages IS
    'Their message_count, to be summed';
    COMMENT ON COLUMN alicia_session_stats_counters.tool_calls IS
    'Their tool_call_count, to be summed';
    COMMENT ON COLUMN alicia_session_stats_counters.changes IS
    'How often the transaction that wrote the row changed it';
    COMMENT ON COLUMN alicia_session_stats_counters.room IS
    'Blank until the row is changed, then empty: room in the page for its next versions, which would otherwise be pruned one by one';
    COMMENT ON INDEX idx_session_stats_counters IS
    'The sums of a time window';

    CREATE TABLE alicia_session_stats_candidates (
        message_count INTEGER NOT NULL,
        created_at TIMESTAMP NOT NULL,
        id TEXT NOT NULL,
        conversation_id TEXT NOT NULL
    );
    -- Not unique: two writers would wait for each other.
    CREATE INDEX idx_session_stats_candidates ON alicia_session_stats_candidates (message_count, created_at, id, conversation_id);

    COMMENT ON TABLE alicia_session_stats_candidates IS
    'Every session of alicia_session_stats from the floor up, and outdated copies. Kept by its triggers.';
    COMMENT ON COLUMN alicia_session_stats_candidates.message_count IS
    'The session''s message_count, when this was written';
    COMMENT ON COLUMN alicia_session_stats_candidates.created_at IS
    'The session''s created_at (UTC), when this was written';
    COMMENT ON COLUMN alicia_session_stats_candidates.id IS
    'The session''s id';
    COMMENT ON COLUMN alicia_session_stats_candidates.conversation_id IS
    'The session''s conversation_id, when this was written';
    COMMENT ON INDEX idx_session_stats_candidates IS
    'The candidates with the most messages';

    CREATE TABLE alicia_session_stats_floor (
        message_count INTEGER NOT NULL,
        created_at TIMESTAMP NOT NULL,
        id TEXT NOT NULL
    );
    CREATE UNIQUE INDEX idx_session_stats_floor ON alicia_session_stats_floor ((TRUE));

    COMMENT ON TABLE alicia_session_stats_floor IS
    'One row: the least session that must be among alicia_session_stats_candidates, by message_count, created_at, id';
    COMMENT ON INDEX idx_session_stats_floor IS
    'One row, no more';
    COMMENT ON COLUMN alicia_session_stats_floor.message_count IS
    'message_count of the least candidate';
    COMMENT ON COLUMN alicia_session_stats_floor.created_at IS
    'created_at (UTC) of the least candidate';
    COMMENT ON COLUMN alicia_session_stats_floor.id IS
    'id of the least candidate';

    -- Without a key, a publication of all tables would refuse every update.
    ALTER TABLE alicia_session_stats_counters REPLICA IDENTITY FULL;
    ALTER TABLE alicia_session_stats_candidates REPLICA IDENTITY FULL;
    ALTER TABLE alicia_session_stats_floor REPLICA IDENTITY FULL;

    -- The thousandth session from the top; below all, where there are fewer.
    INSERT INTO alicia_session_stats_floor
    SELECT message_count, created_at, id
    FROM (
        (
            SELECT message_count, created_at, id
            FROM alicia_session_stats
            ORDER BY message_count DESC, created_at DESC, id DESC
            OFFSET 999 LIMIT 1
        )
        UNION ALL
        SELECT -1, '-infinity', ''
    ) AS floors
    ORDER BY message_count DESC
    LIMIT 1;

    INSERT INTO alicia_session_stats_created VALUES
    ('TABLE alicia_session_stats_counters'),
    ('TABLE alicia_session_stats_candidates'),
    ('TABLE alicia_session_stats_floor');
END
$migration$;
