-- Summarize the newest days whose sessions have changed: queries then read a day's value counts instead of its sessions.
--
-- Purpose: operations
-- Mode: writes
-- Param batch (integer, default 1000000): sessions to read at most, but one day at least.
-- Returns: one row.
--     days             days that were summarized; 0 also while another call is at work
--     sessions         sessions in these days
--     remaining_days   days that still have to be summarized: run it again until it is 0
--     Run it every night, or every hour. No answer depends on it: the sessions of a day without a valid summary are read.
--     Of today it summarizes the hours that are over. It blocks no writer.
-- Reads: idx_session_stats_rollup, idx_session_stats_created_at
--
-- psql -v batch=5000000 -f queries/summarize_days.sql
\if :{?batch}
\else
\set batch 1000000
\endif
SELECT
    days,
    sessions,
    remaining_days
FROM alicia_session_stats_summarize(:'batch');
