-- Delete the sessions that began more than so many days ago from the distributed table, a day per transaction.
--
-- Why: delete_sessions_before skips sessions that another transaction is writing (FOR UPDATE SKIP LOCKED), which Citus
--      cannot do over several shards. This file waits for them, as long as lock_timeout says.
-- Locks: ROW EXCLUSIVE on alicia_session_stats and the rows that are deleted, for the transaction of a day.
-- Rollback: none. If it is interrupted, the days that were deleted stay deleted; run it again.
--
-- psql -v ON_ERROR_STOP=1 -v days=400 -f scale/citus.purge.sql
SET lock_timeout = '5s';
SELECT FORMAT(
    'DELETE FROM alicia_session_stats WHERE created_at >= %L AND created_at < %L',
    day, LEAST(day + INTERVAL '1 day', NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'))
)
FROM (SELECT MIN(bucket_start) AS first FROM alicia_session_stats_quarter_hours) AS rollup
CROSS JOIN GENERATE_SERIES(
    DATE_TRUNC('day', first), NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days'), INTERVAL '1 day'
) AS day
\gexec
