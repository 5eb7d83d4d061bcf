-- Size, rows, dead rows, HOT updates, index scans, and what VACUUM, ANALYZE and summarize_days have to do, of table and indexes.
--
-- Purpose: operations
-- Returns: one row for the table, then one per index. SELECT on the table is enough to run it.
--     size_bytes                   on disk, with TOAST and the free space and visibility maps
--     rows                         rows of the table or entries of the index, estimated by the last VACUUM or
--                                  ANALYZE; NULL before the first
--     dead_rows                    row versions that wait for VACUUM; NULL for an index
--     hot_pct                      percent of the updates that were HOT (heap-only tuple, no index changed); NULL
--                                  without updates, and for an index
--     index_scans                  scans of the index; in the table's row, of all its indexes
--     vacuum_age_hours             whole hours since the last VACUUM, manual or automatic; NULL if never, and for
--                                  an index
--     analyze_age_hours            the same for ANALYZE
--     stale_summaries              days that summarize_days would summarize now; NULL for an index
-- Reads: idx_session_stats_rollup
--
-- psql -f queries/table_health.sql
SELECT
    c.relname::TEXT AS object,
    PG_TABLE_SIZE(c.oid) AS size_bytes,
    -- An index built on an empty table says 0 before the first ANALYZE; the table says -1.
    CASE WHEN r.reltuples >= 0 THEN NULLIF(c.reltuples, -1)::BIGINT END AS rows,
    t.n_dead_tup AS dead_rows,
    ROUND(100.0 * t.n_tup_hot_upd / NULLIF(t.n_tup_upd, 0), 2) AS hot_pct,
    COALESCE(t.idx_scan, i.idx_scan) AS index_scans,
    TRUNC(EXTRACT(EPOCH FROM NOW() - GREATEST(t.last_vacuum, t.last_autovacuum)) / 3600)::INTEGER AS vacuum_age_hours,
    TRUNC(EXTRACT(EPOCH FROM NOW() - GREATEST(t.last_analyze, t.last_autoanalyze)) / 3600)::INTEGER AS analyze_age_hours,
    CASE
        WHEN t.relid IS NOT NULL
            THEN (SELECT COUNT(*) FROM alicia_session_stats_days_to_summarize(DATE_TRUNC('hour', NOW() AT TIME ZONE 'UTC')))
    END AS stale_summaries
FROM pg_class AS c
INNER JOIN pg_class AS r ON r.oid = 'alicia_session_stats'::REGCLASS
LEFT JOIN pg_stat_all_tables AS t ON c.oid = t.relid AND t.relid = 'alicia_session_stats'::REGCLASS
LEFT JOIN pg_stat_all_indexes AS i ON c.oid = i.indexrelid AND i.relid = 'alicia_session_stats'::REGCLASS
WHERE c.oid IN (t.relid, i.indexrelid)
ORDER BY t.relid IS NULL, c.relname;
