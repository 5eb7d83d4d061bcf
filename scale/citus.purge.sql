-- Delete for good the sessions begun more than so many days ago from distributed tables, a day's in each transaction.
--
-- Why: delete_sessions_before skips rows that somebody is writing, with FOR UPDATE, which Citus does not take over many
--      shards. Here such a row is waited for, as long as lock_timeout says.
-- Locks: ROW EXCLUSIVE on alicia_session_stats, and the rows that are deleted, for each day's transaction.
-- Rollback: none; the days that were deleted before an interruption stay deleted, and it can be run again.
--
-- psql -v ON_ERROR_STOP=1 -v days=400 -f scale/citus.purge.sql
SET lock_timeout = '5s';
SELECT FORMAT(
    'DELETE FROM alicia_session_stats WHERE created_at >= %L AND created_at < %L',
    day, LEAST(day + INTERVAL '1 day', NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'))
)
FROM (SELECT MIN(quarter_hour) AS first FROM alicia_session_stats_quarter_hours) AS sums
CROSS JOIN GENERATE_SERIES(
    DATE_TRUNC('day', first), NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'), INTERVAL '1 day'
) AS day
\gexec
