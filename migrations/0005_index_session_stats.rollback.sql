-- Drop the indexes of alicia_session_stats, if this package created them.
--
-- Why: what the application had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost. Queries by conversation or time read the whole table.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('INDEX idx_session_stats_created_at');
SELECT alicia_session_stats_drop('INDEX idx_session_stats_conversation');
