-- Size, rows, dead rows, HOT share, index scans and upkeep of the table and each of its indexes.
--
-- Purpose: operations
-- Returns: a row for the table, then one for each index. size_mb: on disk, in MB of 1048576 bytes, with the free space
--     and visibility maps, and TOAST. rows: of the table, or entries of the index, an estimate by the last VACUUM
--     or ANALYZE; NULL before. dead: rows that were updated or deleted and wait for VACUUM. hot_pct: the share of
--     updates that touched no index (heap-only tuples); NULL when there was none. scans: searches of the index;
--     of any of them in the table's row. vacuum_h, analyze_h: whole hours since the last VACUUM and ANALYZE,
--     by hand or automatic; NULL when never. dead, hot_pct, scans and the hours are counted since the
--     server's statistics began; an index has no dead, hot_pct or hours of its own. SELECT is enough.
-- Reads: no index
--
-- psql -f queries/table_health.sql
SELECT
    c.relname::TEXT AS object,
    PG_TABLE_SIZE(c.oid) / 1048576.0 AS size_mb,
    -- Until the table is counted, an index may say 0 because it was made on an empty table.
    CASE WHEN r.reltuples >= 0 THEN NULLIF(c.reltuples, -1)::BIGINT END AS rows,
    t.n_dead_tup AS dead,
    100.0 * t.n_tup_hot_upd / NULLIF(t.n_tup_upd, 0) AS hot_pct,
    COALESCE(t.idx_scan, i.idx_scan) AS scans,
    TRUNC(EXTRACT(EPOCH FROM NOW() - GREATEST(t.last_vacuum, t.last_autovacuum)) / 3600)::INTEGER AS vacuum_h,
    TRUNC(EXTRACT(EPOCH FROM NOW() - GREATEST(t.last_analyze, t.last_autoanalyze)) / 3600)::INTEGER AS analyze_h
FROM pg_class AS c
INNER JOIN pg_class AS r ON r.oid = 'alicia_session_stats'::REGCLASS
LEFT JOIN pg_stat_all_tables AS t ON c.oid = t.relid AND t.relid = 'alicia_session_stats'::REGCLASS
LEFT JOIN pg_stat_all_indexes AS i ON c.oid = i.indexrelid AND i.relid = 'alicia_session_stats'::REGCLASS
WHERE c.oid IN (t.relid, i.indexrelid)
ORDER BY t.relid IS NULL, c.relname;
