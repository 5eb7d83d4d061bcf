-- Drop alicia_session_stats, alicia_conversations and generate_random_id, if this package created them.
--
-- Why: what the application had before stays.
-- Locks: ACCESS EXCLUSIVE on the tables for an instant.
-- Rollback: the rows of the tables that this package created are lost. Refused while there is one, unless the setting
--           alicia_session_stats.allow_data_loss is on. Refused while another object uses what is to be dropped.
SET LOCAL lock_timeout = '500ms';

SELECT alicia_session_stats_drop('TABLE alicia_session_stats');
SELECT alicia_session_stats_drop('TABLE alicia_conversations');
SELECT alicia_session_stats_drop('FUNCTION generate_random_id(text)');
