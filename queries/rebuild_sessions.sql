-- Compute sessions from the application's messages, and bring the rebuilt rows of alicia_session_stats in line.
--
-- Purpose: operations
-- Mode: writes
-- Param gap_minutes (integer, default 30): a session ends when its conversation's next message is more than this many
--     minutes later.
-- Param since_days (integer, default 36500): rebuild only conversations that were deleted softly, or that had a message sent
--     or deleted or a session begun, in the last so many days of 24 hours. Each is rebuilt whole, so that no session is cut.
-- Returns: one row.
--     inserted                     sessions that were not in the table
--     updated                      sessions whose counts or duration differed
--     deleted                      computed sessions that the messages no longer have
--     unchanged                    sessions that were right, and were not written
--     orphaned                     sessions left out, because alicia_conversations lacks their conversation
-- Model: a session starts at its first message and ends at the creation of its last. It counts its messages, the tool uses
--     of these and the distinct memories used for these. Rows with a deleted_at do not count, nor does anything of a
--     conversation that has one, where that table has the column. Times are UTC.
-- Cost: scans alicia_messages once, because that has no index on created_at, and alicia_conversations. With a short since_days
--     it finds all else by the application's indexes on conversation_id and message_id.
-- Reads: idx_session_stats_created_at
--
-- The application's tables: alicia_messages (id, conversation_id, created_at, deleted_at), alicia_tool_uses (message_id,
-- deleted_at) and alicia_memory_used (message_id, memory_id, deleted_at). Their times are TIMESTAMP in UTC.
--
-- The id of a computed row is ass_ and 22 characters of the SHA-256 of its conversation_id and created_at. So the same
-- messages always give the same ids, and a row counts as computed only while its id is the hash of its own conversation
-- and start. No other row is written. The next rebuild overwrites changed counts of a computed row. A session that is
-- both recorded by the application and computed has two rows: do one or the other (docs/recording.md).
--
-- While live/attach.sql is in effect there is nothing to rebuild but what it could not record. Then gap_minutes must be
-- the same, and the conversations that differ are locked until the transaction ends.
--
-- psql -v gap_minutes=60 -v since_days=7 -f queries/rebuild_sessions.sql
\if :{?gap_minutes}
\else
\set gap_minutes 30
\endif
\if :{?since_days}
\else
\set since_days 36500
\endif
SELECT
    r.inserted,
    r.updated,
    r.deleted,
    r.unchanged,
    r.orphaned
FROM alicia_session_stats_rebuild(since_days => :'since_days', gap_minutes => :'gap_minutes') AS r;
