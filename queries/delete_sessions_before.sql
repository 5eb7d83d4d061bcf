-- Delete the sessions that began more than so many days ago: the oldest first, one batch per call.
--
-- Purpose: operations
-- Mode: writes
-- Param days (integer): age in days of 24 hours; a session that began exactly that many days ago stays.
-- Param batch (integer, default 10000): number of sessions to delete, at most.
-- Returns: one row.
--     deleted                      sessions deleted by this call
--     more_remain                  whether older sessions are left, so that another call is needed
--     A session that another transaction is writing is skipped, and remains.
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
    LIMIT CASE
        WHEN :'days'::INTEGER >= 0 THEN :'batch'::BIGINT
        -- A negative age would delete every session.
        ELSE alicia_session_stats_raise('22023', 'days must not be negative')::BIGINT
    END
    FOR UPDATE SKIP LOCKED
),

deleted AS (
    DELETE FROM alicia_session_stats
    -- An array, so that each row is found by its key, whatever the planner expects.
    WHERE id = ANY((SELECT ARRAY_AGG(id) FROM oldest)::TEXT[])
    RETURNING id
)

SELECT
    COUNT(*) AS deleted,
    -- The snapshot of this statement still contains the rows that it deletes.
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
