-- Delete for good the oldest of the sessions begun more than so many days ago, one batch a call.
--
-- Purpose: operations
-- Mode: writes
-- Param days (integer): age in days of 24 hours; sessions begun longer ago than that are deleted.
-- Param batch (integer, default 10000): how many to delete at most.
-- Returns: one row. deleted: how many sessions were deleted. more_remain: whether there are others as old, so that
--     it is to be called again. A session that somebody else is writing is not waited for: it is left out, and
--     remains. A session begun exactly that many days ago stays. Times are UTC.
-- Reads: idx_session_stats_created_at, alicia_session_stats_pkey
--
-- psql -v days=365 -v batch=1000 -f queries/delete_sessions_before.sql
\if :{?batch}
\else
\set batch 10000
\endif
WITH oldest AS (
    SELECT id
    FROM alicia_session_stats
    WHERE created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
    ORDER BY created_at, id
    -- Days below 0 would be all sessions, those of this moment too: PostgreSQL refuses a negative LIMIT.
    LIMIT CASE WHEN :'days'::INTEGER < 0 THEN -1 ELSE :'batch'::BIGINT END
    FOR UPDATE SKIP LOCKED
),

deleted AS (
    DELETE FROM alicia_session_stats
    -- An array, so that each row is found by its key, however large the table.
    WHERE id = ANY((SELECT ARRAY_AGG(id) FROM oldest)::TEXT[])
    RETURNING id
)

SELECT
    COUNT(*) AS deleted,
    -- This statement still sees the rows that it deletes: are there more?
    (
        SELECT COUNT(*)
        FROM (
            SELECT created_at
            FROM alicia_session_stats
            WHERE created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => :'days')
            ORDER BY created_at
            LIMIT :'batch'::BIGINT + 1
        ) AS seen
    ) > COUNT(*) AS more_remain
FROM deleted;
