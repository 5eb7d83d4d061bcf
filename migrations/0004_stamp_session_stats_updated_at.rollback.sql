-- Drop the trigger that stamps updated_at, and its function, if this package created them.
--
-- Why: what the application had before stays.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost. updated_at is no longer kept.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('TRIGGER update_session_stats_updated_at ON alicia_session_stats');
SELECT alicia_session_stats_drop('FUNCTION update_session_stats_updated_at()');
