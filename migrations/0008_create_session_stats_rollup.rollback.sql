-- Drop the tables of the rollup.
--
-- Why: no trigger writes to them any more.
-- Locks: ACCESS EXCLUSIVE on these tables for an instant.
-- Rollback: no session is lost. The next migrate computes the rollup again.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('TABLE alicia_session_stats_rollup');
SELECT alicia_session_stats_drop('TABLE alicia_session_stats_top_candidates');
SELECT alicia_session_stats_drop('TABLE alicia_session_stats_top_cutoff');
SELECT alicia_session_stats_drop('TABLE alicia_session_stats_summaries');
SELECT alicia_session_stats_drop('SEQUENCE alicia_session_stats_lowerings');
