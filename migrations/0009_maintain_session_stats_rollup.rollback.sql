-- Drop the triggers that keep the rollup, and their functions.
--
-- Why: the tables that they write to are about to be dropped.
-- Locks: ACCESS EXCLUSIVE on alicia_session_stats for an instant.
-- Rollback: no session is lost.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop(FORMAT('TRIGGER rollup_session_stats_%s ON alicia_session_stats', operation))
FROM UNNEST(ARRAY['insert', 'update', 'delete', 'truncate']) AS operation;
SELECT alicia_session_stats_drop('TRIGGER restore_session_stats_rollup ON alicia_session_stats_rollup');

SELECT alicia_session_stats_drop('FUNCTION alicia_session_stats_' || name)
FROM UNNEST(ARRAY[
    'on_restore()', 'on_truncate()', 'on_insert_or_delete()', 'on_update()', 'trim()', 'forget(integer,timestamp without time zone,text,text)',
    'add(timestamp without time zone,bigint,bigint,bigint,bigint,bigint,boolean)', 'bucket(timestamp without time zone)'
]) AS name;
