-- What bench.py asks DuckDB: the same questions, with the defaults of queries/. $1 is until, or the conversation.
-- noqa: disable=all

-- query: average_session_metrics
SELECT
    AVG(message_count) AS avg_messages,
    AVG(tool_call_count) AS avg_tools,
    AVG(session_duration_seconds) / 60.0 AS avg_duration_minutes
FROM alicia_session_stats
WHERE created_at > $1 - INTERVAL '30 days' AND created_at < $1;

-- query: most_active_sessions
SELECT conversation_id, message_count, tool_call_count
FROM alicia_session_stats
ORDER BY message_count DESC, created_at DESC, id DESC
LIMIT 10;

-- query: session_stats
SELECT message_count, tool_call_count, memories_used, session_duration_seconds
FROM alicia_session_stats
WHERE conversation_id = $1
ORDER BY created_at DESC, id DESC;

-- query: list_sessions
SELECT id, conversation_id, message_count AS messages, session_duration_seconds AS seconds
FROM alicia_session_stats
WHERE created_at >= $1 - INTERVAL '7 days' AND created_at < $1
ORDER BY created_at DESC, id DESC;

-- query: busiest_hours
SELECT
    h.hour,
    COUNT(s.id) FILTER (WHERE ISODOW(s.created_at) = 1) AS mon,
    COUNT(s.id) FILTER (WHERE ISODOW(s.created_at) = 7) AS sun,
    COUNT(s.id) AS sessions
FROM RANGE(24) AS h (hour)
LEFT JOIN (
    SELECT * FROM alicia_session_stats WHERE created_at >= $1 - INTERVAL '28 days' AND created_at < $1
) AS s ON h.hour = HOUR(s.created_at)
GROUP BY h.hour
ORDER BY h.hour;

-- query: growth_forecast
WITH observed AS (
    SELECT DATE_DIFF('day', $1::DATE, d.day) AS x, ISODOW(d.day) AS weekday, COUNT(s.id) AS y
    FROM (SELECT UNNEST(GENERATE_SERIES($1::DATE - INTERVAL '90 days', $1::DATE - INTERVAL '1 day', INTERVAL '1 day'))::DATE AS day) AS d
    LEFT JOIN (
        SELECT id, created_at FROM alicia_session_stats WHERE created_at >= $1 - INTERVAL '91 days' AND created_at < $1
    ) AS s ON s.created_at::DATE = d.day
    GROUP BY d.day
),
weekdays AS (
    SELECT weekday, REGR_AVGX(y, x) AS mean_x, REGR_AVGY(y, x) AS mean_y, REGR_SXX(y, x) AS sxx, REGR_SXY(y, x) AS sxy
    FROM observed
    GROUP BY weekday
),
slopes AS (SELECT SUM(sxy) / SUM(sxx) AS slope FROM weekdays)
SELECT ($1::DATE + x::INTEGER) AS day, GREATEST(mean_y + slope * (x - mean_x), 0) AS sessions
FROM RANGE(1, 31) AS a (x)
INNER JOIN weekdays ON weekday = ISODOW($1::DATE + x::INTEGER)
CROSS JOIN slopes
ORDER BY day;

-- query: session_length_distribution
SELECT
    UNNEST([0, 1, 10, 30, 60, 180, 600, 1800, 3600]) AS from_seconds,
    UNNEST([
        COUNT(*) FILTER (WHERE d < 1), COUNT(*) FILTER (WHERE d >= 1 AND d < 10), COUNT(*) FILTER (WHERE d >= 10 AND d < 30),
        COUNT(*) FILTER (WHERE d >= 30 AND d < 60), COUNT(*) FILTER (WHERE d >= 60 AND d < 180),
        COUNT(*) FILTER (WHERE d >= 180 AND d < 600), COUNT(*) FILTER (WHERE d >= 600 AND d < 1800),
        COUNT(*) FILTER (WHERE d >= 1800 AND d < 3600), COUNT(*) FILTER (WHERE d >= 3600)
    ]) AS sessions
FROM (
    SELECT session_duration_seconds AS d
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '30 days' AND created_at < $1
);

-- query: session_percentiles
SELECT
    UNNEST(['messages', 'tool_calls', 'memories', 'seconds']) AS metric,
    COUNT(*) AS sessions,
    UNNEST([AVG(m), AVG(t), AVG(r), AVG(d)]) AS mean,
    UNNEST([QUANTILE_CONT(m, 0.5), QUANTILE_CONT(t, 0.5), QUANTILE_CONT(r, 0.5), QUANTILE_CONT(d, 0.5)]) AS p50,
    UNNEST([QUANTILE_CONT(m, 0.9), QUANTILE_CONT(t, 0.9), QUANTILE_CONT(r, 0.9), QUANTILE_CONT(d, 0.9)]) AS p90,
    UNNEST([QUANTILE_CONT(m, 0.95), QUANTILE_CONT(t, 0.95), QUANTILE_CONT(r, 0.95), QUANTILE_CONT(d, 0.95)]) AS p95,
    UNNEST([QUANTILE_CONT(m, 0.99), QUANTILE_CONT(t, 0.99), QUANTILE_CONT(r, 0.99), QUANTILE_CONT(d, 0.99)]) AS p99,
    UNNEST([MAX(m), MAX(t), MAX(r), MAX(d)]) AS max
FROM (
    SELECT message_count AS m, tool_call_count AS t, memories_used AS r, session_duration_seconds AS d
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '30 days' AND created_at < $1
);

-- query: metric_usage
WITH sessions AS (
    SELECT created_at >= $1 - INTERVAL '30 days' AS is_recent, tool_call_count AS t, message_count AS m
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '60 days' AND created_at < $1
),
periods AS (
    SELECT
        p.is_recent,
        [
            COUNT(t), COALESCE(SUM(t), 0), 100.0 * COUNT(*) FILTER (WHERE t > 0) / NULLIF(COUNT(t), 0), QUANTILE_CONT(t, 0.5),
            QUANTILE_CONT(t, 0.9), QUANTILE_CONT(t, 0.95), QUANTILE_CONT(t, 0.99), MAX(t), 100.0 * SUM(t) / NULLIF(SUM(m), 0)
        ]::DOUBLE[] AS statistics
    FROM (VALUES (TRUE), (FALSE)) AS p (is_recent)
    LEFT JOIN sessions AS s ON p.is_recent = s.is_recent
    GROUP BY p.is_recent
)
SELECT UNNEST(a.statistics) AS this_period, UNNEST(b.statistics) AS previous_period
FROM periods AS a
INNER JOIN periods AS b ON a.is_recent AND NOT b.is_recent;

-- query: usage_change
WITH sessions AS (
    SELECT created_at >= $1 - INTERVAL '7 days' AS is_recent, *
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '14 days' AND created_at < $1
),
periods AS (
    SELECT
        p.is_recent,
        [
            COUNT(id), COUNT(DISTINCT conversation_id), COALESCE(SUM(message_count), 0), COALESCE(SUM(tool_call_count), 0),
            COALESCE(SUM(memories_used), 0), COALESCE(SUM(session_duration_seconds), 0)
        ] AS metrics
    FROM (VALUES (TRUE), (FALSE)) AS p (is_recent)
    LEFT JOIN sessions AS s ON p.is_recent = s.is_recent
    GROUP BY p.is_recent
)
SELECT UNNEST(a.metrics) AS this_period, UNNEST(b.metrics) AS previous_period
FROM periods AS a
INNER JOIN periods AS b ON a.is_recent AND NOT b.is_recent;

-- query: usage_over_time
SELECT
    d.day AS period_start,
    COUNT(s.id) AS sessions,
    COUNT(DISTINCT s.conversation_id) AS conversations,
    COALESCE(SUM(s.message_count), 0) AS messages,
    COALESCE(SUM(s.session_duration_seconds), 0) AS seconds,
    CASE WHEN d.day < $1::DATE THEN AVG(COUNT(s.id)) OVER (ORDER BY d.day ROWS 6 PRECEDING) END AS sessions_7d_mean
FROM (SELECT UNNEST(GENERATE_SERIES($1::DATE - INTERVAL '35 days', $1::DATE, INTERVAL '1 day'))::DATE AS day) AS d
LEFT JOIN (
    SELECT * FROM alicia_session_stats WHERE created_at >= $1 - INTERVAL '37 days' AND created_at < $1
) AS s ON s.created_at::DATE = d.day
GROUP BY d.day
QUALIFY d.day > $1::DATE - INTERVAL '30 days'
ORDER BY d.day;

-- query: engagement
WITH sessions AS (
    SELECT conversation_id, message_count AS m, session_duration_seconds AS d
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '30 days' AND created_at < $1
),
conversations AS (
    SELECT COUNT(*) AS n, COUNT(*) FILTER (WHERE d > 0) AS nonzero FROM sessions GROUP BY conversation_id
),
counts AS (
    SELECT
        COUNT(*) AS a, COUNT(*) FILTER (WHERE n > 1) AS a2, COUNT(*) FILTER (WHERE nonzero > 0) AS b,
        COUNT(*) FILTER (WHERE nonzero > 1) AS b2
    FROM conversations
),
measures AS (
    SELECT
        COUNT(*) AS a, QUANTILE_CONT(d, 0.5) AS a50, QUANTILE_CONT(d, 0.9) AS a90, COUNT(*) FILTER (WHERE m = 1) AS a1,
        COUNT(*) FILTER (WHERE d > 0) AS b, QUANTILE_CONT(d, 0.5) FILTER (WHERE d > 0) AS b50,
        QUANTILE_CONT(d, 0.9) FILTER (WHERE d > 0) AS b90, COUNT(*) FILTER (WHERE m = 1 AND d > 0) AS b1
    FROM sessions
)
SELECT
    UNNEST([s.a, c.a, s.a / NULLIF(c.a, 0), s.a50, s.a90, 100.0 * s.a1 / NULLIF(s.a, 0), 100.0 * c.a2 / NULLIF(c.a, 0)]::DOUBLE[]) AS all_sessions,
    UNNEST([s.b, c.b, s.b / NULLIF(c.b, 0), s.b50, s.b90, 100.0 * s.b1 / NULLIF(s.b, 0), 100.0 * c.b2 / NULLIF(c.b, 0)]::DOUBLE[]) AS nonzero_sessions
FROM measures AS s
CROSS JOIN counts AS c;

-- query: peak_concurrency
WITH sessions AS (
    SELECT created_at AS started_at, created_at + TO_SECONDS(session_duration_seconds) AS ended_at
    FROM alicia_session_stats
    WHERE created_at < $1
),
days AS (SELECT UNNEST(GENERATE_SERIES($1::DATE - INTERVAL '13 days', $1::DATE, INTERVAL '1 day')) AS day),
changes AS (
    SELECT started_at AS t, 1 AS change FROM sessions WHERE ended_at > $1::DATE - INTERVAL '13 days'
    UNION ALL
    SELECT ended_at, -1 FROM sessions WHERE ended_at > $1::DATE - INTERVAL '13 days'
    UNION ALL
    SELECT day, 0 FROM days
),
instants AS (SELECT t, SUM(SUM(change)) OVER (ORDER BY t) AS open_sessions FROM changes GROUP BY t)
SELECT d.day::DATE AS day, COALESCE(MAX(i.open_sessions), 0) AS peak_sessions
FROM days AS d
LEFT JOIN instants AS i ON i.t::DATE = d.day::DATE
GROUP BY d.day
ORDER BY d.day;

-- query: conversation_retention
WITH weeks AS (
    SELECT UNNEST(GENERATE_SERIES(DATE_TRUNC('week', $1) - INTERVAL '49 days', DATE_TRUNC('week', $1), INTERVAL '7 days'))::DATE AS cohort
),
firsts AS (
    SELECT conversation_id, DATE_TRUNC('week', MIN(created_at))::DATE AS cohort
    FROM alicia_session_stats
    WHERE created_at < $1
    GROUP BY conversation_id
),
active AS (
    SELECT DISTINCT conversation_id, DATE_TRUNC('week', created_at)::DATE AS week
    FROM alicia_session_stats
    WHERE created_at >= $1 - INTERVAL '63 days' AND created_at < $1
)
SELECT
    w.cohort,
    COUNT(*) FILTER (WHERE a.week = w.cohort) AS conversations,
    CASE WHEN w.cohort + 7 <= $1 THEN
        100.0 * COUNT(*) FILTER (WHERE a.week = w.cohort + 7) / NULLIF(COUNT(*) FILTER (WHERE a.week = w.cohort), 0)
    END AS week_1_pct,
    CASE WHEN w.cohort + 28 <= $1 THEN
        100.0 * COUNT(*) FILTER (WHERE a.week = w.cohort + 28) / NULLIF(COUNT(*) FILTER (WHERE a.week = w.cohort), 0)
    END AS week_4_pct
FROM weeks AS w
LEFT JOIN firsts AS f ON f.cohort = w.cohort
LEFT JOIN active AS a ON a.conversation_id = f.conversation_id
GROUP BY w.cohort
ORDER BY w.cohort;
