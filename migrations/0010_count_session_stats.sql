-- Count every change of alicia_session_stats into its sums and candidates, in the transaction that makes it.
--
-- Why: the answers are exact at every instant, with no job to schedule. Nobody waits for a sum: a writer adds
--      to a row that it has reserved with an advisory lock, which it only tries for, or else to the next one;
--      now and then it gathers the rows of a quarter of an hour into one. A candidate is only inserted: readers
--      ignore an outdated one, and a writer deletes it, unless another one is at it.
-- Locks: SHARE ROW EXCLUSIVE on alicia_session_stats for an instant: writers wait, readers do not.
-- Rollback: drops the triggers and functions. No session is lost.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    created TEXT;
BEGIN
    IF EXISTS (SELECT FROM alicia_session_stats_created WHERE object = 'TRIGGER count_session_stats_insert') THEN
        RETURN;
    END IF;

    -- Returns the message_count from which a session is a candidate.
    CREATE FUNCTION alicia_session_stats_count(
        quarter TIMESTAMP, more_sessions BIGINT, more_memories BIGINT, more_seconds BIGINT, more_messages BIGINT,
        more_calls BIGINT, may_gather BOOLEAN, may_fail BOOLEAN DEFAULT FALSE
    ) RETURNS INTEGER
    LANGUAGE plpgsql
    AS $function$
    DECLARE
        -- A transaction that writes to every quarter of an hour of a year takes no more locks than these, for each slot.
        stripe CONSTANT INTEGER := TIMESTAMP_HASH(quarter) & 255;
        own_slot INTEGER := 0;
        is_kept BOOLEAN;
        floor INTEGER;
    BEGIN
        -- Above read committed, a row that changed since the transaction began cannot be changed: insert one. The
        -- floor, too, may have been lowered since.
        IF NOT may_fail AND CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%' THEN
            BEGIN
                PERFORM alicia_session_stats_count(
                    quarter, more_sessions, more_memories, more_seconds, more_messages, more_calls, may_gather, may_fail => TRUE
                );
            EXCEPTION WHEN serialization_failure OR unique_violation THEN
                INSERT INTO alicia_session_stats_counters
                VALUES (quarter, NULL, NULL, more_sessions, more_memories, more_seconds, more_messages, more_calls);
            END;
            RETURN -1;
        END IF;

        -- Until the transaction ends, nobody else changes or deletes a row of this slot.
        WHILE NOT PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * own_slot + stripe) LOOP
            own_slot := own_slot + 1;
        END LOOP;

        UPDATE alicia_session_stats_counters AS c
        SET floor = (SELECT f.message_count FROM alicia_session_stats_floor AS f),
            sessions = c.sessions + more_sessions,
            memories = c.memories + more_memories,
            active_seconds = c.active_seconds + more_seconds,
            messages = c.messages + more_messages,
            tool_calls = c.tool_calls + more_calls,
            -- An xmin of age 0 or less is this transaction's, or that of one that began later and is done: no harm.
            changes = CASE WHEN AGE(c.xmin) > 0 THEN 1 ELSE c.changes + 1 END,
            room = ''
        WHERE c.quarter_hour = quarter AND c.slot = own_slot
            AND (AGE(c.xmin) > 0 OR c.changes < 1000)
        RETURNING c.floor INTO floor;

        is_kept := FOUND;
        IF NOT is_kept THEN
            -- There is none; or this transaction has changed it so often that the versions, which cannot be cleaned
            -- before it ends, make every further change slower. Then the row is for another to gather.
            is_kept := NOT EXISTS (
                SELECT FROM alicia_session_stats_counters AS c WHERE c.quarter_hour = quarter AND c.slot = own_slot
            );
            INSERT INTO alicia_session_stats_counters AS c
            VALUES (
                quarter, CASE WHEN is_kept THEN own_slot END, (SELECT f.message_count FROM alicia_session_stats_floor AS f),
                more_sessions, more_memories, more_seconds, more_messages, more_calls
            )
            RETURNING c.floor INTO floor;
        END IF;

        IF is_kept AND own_slot = 0 AND may_gather THEN
            -- Gather the quarter of an hour into this row; drop it, if nothing is left.
            WITH gathered AS (
                DELETE FROM alicia_session_stats_counters AS c
                WHERE c.quarter_hour = quarter AND c.slot IS DISTINCT FROM 0
                    AND CASE WHEN c.slot IS NULL THEN TRUE ELSE PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * c.slot + stripe) END
                RETURNING c.*
            )

            UPDATE alicia_session_stats_counters AS c
            SET sessions = c.sessions + g.sessions,
                memories = c.memories + g.memories,
                active_seconds = c.active_seconds + g.active_seconds,
                messages = c.messages + g.messages,
                tool_calls = c.tool_calls + g.tool_calls
            FROM (
                SELECT
                    SUM(sessions) AS sessions,
                    SUM(memories) AS memories,
                    SUM(active_seconds) AS active_seconds,
                    SUM(messages) AS messages,
                    SUM(tool_calls) AS tool_calls
                FROM gathered
                HAVING COUNT(*) > 0
            ) AS g
            WHERE c.quarter_hour = quarter AND c.slot = 0;
            DELETE FROM alicia_session_stats_counters
            WHERE quarter_hour = quarter AND slot = 0
                AND (sessions, memories, active_seconds, messages, tool_calls) = (0, 0, 0, 0, 0);
        END IF;

        RETURN floor;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_count(TIMESTAMP, BIGINT, BIGINT, BIGINT, BIGINT, BIGINT, BOOLEAN, BOOLEAN) IS
    'Adds to the sums of a quarter of an hour, without waiting for anybody';

    CREATE FUNCTION alicia_session_stats_trim() RETURNS VOID
    LANGUAGE plpgsql
    AS $function$
    BEGIN
        IF NOT PG_TRY_ADVISORY_XACT_LOCK(1634494819, -1) OR (SELECT COUNT(*) FROM alicia_session_stats_candidates) < 2000 THEN
            RETURN;
        END IF;

        UPDATE alicia_session_stats_floor AS f
        SET message_count = t.message_count, created_at = t.created_at, id = t.id
        FROM (
            SELECT DISTINCT message_count, created_at, id
            FROM alicia_session_stats_candidates
            INNER JOIN alicia_session_stats USING (message_count, created_at, id, conversation_id)
            ORDER BY message_count DESC, created_at DESC, id DESC
            OFFSET 999 LIMIT 1
        ) AS t
        WHERE (t.message_count, t.created_at, t.id) > (f.message_count, f.created_at, f.id);

        DELETE FROM alicia_session_stats_candidates
        WHERE ctid = ANY(ARRAY(
            SELECT c.ctid
            FROM alicia_session_stats_candidates AS c
            CROSS JOIN alicia_session_stats_floor AS f
            WHERE (c.message_count, c.created_at, c.id) < (f.message_count, f.created_at, f.id)
                OR NOT EXISTS (
                    SELECT FROM alicia_session_stats AS s
                    WHERE s.id = c.id AND s.message_count = c.message_count
                        AND s.created_at = c.created_at AND s.conversation_id = c.conversation_id
                )
            FOR UPDATE OF c SKIP LOCKED
        ));
    EXCEPTION WHEN serialization_failure THEN
        -- Above read committed: another has been at it. What is outdated does no harm.
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_trim() IS
    'Raises the floor to the thousandth candidate, and deletes candidates that are below it or outdated';

    -- These run with the rights of their owner: a writer needs none but on alicia_session_stats.
    -- For each row, because an application changes one at a time, and that is what must be fast.
    CREATE FUNCTION alicia_session_stats_updated() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    AS $function$
    DECLARE
        quarter CONSTANT TIMESTAMP := DATE_BIN('15 minutes', NEW.created_at, '2000-01-01');
        stripe CONSTANT INTEGER := TIMESTAMP_HASH(quarter) & 255;
        own_slot INTEGER := 0;
        is_leading BOOLEAN;
        floor INTEGER;
        may_trim BOOLEAN;
    BEGIN
        -- What alicia_session_stats_count() does, as it is most often done, in one statement: the start of another
        -- would cost more than its work. It finds no row where it cannot be done so, and now and then, to gather.
        WHILE NOT PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * own_slot + stripe) LOOP
            own_slot := own_slot + 1;
        END LOOP;
        UPDATE alicia_session_stats_counters AS c
        SET memories = c.memories + NEW.memories_used - OLD.memories_used,
            active_seconds = c.active_seconds + NEW.session_duration_seconds - OLD.session_duration_seconds,
            messages = c.messages + NEW.message_count - OLD.message_count,
            tool_calls = c.tool_calls + NEW.tool_call_count - OLD.tool_call_count,
            changes = CASE WHEN AGE(c.xmin) > 0 THEN 1 ELSE c.changes + 1 END,
            room = ''
        WHERE c.quarter_hour = quarter AND c.slot = own_slot AND NEW.created_at = OLD.created_at
            AND (AGE(c.xmin) > 0 OR c.changes < 1000)
            AND CURRENT_SETTING('transaction_isolation') = 'read committed' AND RANDOM() > 0.02
        RETURNING COALESCE(GREATEST(NEW.message_count, OLD.message_count) >= c.floor, TRUE) INTO is_leading;
        IF NOT is_leading THEN
            RETURN NULL;
        END IF;

        IF is_leading IS NULL AND NEW.created_at = OLD.created_at THEN
            floor := alicia_session_stats_count(
                quarter, 0, NEW.memories_used::BIGINT - OLD.memories_used,
                NEW.session_duration_seconds::BIGINT - OLD.session_duration_seconds,
                NEW.message_count::BIGINT - OLD.message_count, NEW.tool_call_count::BIGINT - OLD.tool_call_count,
                may_gather => TRUE
            );
        ELSIF is_leading IS NULL THEN
            floor := alicia_session_stats_count(
                quarter, 1, NEW.memories_used, NEW.session_duration_seconds, NEW.message_count, NEW.tool_call_count,
                may_gather => TRUE
            );
            floor := alicia_session_stats_count(
                DATE_BIN('15 minutes', OLD.created_at, '2000-01-01'), -1, -OLD.memories_used, -OLD.session_duration_seconds,
                -OLD.message_count, -OLD.tool_call_count, may_gather => TRUE
            );
        END IF;
        IF NEW.message_count < floor AND OLD.message_count < floor
            OR (NEW.message_count, NEW.created_at, NEW.id, NEW.conversation_id)
            = (OLD.message_count, OLD.created_at, OLD.id, OLD.conversation_id)
        THEN
            RETURN NULL;
        END IF;
        -- Above read committed, the floor may have been lowered, or be gone, since the transaction began: any may be one.
        INSERT INTO alicia_session_stats_candidates
        SELECT NEW.message_count, NEW.created_at, NEW.id, NEW.conversation_id
        WHERE floor = -1 OR EXISTS (
            SELECT FROM alicia_session_stats_floor AS f
            WHERE (NEW.message_count, NEW.created_at, NEW.id) >= (f.message_count, f.created_at, f.id)
        );
        may_trim := FOUND AND RANDOM() < 0.02;
        IF is_leading AND NOT FOUND THEN
            -- The floor has risen since the row was written.
            UPDATE alicia_session_stats_counters AS c
            SET floor = f.message_count
            FROM alicia_session_stats_floor AS f
            WHERE c.quarter_hour = quarter AND c.slot = own_slot AND c.floor < f.message_count;
        END IF;
        BEGIN
            DELETE FROM alicia_session_stats_candidates
            WHERE ctid = ANY(ARRAY(
                SELECT c.ctid
                FROM alicia_session_stats_candidates AS c
                WHERE c.message_count = OLD.message_count AND c.created_at = OLD.created_at AND c.id = OLD.id
                    AND c.conversation_id = OLD.conversation_id
                FOR UPDATE SKIP LOCKED
            ));
        EXCEPTION WHEN serialization_failure THEN
            -- Above read committed: another has been at it. What is outdated does no harm.
        END;
        IF may_trim THEN
            PERFORM alicia_session_stats_trim();
        END IF;
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_updated() IS
    'Trigger function: counts the change of a session into the sums and candidates';

    -- For each statement, because many are loaded at once.
    CREATE FUNCTION alicia_session_stats_inserted() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    AS $function$
    DECLARE
        quarter CONSTANT TIMESTAMP := DATE_BIN('15 minutes', NOW() AT TIME ZONE 'UTC', '2000-01-01');
        stripe CONSTANT INTEGER := TIMESTAMP_HASH(quarter) & 255;
        own_slot INTEGER := 0;
        floor INTEGER;
        is_leading BOOLEAN;
        inserted BIGINT;
        above alicia_session_stats_floor;
    BEGIN
        -- One statement, as above, for one session that begins now. No aggregate: its start alone would cost as much.
        WHILE NOT PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * own_slot + stripe) LOOP
            own_slot := own_slot + 1;
        END LOOP;
        UPDATE alicia_session_stats_counters AS c
        SET sessions = c.sessions + 1,
            memories = c.memories + n.memories_used,
            active_seconds = c.active_seconds + n.session_duration_seconds,
            messages = c.messages + n.message_count,
            tool_calls = c.tool_calls + n.tool_call_count,
            changes = CASE WHEN AGE(c.xmin) > 0 THEN 1 ELSE c.changes + 1 END,
            room = ''
        FROM new_rows AS n
        WHERE NOT EXISTS (SELECT FROM new_rows OFFSET 1)
            AND n.created_at >= quarter AND n.created_at < quarter + INTERVAL '15 minutes'
            AND c.quarter_hour = quarter AND c.slot = own_slot AND n.message_count < c.floor
            AND (AGE(c.xmin) > 0 OR c.changes < 1000)
            AND CURRENT_SETTING('transaction_isolation') = 'read committed' AND RANDOM() > 0.02;
        IF FOUND THEN
            RETURN NULL;
        END IF;

        SELECT MAX(part.floor), BOOL_OR(part.most_messages >= part.floor) INTO floor, is_leading
        FROM (
            SELECT
                MAX(message_count) AS most_messages,
                alicia_session_stats_count(
                    DATE_BIN('15 minutes', created_at, '2000-01-01'), COUNT(*), SUM(memories_used),
                    SUM(session_duration_seconds), SUM(message_count), SUM(tool_call_count),
                    -- One row by itself comes here now and then; of many, now and then one.
                    may_gather => NOT EXISTS (SELECT FROM new_rows OFFSET 1) OR RANDOM() < 0.06
                ) AS floor
            FROM new_rows
            GROUP BY DATE_BIN('15 minutes', created_at, '2000-01-01')
            -- Neighbours in time are read together.
            ORDER BY DATE_BIN('15 minutes', created_at, '2000-01-01')
        ) AS part;
        IF is_leading IS NOT TRUE THEN
            RETURN NULL;
        END IF;

        -- A thousand from one statement are enough: those below them need not be candidates.
        SELECT message_count, created_at, id INTO above
        FROM new_rows
        ORDER BY message_count DESC, created_at DESC, id DESC
        OFFSET 999 LIMIT 1;
        IF FOUND AND CURRENT_SETTING('transaction_isolation') LIKE 'read%' AND PG_TRY_ADVISORY_XACT_LOCK(1634494819, -1) THEN
            UPDATE alicia_session_stats_floor AS f
            SET message_count = above.message_count, created_at = above.created_at, id = above.id
            WHERE (above.message_count, above.created_at, above.id) > (f.message_count, f.created_at, f.id);
            floor := GREATEST(floor, above.message_count);
        END IF;
        INSERT INTO alicia_session_stats_candidates
        SELECT message_count, created_at, id, conversation_id
        FROM new_rows
        WHERE message_count >= floor;
        GET DIAGNOSTICS inserted = ROW_COUNT;
        IF RANDOM() < inserted / 50.0 THEN
            PERFORM alicia_session_stats_trim();
        END IF;
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_inserted() IS
    'Trigger function: counts new sessions into the sums and candidates';

    CREATE FUNCTION alicia_session_stats_deleted() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    AS $function$
    BEGIN
        PERFORM alicia_session_stats_count(
            DATE_BIN('15 minutes', created_at, '2000-01-01'), -COUNT(*), -SUM(memories_used), -SUM(session_duration_seconds),
            -SUM(message_count), -SUM(tool_call_count), may_gather => TRUE
        )
        FROM old_rows
        GROUP BY DATE_BIN('15 minutes', created_at, '2000-01-01');
        BEGIN
            DELETE FROM alicia_session_stats_candidates
            WHERE ctid = ANY(ARRAY(
                SELECT c.ctid
                FROM alicia_session_stats_candidates AS c
                INNER JOIN old_rows AS o USING (message_count, created_at, id, conversation_id)
                FOR UPDATE OF c SKIP LOCKED
            ));
        EXCEPTION WHEN serialization_failure THEN
            -- Above read committed: another has been at it. What is outdated does no harm.
        END;
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_deleted() IS
    'Trigger function: counts deleted sessions out of the sums and candidates';

    -- TRUNCATE, as the sessions were: a deletion would leave what an older snapshot does not see.
    CREATE FUNCTION alicia_session_stats_emptied() RETURNS TRIGGER
    LANGUAGE plpgsql SECURITY DEFINER
    AS $function$
    BEGIN
        TRUNCATE alicia_session_stats_counters, alicia_session_stats_candidates, alicia_session_stats_floor;
        INSERT INTO alicia_session_stats_floor VALUES (-1, '-infinity', '');
        RETURN NULL;
    END
    $function$;

    COMMENT ON FUNCTION alicia_session_stats_emptied() IS
    'Trigger function: empties the sums and candidates';

    FOREACH created IN ARRAY ARRAY[
        'alicia_session_stats_count(timestamp,bigint,bigint,bigint,bigint,bigint,boolean,boolean)', 'alicia_session_stats_trim()',
        'alicia_session_stats_inserted()', 'alicia_session_stats_updated()', 'alicia_session_stats_deleted()',
        'alicia_session_stats_emptied()'
    ] LOOP
        -- Nothing of a caller's can slip in, and nobody can hang them on a table of his own.
        EXECUTE FORMAT(
            'ALTER FUNCTION %s SET search_path = pg_catalog, %I, %s, pg_temp', created, CURRENT_SCHEMA(),
            (SELECT relnamespace::REGNAMESPACE FROM pg_class WHERE oid = 'alicia_session_stats'::REGCLASS)
        );
        EXECUTE FORMAT('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', created);
        INSERT INTO alicia_session_stats_created VALUES ('FUNCTION ' || created);
    END LOOP;

    CREATE TRIGGER count_session_stats_insert
    AFTER INSERT ON alicia_session_stats
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_inserted();

    CREATE TRIGGER count_session_stats_update
    AFTER UPDATE ON alicia_session_stats
    FOR EACH ROW EXECUTE FUNCTION alicia_session_stats_updated();

    CREATE TRIGGER count_session_stats_delete
    AFTER DELETE ON alicia_session_stats
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_deleted();

    CREATE TRIGGER count_session_stats_truncate
    AFTER TRUNCATE ON alicia_session_stats
    FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_emptied();

    COMMENT ON TRIGGER count_session_stats_insert ON alicia_session_stats IS
    'Counts new sessions into the sums and candidates';
    COMMENT ON TRIGGER count_session_stats_update ON alicia_session_stats IS
    'Counts changes of sessions into the sums and candidates';
    COMMENT ON TRIGGER count_session_stats_delete ON alicia_session_stats IS
    'Counts deleted sessions out of the sums and candidates';
    COMMENT ON TRIGGER count_session_stats_truncate ON alicia_session_stats IS
    'Empties the sums and candidates';

    INSERT INTO alicia_session_stats_created VALUES
    ('TRIGGER count_session_stats_insert'),
    ('TRIGGER count_session_stats_update'),
    ('TRIGGER count_session_stats_delete'),
    ('TRIGGER count_session_stats_truncate');
END
$migration$;
