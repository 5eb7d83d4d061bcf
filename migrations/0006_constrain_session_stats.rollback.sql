-- Drop the constraints of alicia_session_stats that this package added to it.
--
-- Why: what the application had before stays. The keys of a table that the package created go with the table.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no row is lost.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('CONSTRAINT session_stats_counts_and_duration_not_negative ON alicia_session_stats');
SELECT alicia_session_stats_drop('CONSTRAINT alicia_session_stats_conversation_id_fkey ON alicia_session_stats')
WHERE NOT EXISTS (SELECT FROM alicia_session_stats_owned_objects WHERE object = 'TABLE alicia_session_stats');
