-- Create the tables of the rollup: sums for each quarter of an hour, the sessions with the most messages, and value counts.
--
-- Why: averages, trends and the most active sessions are asked often, and their cost must not grow with
--      alicia_session_stats. A bucket is a quarter of an hour, since every UTC offset in use today is
--      a multiple of 15 minutes.
--      docs/design.md explains the rollup and lists its invariants.
-- Locks: ACCESS SHARE on alicia_session_stats, which is read once to find the first cutoff.
-- Rollback: drops the tables. No session is lost; the next migrate computes the rollup again.
SET LOCAL lock_timeout = '500ms';

-- The sums of a bucket are those of all its rows. Writers that work at the same time use different rows.
CREATE TABLE IF NOT EXISTS alicia_session_stats_rollup (
    bucket_start TIMESTAMP NOT NULL,
    writer_slot INTEGER NOT NULL,
    opened_at TIMESTAMP NOT NULL,
    cutoff INTEGER,
    sessions BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    tool_calls BIGINT NOT NULL,
    memories BIGINT NOT NULL,
    seconds BIGINT NOT NULL,
    versions INTEGER NOT NULL DEFAULT 1,
    padding TEXT NOT NULL DEFAULT REPEAT(' ', 40)
);
-- The newest row of a slot comes first, so that finding it does not read the dead versions of older ones.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS idx_session_stats_rollup
ON alicia_session_stats_rollup (bucket_start, writer_slot, opened_at DESC);

COMMENT ON TABLE alicia_session_stats_rollup IS
'Private: sums of alicia_session_stats, in parts, kept by its triggers. Read alicia_session_stats_quarter_hours instead.';
COMMENT ON COLUMN alicia_session_stats_rollup.bucket_start IS
'Start of the quarter of an hour in which the sessions start (UTC)';
COMMENT ON COLUMN alicia_session_stats_rollup.writer_slot IS
'Number of the advisory lock whose holder may change the row, from 0; 2147483647: none, the row waits to be merged';
COMMENT ON COLUMN alicia_session_stats_rollup.opened_at IS
'When the row was inserted (UTC)';
COMMENT ON COLUMN alicia_session_stats_rollup.cutoff IS
'message_count of the cutoff, or less: a session with fewer messages is no top candidate. NULL: not known';
COMMENT ON COLUMN alicia_session_stats_rollup.sessions IS
'Number of sessions; negative where a slot has subtracted more than it added';
COMMENT ON COLUMN alicia_session_stats_rollup.messages IS
'Sum of message_count';
COMMENT ON COLUMN alicia_session_stats_rollup.tool_calls IS
'Sum of tool_call_count';
COMMENT ON COLUMN alicia_session_stats_rollup.memories IS
'Sum of memories_used';
COMMENT ON COLUMN alicia_session_stats_rollup.seconds IS
'Sum of session_duration_seconds (seconds)';
COMMENT ON COLUMN alicia_session_stats_rollup.versions IS
'How many versions the row has had; at 200 a new row takes its place';
COMMENT ON COLUMN alicia_session_stats_rollup.padding IS
'Padding that the first update empties, so that later versions fit into the page and stay HOT';
COMMENT ON INDEX idx_session_stats_rollup IS
'The sums of a time window, and the row of a writer''s slot';

CREATE TABLE IF NOT EXISTS alicia_session_stats_top_candidates (
    message_count INTEGER NOT NULL,
    created_at TIMESTAMP NOT NULL,
    id TEXT NOT NULL,
    conversation_id TEXT NOT NULL
);
-- Not unique: a writer and a repair that insert the same session would wait for each other.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS idx_session_stats_top_candidates
ON alicia_session_stats_top_candidates (message_count, created_at, id, conversation_id);

COMMENT ON TABLE alicia_session_stats_top_candidates IS
'Private: every session from the cutoff up, with stale copies, kept by triggers. Read alicia_session_stats_top_sessions instead.';
COMMENT ON COLUMN alicia_session_stats_top_candidates.message_count IS
'The session''s message_count when this row was written';
COMMENT ON COLUMN alicia_session_stats_top_candidates.created_at IS
'The session''s created_at (UTC) when this row was written';
COMMENT ON COLUMN alicia_session_stats_top_candidates.id IS
'The session''s id';
COMMENT ON COLUMN alicia_session_stats_top_candidates.conversation_id IS
'The session''s conversation_id when this row was written';
COMMENT ON INDEX idx_session_stats_top_candidates IS
'The candidates with the most messages';

CREATE TABLE IF NOT EXISTS alicia_session_stats_top_cutoff (
    message_count INTEGER NOT NULL,
    created_at TIMESTAMP NOT NULL,
    id TEXT NOT NULL,
    lowerings BIGINT NOT NULL
);
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX IF NOT EXISTS idx_session_stats_top_cutoff ON alicia_session_stats_top_cutoff ((TRUE));

COMMENT ON TABLE alicia_session_stats_top_cutoff IS
'Private: one row. Every session from it up, by message_count, created_at and id, is in alicia_session_stats_top_candidates.';
COMMENT ON COLUMN alicia_session_stats_top_cutoff.message_count IS
'message_count of the lowest session that must be a candidate';
COMMENT ON COLUMN alicia_session_stats_top_cutoff.created_at IS
'created_at (UTC) of the lowest session that must be a candidate';
COMMENT ON COLUMN alicia_session_stats_top_cutoff.id IS
'id of the lowest session that must be a candidate';
COMMENT ON COLUMN alicia_session_stats_top_cutoff.lowerings IS
'Value of alicia_session_stats_lowerings when the row was written';
COMMENT ON INDEX idx_session_stats_top_cutoff IS
'Allows one row only';

CREATE TABLE IF NOT EXISTS alicia_session_stats_summaries (
    metric TEXT NOT NULL,
    hours INTEGER NOT NULL,
    starts_at TIMESTAMP NOT NULL,
    stamp NUMERIC NOT NULL,
    counted_values INTEGER[] NOT NULL,
    sessions INTEGER[] NOT NULL,
    CONSTRAINT alicia_session_stats_summaries_pkey PRIMARY KEY (metric, hours, starts_at)
);

COMMENT ON TABLE alicia_session_stats_summaries IS
'Private: value counts of whole hours and days of alicia_session_stats, written by alicia_session_stats_summarize().';
COMMENT ON COLUMN alicia_session_stats_summaries.metric IS
'messages, tool_calls, memories, seconds or from_seconds';
COMMENT ON COLUMN alicia_session_stats_summaries.hours IS
'Length: 1, or 24 for a day (UTC)';
COMMENT ON COLUMN alicia_session_stats_summaries.starts_at IS
'Start of the hour or day (UTC) in which the sessions start';
COMMENT ON COLUMN alicia_session_stats_summaries.stamp IS
'Sum of the stamps of its rollup rows when it was computed; where it differs from the present sum, the summary is stale';
COMMENT ON COLUMN alicia_session_stats_summaries.counted_values IS
'The distinct values of the metric, ascending';
COMMENT ON COLUMN alicia_session_stats_summaries.sessions IS
'For each of these values, the number of sessions that have it';

CREATE SEQUENCE IF NOT EXISTS alicia_session_stats_lowerings;

COMMENT ON SEQUENCE alicia_session_stats_lowerings IS
'Private: advances when the cutoff is lowered. A transaction under REPEATABLE READ, too, sees its newest value.';

-- The thousandth session from the top. With fewer sessions, every session is a candidate.
INSERT INTO alicia_session_stats_top_cutoff
SELECT message_count, created_at, id, NEXTVAL('alicia_session_stats_lowerings'::REGCLASS)
FROM (
    (
        SELECT message_count, created_at, id
        FROM alicia_session_stats
        ORDER BY message_count DESC, created_at DESC, id DESC
        OFFSET 999 LIMIT 1
    )
    UNION ALL
    SELECT -1, TIMESTAMP '-infinity', ''
) AS cutoffs
ORDER BY message_count DESC
LIMIT 1
ON CONFLICT DO NOTHING;

DO $migration$
DECLARE
    created TEXT;
    id_collation CONSTANT OID := (
        SELECT attcollation FROM pg_attribute WHERE attrelid = 'alicia_session_stats'::REGCLASS AND attname = 'id'
    );
BEGIN
    -- Ties are ordered by id, in the collation of the application's table.
    FOR created IN
        SELECT attrelid::REGCLASS
        FROM pg_attribute
        WHERE attrelid IN ('alicia_session_stats_top_candidates'::REGCLASS, 'alicia_session_stats_top_cutoff'::REGCLASS)
            AND attname = 'id' AND attcollation <> id_collation
    LOOP
        EXECUTE FORMAT('ALTER TABLE %s ALTER COLUMN id TYPE TEXT COLLATE %s', created, id_collation::REGCOLLATION);
    END LOOP;

    FOREACH created IN ARRAY ARRAY['rollup', 'top_candidates', 'top_cutoff'] LOOP
        -- UPDATE and DELETE fail on a published table that has neither a key nor this replica identity.
        EXECUTE FORMAT('ALTER TABLE alicia_session_stats_%s REPLICA IDENTITY FULL', created);
        PERFORM alicia_session_stats_own('TABLE alicia_session_stats_' || created, is_closed => TRUE);
        PERFORM alicia_session_stats_own('INDEX idx_session_stats_' || created);
    END LOOP;
    PERFORM alicia_session_stats_own('TABLE alicia_session_stats_summaries', is_closed => TRUE);
    PERFORM alicia_session_stats_own('SEQUENCE alicia_session_stats_lowerings', is_closed => TRUE);
END
$migration$;
