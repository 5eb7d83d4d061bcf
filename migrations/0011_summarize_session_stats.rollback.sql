-- Drop the functions that read and write the summaries.
--
-- Why: the views that they read are about to be dropped.
-- Locks: ACCESS EXCLUSIVE on the view of the summaries for an instant.
-- Rollback: no session is lost. Queries that read value counts no longer run.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('FUNCTION alicia_session_stats_' || name)
FROM UNNEST(ARRAY[
    'summarize(bigint)',
    'days_to_summarize(timestamp without time zone)',
    'open_at(timestamp without time zone)',
    'percentile(double precision,integer[],bigint[],bigint)',
    'value_counts(text,timestamp without time zone,timestamp without time zone)',
    'computed_summaries(timestamp without time zone,timestamp without time zone)',
    'periods(timestamp without time zone,timestamp without time zone)'
]) AS name;
SELECT alicia_session_stats_drop('VIEW alicia_session_stats_value_summaries');
