-- Sessions and messages to expect on each day ahead: a linear trend with a weekday factor, and its error.
--
-- Purpose: resource planning
-- Param days (integer, default 90): how many complete UTC days to learn from, at most; the last is yesterday.
-- Param horizon (integer, default 30): how many days to look ahead; the first is tomorrow.
-- Returns: a row for each day ahead (UTC). sessions: how many will begin on it; messages: how many these will hold.
--     Both are fitted by least squares to the history, as a line in time plus a constant for each weekday.
--     s_low to s_high, m_low to m_high: the 95 percent prediction interval, into which a single new day falls 19
--     times in 20 if the days scatter normally and independently about the model. It is by Student's t with 8
--     degrees of freedom less than days, not by the normal quantile, because the scatter itself is estimated.
--     Nothing goes below 0. s_r2, m_r2: goodness of fit, R squared, the share (0 to 1) of the variation that
--     the model explains; NULL when every day was the same. history: how many days it learned from: whole days
--     since the first session, days without one too. Fewer than 28, four of each weekday, is too short to
--     tell: history says "12 of 28 days", and every number is NULL.
-- Reads: idx_session_stats_counters
--
-- psql -v days=180 -v horizon=7 -f queries/growth_forecast.sql
\if :{?days}
\else
\set days 90
\endif
\if :{?horizon}
\else
\set horizon 30
\endif
-- A day's x is its distance from today: -1 is yesterday, 1 tomorrow. The first session's own day is not whole.
WITH history AS (
    SELECT
        (NOW() AT TIME ZONE 'UTC')::DATE AS today,
        LEAST(:'days'::INTEGER, GREATEST((NOW() AT TIME ZONE 'UTC')::DATE - MIN(created_at)::DATE - 1, 0)) AS days
    FROM alicia_session_stats
),

daily AS (
    SELECT
        quarter_hour::DATE AS day,
        SUM(sessions) AS sessions,
        SUM(messages) AS messages
    FROM alicia_session_stats_quarter_hours
    WHERE
        quarter_hour >= DATE_TRUNC('day', NOW() AT TIME ZONE 'UTC') - MAKE_INTERVAL(days => :'days'::INTEGER)
        AND quarter_hour < DATE_TRUNC('day', NOW() AT TIME ZONE 'UTC')
    GROUP BY quarter_hour::DATE
),

observed AS (
    SELECT
        m.metric,
        x,
        m.y,
        EXTRACT(ISODOW FROM h.today + x) AS weekday
    FROM history AS h
    CROSS JOIN LATERAL GENERATE_SERIES(-h.days, -1) AS x
    LEFT JOIN daily AS d ON h.today + x = d.day
    CROSS JOIN LATERAL (
        VALUES ('sessions', COALESCE(d.sessions, 0)), ('messages', COALESCE(d.messages, 0))
    ) AS m (metric, y)
),

weekdays AS (
    SELECT
        metric,
        weekday,
        COUNT(*) AS days,
        AVG(x) AS mean_x,
        AVG(y) AS mean_y
    FROM observed
    GROUP BY metric, weekday
),

-- Least squares with a constant for each weekday is a line through what is left of x and y without their
-- weekday's mean (Frisch, Waugh and Lovell): no matrix to invert.
sums AS (
    SELECT
        o.metric,
        COUNT(*) - 8 AS df,
        SUM((o.x - w.mean_x) * (o.x - w.mean_x)) AS sxx,
        SUM((o.x - w.mean_x) * (o.y - w.mean_y)) AS sxy,
        SUM((o.y - w.mean_y) * (o.y - w.mean_y)) AS syy,
        VAR_POP(o.y) * COUNT(*) AS total
    FROM observed AS o
    INNER JOIN weekdays AS w ON o.metric = w.metric AND o.weekday = w.weekday
    GROUP BY o.metric
    HAVING COUNT(*) >= 28
),

trends AS (
    SELECT
        metric,
        sxx,
        sxy / sxx AS slope,
        unexplained / df AS variance,
        1 - unexplained / NULLIF(total, 0) AS r2,
        -- Student's t at 0.975, by the series of Cornish and Fisher: from 20 degrees of freedom on, 3e-7 off at most.
        1.95996398 + (2.37227123 + (2.82249862 + (2.55584968 + 1.58953405 / df) / df) / df) / df AS t
    FROM sums
    -- Rounding must not make it less than nothing or more than all.
    CROSS JOIN LATERAL (SELECT LEAST(GREATEST(syy - sxy * sxy / sxx, 0), total) AS unexplained) AS u
),

ahead AS (
    SELECT
        x,
        today + x AS day,
        days || CASE WHEN days < 28 THEN ' of 28' ELSE '' END || ' days' AS history
    FROM history
    CROSS JOIN GENERATE_SERIES(1, :'horizon'::INTEGER) AS x
),

forecast AS (
    SELECT
        a.day,
        t.metric,
        ROUND(t.r2, 9) AS r2,
        -- Nine decimals are more than any history can tell; exact arithmetic would go on to a hundred.
        ROUND(GREATEST(f.expected, 0), 9) AS expected,
        ROUND(GREATEST(f.expected - f.margin, 0), 9) AS low,
        ROUND(GREATEST(f.expected + f.margin, 0), 9) AS high
    FROM ahead AS a
    INNER JOIN weekdays AS w ON EXTRACT(ISODOW FROM a.day) = w.weekday
    INNER JOIN trends AS t ON w.metric = t.metric
    CROSS JOIN LATERAL (
        SELECT
            w.mean_y + t.slope * (a.x - w.mean_x) AS expected,
            t.t * SQRT(t.variance * (1 + 1.0 / w.days + (a.x - w.mean_x) * (a.x - w.mean_x) / t.sxx)) AS margin
    ) AS f
)

SELECT
    a.day,
    s.expected AS sessions,
    s.low AS s_low,
    s.high AS s_high,
    s.r2 AS s_r2,
    m.expected AS messages,
    m.low AS m_low,
    m.high AS m_high,
    m.r2 AS m_r2,
    a.history
FROM ahead AS a
LEFT JOIN forecast AS s ON a.day = s.day AND s.metric = 'sessions'
LEFT JOIN forecast AS m ON a.day = m.day AND m.metric = 'messages'
ORDER BY a.day;
