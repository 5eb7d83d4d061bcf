-- What a single-row write costs in the server, in microseconds: the median of 2,000 of each kind, commit not included.
--
-- Run it in a new database with bench/bare.sql, and in another one that is migrated: it fills the tables.
-- psql -f bench/writes.sql
\set QUIET on
SET synchronous_commit = off;

INSERT INTO alicia_conversations (id) SELECT 'ac_' || n FROM GENERATE_SERIES(1, 1000) AS n;
INSERT INTO alicia_session_stats (id, conversation_id, message_count, created_at)
SELECT
    'ass_' || n,
    'ac_' || 1 + n % 1000,
    n % 97 * (n % 89) / 50,
    NOW() AT TIME ZONE 'UTC' - n * INTERVAL '5 minutes'
FROM GENERATE_SERIES(1, 100000) AS n;
VACUUM ANALYZE;

CREATE TEMPORARY TABLE measured (kind TEXT, microseconds NUMERIC);

DO $bench$
DECLARE
    kind TEXT;
    begun TIMESTAMPTZ;
    micros NUMERIC;
    some_time TIMESTAMP;
    some_id TEXT;
BEGIN
    FOR n IN 1 .. 2000 LOOP
        FOREACH kind IN ARRAY ARRAY[
            'INSERT', 'INSERT with an old created_at', 'UPDATE', 'UPDATE that changes nothing counted', 'DELETE'
        ] LOOP
            some_time := NOW() AT TIME ZONE 'UTC' - n * INTERVAL '3 hours';
            some_id := 'ass_' || CASE kind WHEN 'DELETE' THEN 47 * n ELSE 1 + n % 40 END;
            begun := CLOCK_TIMESTAMP();
            CASE kind
                WHEN 'INSERT' THEN
                    INSERT INTO alicia_session_stats (conversation_id) VALUES ('ac_1');
                WHEN 'INSERT with an old created_at' THEN
                    INSERT INTO alicia_session_stats (conversation_id, created_at) VALUES ('ac_1', some_time);
                WHEN 'UPDATE' THEN
                    UPDATE alicia_session_stats SET tool_call_count = tool_call_count + 1 WHERE id = some_id;
                WHEN 'UPDATE that changes nothing counted' THEN
                    UPDATE alicia_session_stats SET updated_at = updated_at + INTERVAL '1 second' WHERE id = some_id;
                WHEN 'DELETE' THEN
                    DELETE FROM alicia_session_stats WHERE id = some_id;
            END CASE;
            micros := EXTRACT(MICROSECONDS FROM CLOCK_TIMESTAMP() - begun);
            INSERT INTO measured VALUES (kind, micros);
            COMMIT;
        END LOOP;
    END LOOP;
END
$bench$;

SELECT
    kind,
    PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY microseconds)::INTEGER AS median_microseconds
FROM measured
GROUP BY kind
ORDER BY kind;
