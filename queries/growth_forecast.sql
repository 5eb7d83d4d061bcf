-- Sessions and messages expected on each day ahead: a linear trend with a weekday pattern, and its uncertainty.
--
-- Purpose: resource planning
-- Param days (integer, default 90): number of complete days to learn from, at most; the last one is the day before that
--     of until.
-- Param until (timestamp, default now): end of the history; in tz unless it carries an offset. A time later than now means
--     now.
-- Param horizon (integer, default 30): number of days ahead; the first one is the day after that of until.
-- Param tz (text, default UTC): time zone of the days, an IANA name such as Europe/Berlin.
-- Returns: one row per day ahead.
--     sessions, messages           expected on that day, never below 0
--     …_low, …_high                95 percent prediction interval (Student's t, history_days - 8 degrees of freedom)
--     …_r2                         share of the variance that the model explains, 0 to 1; NULL if all days are equal
--     history_days                 complete days since the day of the first session, at most days, also those
--                                  without sessions. Below 28, four of each weekday, every other number is NULL
-- Model: least squares, a linear trend plus a constant per weekday.
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v days=180 -v horizon=7 -f queries/growth_forecast.sql
\if :{?days}
\else
\set days 90
\endif
\if :{?until}
\else
\set until now
\endif
\if :{?horizon}
\else
\set horizon 30
\endif
\if :{?tz}
\else
\set tz UTC
\endif
WITH history AS (
    SELECT
        t.today,
        CASE
            -- A time long ago has no equivalent in other time zones.
            WHEN
                s.oldest_at < alicia_session_stats_window_end(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 2)
                THEN :'days'::INTEGER
            -- The day of the first session is left out, since it is not complete.
            ELSE LEAST(
                :'days'::INTEGER,
                GREATEST(t.today - ((s.oldest_at AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE - 1, 0)
            )
        END AS days
    FROM (
        SELECT ((alicia_session_stats_window_end(:'until', :'tz') AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS today
        WHERE alicia_session_stats_is_time_zone(:'tz')
    ) AS t
    CROSS JOIN (
        SELECT MIN(created_at) AS oldest_at
        FROM alicia_session_stats
        WHERE created_at > '-infinity' AND created_at < alicia_session_stats_window_end(:'until', :'tz')
    ) AS s
),

-- Begins before the first day does in any time zone, and ends where the last one does.
daily AS (
    SELECT
        ((bucket_start AT TIME ZONE 'UTC') AT TIME ZONE :'tz')::DATE AS day,
        SUM(sessions) AS sessions,
        SUM(messages) AS messages
    FROM alicia_session_stats_between(
        alicia_session_stats_window_end(:'until', :'tz') - MAKE_INTERVAL(days => :'days'::INTEGER + 2),
        (
            DATE_TRUNC('day', (alicia_session_stats_window_end(:'until', :'tz') AT TIME ZONE 'UTC') AT TIME ZONE :'tz')
            AT TIME ZONE :'tz'
        ) AT TIME ZONE 'UTC'
    )
    GROUP BY day
),

-- x is a day's distance from today, the day of until: -1 is the day before, 1 the day after.
observed AS (
    SELECT
        m.metric,
        x,
        EXTRACT(ISODOW FROM h.today + x) AS weekday,
        m.y
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
        REGR_AVGX(y, x) AS mean_x,
        REGR_AVGY(y, x) AS mean_y,
        REGR_SXX(y, x) AS sxx,
        REGR_SXY(y, x) AS sxy,
        REGR_SYY(y, x) AS syy
    FROM observed
    GROUP BY metric, weekday
),

-- With a constant per weekday, the sums of squares about the weekdays' means add up to those of the trend.
models AS (
    SELECT
        w.metric,
        SUM(w.days)::FLOAT8 - 8 AS df,
        SUM(w.sxx) AS sxx,
        SUM(w.sxy) / SUM(w.sxx) AS slope,
        GREATEST(SUM(w.syy) - SUM(w.sxy) * SUM(w.sxy) / SUM(w.sxx), 0) AS unexplained,
        (
            SELECT REGR_SYY(o.y, o.x)
            FROM observed AS o
            WHERE o.metric = w.metric
        ) AS total
    FROM weekdays AS w
    GROUP BY w.metric
    HAVING SUM(w.days) >= 28
),

ahead AS (
    SELECT
        x,
        today + x AS day,
        days AS history_days
    FROM history
    CROSS JOIN GENERATE_SERIES(1, :'horizon'::INTEGER) AS x
),

forecast AS (
    SELECT
        a.day,
        m.metric,
        ROUND(GREATEST(f.expected, 0)::NUMERIC, 1) AS expected,
        ROUND(GREATEST(f.expected - f.margin, 0)::NUMERIC, 1) AS low,
        ROUND(GREATEST(f.expected + f.margin, 0)::NUMERIC, 1) AS high,
        ROUND((1 - LEAST(m.unexplained, m.total) / NULLIF(m.total, 0))::NUMERIC, 3) AS r2
    FROM ahead AS a
    INNER JOIN weekdays AS w ON EXTRACT(ISODOW FROM a.day) = w.weekday
    INNER JOIN models AS m ON w.metric = m.metric
    -- The 0.975 quantile of Student's t, by the Cornish-Fisher expansion: from 20 degrees of freedom, 3e-7 off at most.
    CROSS JOIN LATERAL (
        SELECT
            1.95996398 + (2.37227123 + (2.82249862 + (2.55584968 + 1.58953405 / m.df) / m.df) / m.df) / m.df AS t
    ) AS q
    CROSS JOIN LATERAL (
        SELECT
            w.mean_y + m.slope * (a.x - w.mean_x) AS expected,
            q.t * SQRT(m.unexplained / m.df * (1 + 1.0 / w.days + POWER(a.x - w.mean_x, 2) / m.sxx)) AS margin
    ) AS f
)

SELECT
    a.day,
    s.expected AS sessions,
    s.low AS sessions_low,
    s.high AS sessions_high,
    s.r2 AS sessions_r2,
    m.expected AS messages,
    m.low AS messages_low,
    m.high AS messages_high,
    m.r2 AS messages_r2,
    a.history_days
FROM ahead AS a
LEFT JOIN forecast AS s ON a.day = s.day AND s.metric = 'sessions'
LEFT JOIN forecast AS m ON a.day = m.day AND m.metric = 'messages'
ORDER BY a.day;
