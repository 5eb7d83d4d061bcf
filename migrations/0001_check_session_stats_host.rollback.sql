-- Close the record of what this package created.
--
-- Why: by now everything on it is dropped.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats_created, which only migrations use.
-- Rollback: no row of anybody's is lost.
SET LOCAL lock_timeout = '500ms';

DROP TABLE IF EXISTS alicia_session_stats_created;
