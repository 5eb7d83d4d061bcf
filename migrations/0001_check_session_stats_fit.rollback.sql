-- Drop the functions that compare the application's tables with the specification.
--
-- Why: nothing calls them any more.
-- Locks: none on a table.
-- Rollback: no row is lost.
SET LOCAL lock_timeout = '500ms';

DROP FUNCTION IF EXISTS alicia_session_stats_misfits();
DROP FUNCTION IF EXISTS alicia_session_stats_fix(TEXT, TEXT, TEXT);
DROP FUNCTION IF EXISTS alicia_session_stats_catalog();
