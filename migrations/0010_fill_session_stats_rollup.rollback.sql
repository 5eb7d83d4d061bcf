-- Drop the views of the rollup, and the functions that read, compare and repair it.
--
-- Why: the tables that they read are about to be dropped.
-- Locks: ACCESS EXCLUSIVE on the views for an instant.
-- Rollback: no session is lost. Queries that read the rollup no longer run.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('FUNCTION alicia_session_stats_' || name)
FROM UNNEST(ARRAY[
    'repair()', 'differences(timestamp without time zone,timestamp without time zone)', 'start(text,text)', 'is_time_zone(text)',
    'window_end(text,text)', 'utc(text,text)', 'parse_time(text,text)', 'raise(text,text)', 'conversations(tsmultirange)',
    'from_seconds(integer)',
    'between(timestamp without time zone,timestamp without time zone)'
]) AS name;
SELECT alicia_session_stats_drop('VIEW alicia_session_stats_top_sessions');
SELECT alicia_session_stats_drop('VIEW alicia_session_stats_quarter_hours');
SELECT alicia_session_stats_drop('VIEW alicia_session_stats_stamps');
SELECT alicia_session_stats_drop('VIEW alicia_session_stats_parts');
