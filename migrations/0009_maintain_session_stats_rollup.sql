-- Keep the rollup up to date from triggers on alicia_session_stats.
--
-- Why: averages and trends must cost the same at a thousand sessions and at a billion, and be exact in the writer's own
--      transaction, without a scheduled job.
-- How: a bucket (15 minutes) has a row for each writer that needed one at the same time. A writer takes the first slot
--      whose advisory lock is free (PG_TRY_ADVISORY_XACT_LOCK, so it never waits) and adds to the slot's row. At its
--      200th version a new row replaces the slot's row, and in slot 0 also the rows of other slots whose lock is free.
--      Readers sum all rows of a bucket.
--      A session at or above the cutoff is also inserted into the top candidates. Readers ignore stale
--      candidates. One such write in fifty raises the cutoff and deletes what is below it.
--      docs/design.md draws this and lists the invariants.
-- Locks: SHARE ROW EXCLUSIVE on alicia_session_stats for an instant: writers wait, readers do not.
-- Rollback: drops the triggers and functions. No session is lost.
SET LOCAL lock_timeout = '500ms';

-- The bucket of a session: the quarter of an hour in which it starts.
CREATE OR REPLACE FUNCTION alicia_session_stats_bucket(created_at TIMESTAMP) RETURNS TIMESTAMP
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $function$
SELECT DATE_BIN(INTERVAL '15 minutes', created_at, TIMESTAMP '2000-01-01')
$function$;

COMMENT ON FUNCTION alicia_session_stats_bucket(TIMESTAMP) IS
'Private: the start of the quarter of an hour that holds a time';

-- The lock of a slot is the advisory lock (1634494819, 256 * slot + hash of the bucket): the first key is the bytes "alic", and
-- with 256 hashes a transaction that writes to every bucket of a year takes few locks. That of trim() is (1634494819, -1).
--
-- These numbers are literals in what every write calls: PL/pgSQL initializes each expression, also the value of a constant, once
-- per transaction. For the same reason the usual case has few expressions.

CREATE OR REPLACE FUNCTION alicia_session_stats_add(
    bucket TIMESTAMP, more_sessions BIGINT, more_messages BIGINT, more_tool_calls BIGINT, more_memories BIGINT,
    more_seconds BIGINT, keeps_snapshot BOOLEAN
) RETURNS INTEGER
LANGUAGE plpgsql
AS $function$
DECLARE
    slot INTEGER := 0;
    cutoff INTEGER;
BEGIN
    -- Under REPEATABLE READ or SERIALIZABLE the transaction keeps its snapshot, and changing a row that has changed since
    -- would fail: insert a row without a slot.
    IF keeps_snapshot THEN
        BEGIN
            PERFORM alicia_session_stats_add(
                bucket, more_sessions, more_messages, more_tool_calls, more_memories, more_seconds, keeps_snapshot => FALSE
            );
        EXCEPTION WHEN serialization_failure THEN
            INSERT INTO alicia_session_stats_rollup
            VALUES (
                bucket, 2147483647, CLOCK_TIMESTAMP() AT TIME ZONE 'UTC', NULL,
                more_sessions, more_messages, more_tool_calls, more_memories, more_seconds
            );
        END;
        -- The snapshot's cutoff may only be used if it was not lowered since. A sequence shows its newest value.
        RETURN COALESCE((
            SELECT t.message_count
            FROM alicia_session_stats_top_cutoff AS t
            INNER JOIN alicia_session_stats_lowerings AS l ON l.last_value = t.lowerings
        ), -1);
    END IF;

    -- The lock lasts until commit, so only this transaction changes the slot's row until then.
    WHILE NOT PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * slot + (TIMESTAMP_HASH(bucket) & 255)) LOOP
        slot := slot + 1;
    END LOOP;

    UPDATE alicia_session_stats_rollup AS r
    SET sessions = r.sessions + more_sessions,
        messages = r.messages + more_messages,
        tool_calls = r.tool_calls + more_tool_calls,
        memories = r.memories + more_memories,
        seconds = r.seconds + more_seconds,
        versions = r.versions + 1,
        padding = ''
    WHERE r.versions < 200 AND r.ctid = (
        SELECT n.ctid
        FROM alicia_session_stats_rollup AS n
        WHERE n.bucket_start = bucket AND n.writer_slot = slot
        ORDER BY n.bucket_start, n.writer_slot, n.opened_at DESC
        LIMIT 1
    )
    RETURNING r.cutoff INTO cutoff;
    IF FOUND THEN
        RETURN cutoff;
    END IF;

    -- No row yet, or it has reached its limit: every update must read the row's dead versions, which an open snapshot may
    -- keep for long. A new row takes over the sums; in slot 0 also those of other slots that no writer holds.
    WITH replaced AS (
        DELETE FROM alicia_session_stats_rollup AS r
        WHERE r.ctid = ANY(ARRAY(
            (
                SELECT n.ctid
                FROM alicia_session_stats_rollup AS n
                WHERE n.bucket_start = bucket AND n.writer_slot = slot
                ORDER BY n.bucket_start, n.writer_slot, n.opened_at DESC
                LIMIT 1
            )
            UNION ALL
            SELECT o.ctid
            FROM alicia_session_stats_rollup AS o
            WHERE slot = 0 AND o.bucket_start = bucket AND o.writer_slot > 0
                AND CASE
                    WHEN o.writer_slot = 2147483647 THEN TRUE
                    ELSE PG_TRY_ADVISORY_XACT_LOCK(1634494819, 256 * o.writer_slot + (TIMESTAMP_HASH(bucket) & 255))
                END
        ))
        RETURNING r.*
    )

    INSERT INTO alicia_session_stats_rollup AS r
    SELECT
        bucket,
        slot,
        CLOCK_TIMESTAMP() AT TIME ZONE 'UTC',
        -- As above: this may be the older snapshot of a transaction under REPEATABLE READ.
        COALESCE((
            SELECT t.message_count
            FROM alicia_session_stats_top_cutoff AS t
            INNER JOIN alicia_session_stats_lowerings AS l ON l.last_value = t.lowerings
        ), -1),
        COALESCE(SUM(sessions)::BIGINT, 0) + more_sessions,
        COALESCE(SUM(messages)::BIGINT, 0) + more_messages,
        COALESCE(SUM(tool_calls)::BIGINT, 0) + more_tool_calls,
        COALESCE(SUM(memories)::BIGINT, 0) + more_memories,
        COALESCE(SUM(seconds)::BIGINT, 0) + more_seconds
    FROM replaced
    RETURNING r.cutoff INTO cutoff;
    RETURN cutoff;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_add(TIMESTAMP, BIGINT, BIGINT, BIGINT, BIGINT, BIGINT, BOOLEAN) IS
'Private: adds to the sums of a bucket without waiting. Returns a message_count below which a session is no top candidate.';

CREATE OR REPLACE FUNCTION alicia_session_stats_forget(old_count INTEGER, old_start TIMESTAMP, old_id TEXT, old_conversation TEXT)
RETURNS VOID
LANGUAGE plpgsql
AS $function$
BEGIN
    DELETE FROM alicia_session_stats_top_candidates
    WHERE ctid = ANY(ARRAY(
        SELECT c.ctid
        FROM alicia_session_stats_top_candidates AS c
        WHERE c.message_count = old_count AND c.created_at = old_start AND c.id = old_id AND c.conversation_id = old_conversation
        FOR UPDATE SKIP LOCKED
    ));
EXCEPTION WHEN serialization_failure THEN
    -- Under REPEATABLE READ: another transaction deleted the row after the snapshot was taken. Nothing is left to do.
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_forget(INTEGER, TIMESTAMP, TEXT, TEXT) IS
'Private: deletes the top candidates that a change of their session made stale, unless another transaction has them locked';

CREATE OR REPLACE FUNCTION alicia_session_stats_trim() RETURNS VOID
LANGUAGE plpgsql
AS $function$
DECLARE
    lock_class CONSTANT INTEGER := 1634494819;
    trim_lock CONSTANT INTEGER := -1;
    list_size CONSTANT BIGINT := 1000;
    -- Under FORCE ROW LEVEL SECURITY a policy may hide sessions from the owner: then no candidate is known to be stale.
    sees_all CONSTANT BOOLEAN := NOT ROW_SECURITY_ACTIVE('alicia_session_stats'::TEXT);
BEGIN
    IF NOT PG_TRY_ADVISORY_XACT_LOCK(lock_class, trim_lock)
        OR (SELECT COUNT(*) FROM alicia_session_stats_top_candidates) < 2 * list_size
    THEN
        RETURN;
    END IF;

    -- The new cutoff is the thousandth candidate that is not stale.
    UPDATE alicia_session_stats_top_cutoff AS t
    SET message_count = n.message_count, created_at = n.created_at, id = n.id
    FROM (
        SELECT DISTINCT c.message_count, c.created_at, c.id
        FROM alicia_session_stats_top_candidates AS c
        WHERE NOT sees_all OR EXISTS (
            SELECT FROM alicia_session_stats AS s
            WHERE s.id = c.id AND s.message_count = c.message_count
                AND s.created_at = c.created_at AND s.conversation_id = c.conversation_id
        )
        ORDER BY c.message_count DESC, c.created_at DESC, c.id DESC
        OFFSET list_size - 1 LIMIT 1
    ) AS n
    WHERE (n.message_count, n.created_at, n.id) > (t.message_count, t.created_at, t.id);
    -- NEXTVAL is not rolled back, so an aborted lowering leaves the sequence ahead of the row. None can be in progress:
    -- it holds a table lock that conflicts with this writer's.
    UPDATE alicia_session_stats_top_cutoff AS t
    SET lowerings = (SELECT l.last_value FROM alicia_session_stats_lowerings AS l)
    WHERE t.lowerings <> (SELECT l.last_value FROM alicia_session_stats_lowerings AS l);

    DELETE FROM alicia_session_stats_top_candidates
    WHERE ctid = ANY(ARRAY(
        SELECT c.ctid
        FROM alicia_session_stats_top_candidates AS c
        CROSS JOIN alicia_session_stats_top_cutoff AS t
        WHERE (c.message_count, c.created_at, c.id) < (t.message_count, t.created_at, t.id)
            OR sees_all AND NOT EXISTS (
                SELECT FROM alicia_session_stats AS s
                WHERE s.id = c.id AND s.message_count = c.message_count
                    AND s.created_at = c.created_at AND s.conversation_id = c.conversation_id
            )
        FOR UPDATE OF c SKIP LOCKED
    ));
EXCEPTION WHEN serialization_failure THEN
    -- Under REPEATABLE READ: another transaction deleted the row after the snapshot was taken. Nothing is left to do.
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_trim() IS
'Private: raises the cutoff to the thousandth top candidate, and deletes the candidates that are below it or stale';

-- The trigger functions are SECURITY DEFINER: a writer needs no right but on alicia_session_stats. Their literals are typed
-- and their operators have exact types, so that no overload in another schema is preferred to that of pg_catalog. enable_seqscan
-- is off because a plan made while the rollup is small stays in use when it is large. jit is off because enable_seqscan
-- adds a large cost to the one sequential scan that is left, of the cutoff's only row, and that cost would start JIT.

-- For each row, because an application updates one session at a time, and that must be fast. For the same reason the usual case
-- is handled here. add() handles the rest.
CREATE OR REPLACE FUNCTION alicia_session_stats_on_update() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $function$
DECLARE
    slot INTEGER := 0;
    keeps_snapshot BOOLEAN;
    cutoff INTEGER;
    is_candidate BOOLEAN;
BEGIN
    -- Another column changed. Not in the WHEN of the trigger, which PostgreSQL reads from the catalog for each statement.
    IF NEW.message_count = OLD.message_count THEN
        IF (NEW.tool_call_count, NEW.memories_used, NEW.session_duration_seconds, NEW.created_at, NEW.id, NEW.conversation_id)
            = (OLD.tool_call_count, OLD.memories_used, OLD.session_duration_seconds, OLD.created_at, OLD.id, OLD.conversation_id)
        THEN
            RETURN NULL;
        END IF;
    END IF;

    -- The usual case: READ COMMITTED, and a row of the slot that has not reached its limit of versions. If there is no such row,
    -- cutoff stays NULL.
    IF NEW.created_at = OLD.created_at AND CURRENT_SETTING('transaction_isolation') = 'read committed' THEN
        WHILE NOT PG_TRY_ADVISORY_XACT_LOCK(
            1634494819, 256 * slot + (TIMESTAMP_HASH(alicia_session_stats_bucket(NEW.created_at)) & 255)
        ) LOOP
            slot := slot + 1;
        END LOOP;
        UPDATE alicia_session_stats_rollup AS r
        SET messages = r.messages + NEW.message_count - OLD.message_count,
            tool_calls = r.tool_calls + NEW.tool_call_count - OLD.tool_call_count,
            memories = r.memories + NEW.memories_used - OLD.memories_used,
            seconds = r.seconds + NEW.session_duration_seconds - OLD.session_duration_seconds,
            versions = r.versions + 1,
            padding = ''
        WHERE r.versions < 200 AND r.ctid = (
            SELECT n.ctid
            FROM alicia_session_stats_rollup AS n
            WHERE n.bucket_start = alicia_session_stats_bucket(NEW.created_at) AND n.writer_slot = slot
            ORDER BY n.bucket_start, n.writer_slot, n.opened_at DESC
            LIMIT 1
        )
        RETURNING COALESCE(r.cutoff, -1) INTO cutoff;
        IF GREATEST(NEW.message_count, OLD.message_count) < cutoff THEN
            RETURN NULL;
        END IF;
    END IF;

    keeps_snapshot := CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%';
    IF cutoff IS NULL AND NEW.created_at = OLD.created_at THEN
        cutoff := alicia_session_stats_add(
            alicia_session_stats_bucket(NEW.created_at), 0::BIGINT, NEW.message_count::BIGINT - OLD.message_count,
            NEW.tool_call_count::BIGINT - OLD.tool_call_count, NEW.memories_used::BIGINT - OLD.memories_used,
            NEW.session_duration_seconds::BIGINT - OLD.session_duration_seconds, keeps_snapshot
        );
    ELSIF cutoff IS NULL THEN
        cutoff := LEAST(
            alicia_session_stats_add(
                alicia_session_stats_bucket(OLD.created_at), -1::BIGINT, -OLD.message_count::BIGINT,
                -OLD.tool_call_count::BIGINT, -OLD.memories_used::BIGINT, -OLD.session_duration_seconds::BIGINT, keeps_snapshot
            ),
            alicia_session_stats_add(
                alicia_session_stats_bucket(NEW.created_at), 1::BIGINT, NEW.message_count::BIGINT,
                NEW.tool_call_count::BIGINT, NEW.memories_used::BIGINT, NEW.session_duration_seconds::BIGINT, keeps_snapshot
            )
        );
    END IF;
    IF GREATEST(NEW.message_count, OLD.message_count) < cutoff
        OR (NEW.message_count, NEW.created_at, NEW.id, NEW.conversation_id)
        = (OLD.message_count, OLD.created_at, OLD.id, OLD.conversation_id)
    THEN
        RETURN NULL;
    END IF;

    -- The bucket's row may hold an older and lower cutoff.
    IF NOT keeps_snapshot THEN
        cutoff := (SELECT t.message_count FROM alicia_session_stats_top_cutoff AS t);
        IF GREATEST(NEW.message_count, OLD.message_count) < cutoff THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO alicia_session_stats_top_candidates
    SELECT NEW.message_count, NEW.created_at, NEW.id, NEW.conversation_id
    WHERE keeps_snapshot AND cutoff = -1 OR NOT EXISTS (
        SELECT FROM alicia_session_stats_top_cutoff AS t
        WHERE (NEW.message_count, NEW.created_at, NEW.id) < (t.message_count, t.created_at, t.id)
    );
    is_candidate := FOUND;
    PERFORM alicia_session_stats_forget(OLD.message_count, OLD.created_at, OLD.id, OLD.conversation_id);
    -- Chosen by the clock, because RANDOM() would change the sequence that the application gets after SETSEED().
    IF is_candidate AND EXTRACT(MICROSECONDS FROM CLOCK_TIMESTAMP())::INTEGER % 50 = 0 THEN
        PERFORM alicia_session_stats_trim();
    END IF;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_on_update() IS
'Private: trigger function that adds the change of a session to the rollup';

-- For each statement, because many sessions are loaded or deleted at once.
CREATE OR REPLACE FUNCTION alicia_session_stats_on_insert_or_delete() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $function$
DECLARE
    keeps_snapshot CONSTANT BOOLEAN := CURRENT_SETTING('transaction_isolation') NOT LIKE 'read%';
    sign CONSTANT BIGINT := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
    session RECORD;
    thousandth RECORD;
    cutoff INTEGER;
    has_candidates BOOLEAN;
    inserted BIGINT;
BEGIN
    -- A single session is the usual case, and for one row the GROUP BY would cost as much as the write to the rollup.
    SELECT c.* INTO session FROM changed_rows AS c WHERE NOT EXISTS (SELECT FROM changed_rows OFFSET 1);
    IF FOUND THEN
        cutoff := alicia_session_stats_add(
            alicia_session_stats_bucket(session.created_at), sign, sign * session.message_count, sign * session.tool_call_count,
            sign * session.memories_used, sign * session.session_duration_seconds, keeps_snapshot
        );
        has_candidates := session.message_count >= cutoff;
    ELSE
        SELECT MIN(b.cutoff), BOOL_OR(b.most_messages >= b.cutoff) INTO cutoff, has_candidates
        FROM (
            SELECT
                MAX(c.message_count) AS most_messages,
                alicia_session_stats_add(
                    alicia_session_stats_bucket(c.created_at), sign * COUNT(*), (sign * SUM(c.message_count))::BIGINT,
                    (sign * SUM(c.tool_call_count))::BIGINT, (sign * SUM(c.memories_used))::BIGINT,
                    (sign * SUM(c.session_duration_seconds))::BIGINT, keeps_snapshot
                ) AS cutoff
            FROM changed_rows AS c
            GROUP BY alicia_session_stats_bucket(c.created_at)
            -- Ordered, so that adjacent buckets hit the same index pages.
            ORDER BY alicia_session_stats_bucket(c.created_at)
        ) AS b;
    END IF;
    IF has_candidates IS NOT TRUE THEN
        RETURN NULL;
    END IF;

    IF TG_OP = 'DELETE' THEN
        PERFORM alicia_session_stats_forget(c.message_count, c.created_at, c.id, c.conversation_id)
        FROM changed_rows AS c
        WHERE c.message_count >= cutoff;
        RETURN NULL;
    END IF;

    -- The thousandth of the new sessions may be the new cutoff: those below it need not be candidates.
    SELECT c.message_count, c.created_at, c.id INTO thousandth
    FROM changed_rows AS c
    ORDER BY c.message_count DESC, c.created_at DESC, c.id DESC
    OFFSET 999 LIMIT 1;
    IF FOUND AND NOT keeps_snapshot AND PG_TRY_ADVISORY_XACT_LOCK(1634494819, -1) THEN
        UPDATE alicia_session_stats_top_cutoff AS t
        SET message_count = thousandth.message_count, created_at = thousandth.created_at, id = thousandth.id
        WHERE (thousandth.message_count, thousandth.created_at, thousandth.id) > (t.message_count, t.created_at, t.id);
        cutoff := GREATEST(cutoff, thousandth.message_count);
    END IF;
    INSERT INTO alicia_session_stats_top_candidates
    SELECT c.message_count, c.created_at, c.id, c.conversation_id
    FROM changed_rows AS c
    WHERE c.message_count >= cutoff AND (keeps_snapshot AND cutoff = -1 OR NOT EXISTS (
        SELECT FROM alicia_session_stats_top_cutoff AS t
        WHERE (c.message_count, c.created_at, c.id) < (t.message_count, t.created_at, t.id)
    ));
    GET DIAGNOSTICS inserted = ROW_COUNT;
    IF EXTRACT(MICROSECONDS FROM CLOCK_TIMESTAMP())::INTEGER % 50 < inserted THEN
        PERFORM alicia_session_stats_trim();
    END IF;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_on_insert_or_delete() IS
'Private: trigger function that adds new sessions to the rollup, or subtracts deleted ones';

-- DELETE, which waits for no reader of the rollup. Writers wait for the ACCESS EXCLUSIVE lock of the TRUNCATE.
CREATE OR REPLACE FUNCTION alicia_session_stats_on_truncate() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $function$
BEGIN
    IF CURRENT_SETTING('transaction_isolation') LIKE 'read%' THEN
        DELETE FROM alicia_session_stats_rollup;
        DELETE FROM alicia_session_stats_top_candidates;
        DELETE FROM alicia_session_stats_top_cutoff;
    ELSE
        -- A DELETE would leave the rows that are newer than the snapshot.
        TRUNCATE alicia_session_stats_rollup, alicia_session_stats_top_candidates, alicia_session_stats_top_cutoff;
    END IF;
    INSERT INTO alicia_session_stats_top_cutoff
    VALUES (-1, TIMESTAMP '-infinity', '', NEXTVAL('alicia_session_stats_lowerings'::REGCLASS));
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_on_truncate() IS
'Private: trigger function that empties the rollup';

-- pg_restore --data-only loads the sessions, whose triggers add them to the rollup, and then the rollup's rows of the dump.
CREATE OR REPLACE FUNCTION alicia_session_stats_on_restore() RETURNS TRIGGER
LANGUAGE plpgsql
AS $function$
BEGIN
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_on_restore() IS
'Private: trigger function that ignores a row';

-- At depth 0 a statement of a client inserts, not a trigger of alicia_session_stats. The repair sets is_repair.
CREATE OR REPLACE TRIGGER restore_session_stats_rollup
BEFORE INSERT ON alicia_session_stats_rollup
FOR EACH ROW
WHEN (PG_TRIGGER_DEPTH() = 0 AND CURRENT_SETTING('alicia_session_stats.is_repair', TRUE) IS DISTINCT FROM 'on')
EXECUTE FUNCTION alicia_session_stats_on_restore();

COMMENT ON TRIGGER restore_session_stats_rollup ON alicia_session_stats_rollup IS
'Ignores the rows of a dump: the triggers of alicia_session_stats count the sessions that are restored';

CREATE OR REPLACE TRIGGER rollup_session_stats_insert
AFTER INSERT ON alicia_session_stats
REFERENCING NEW TABLE AS changed_rows
FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_insert_or_delete();

CREATE OR REPLACE TRIGGER rollup_session_stats_update
AFTER UPDATE ON alicia_session_stats
FOR EACH ROW EXECUTE FUNCTION alicia_session_stats_on_update();

CREATE OR REPLACE TRIGGER rollup_session_stats_delete
AFTER DELETE ON alicia_session_stats
REFERENCING OLD TABLE AS changed_rows
FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_insert_or_delete();

CREATE OR REPLACE TRIGGER rollup_session_stats_truncate
AFTER TRUNCATE ON alicia_session_stats
FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_on_truncate();

COMMENT ON TRIGGER rollup_session_stats_insert ON alicia_session_stats IS
'Adds new sessions to the rollup';
COMMENT ON TRIGGER rollup_session_stats_update ON alicia_session_stats IS
'Adds the change of a session to the rollup';
COMMENT ON TRIGGER rollup_session_stats_delete ON alicia_session_stats IS
'Subtracts deleted sessions from the rollup';
COMMENT ON TRIGGER rollup_session_stats_truncate ON alicia_session_stats IS
'Empties the rollup';

DO $migration$
DECLARE
    created TEXT;
BEGIN
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_bucket(timestamp without time zone)');
    FOREACH created IN ARRAY ARRAY[
        'add(timestamp without time zone,bigint,bigint,bigint,bigint,bigint,boolean)',
        'forget(integer,timestamp without time zone,text,text)', 'trim()', 'on_update()', 'on_insert_or_delete()',
        'on_truncate()', 'on_restore()'
    ] LOOP
        PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_' || created, is_closed => TRUE);
    END LOOP;
    FOREACH created IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        PERFORM alicia_session_stats_own(FORMAT('TRIGGER rollup_session_stats_%s ON alicia_session_stats', created));
    END LOOP;
    PERFORM alicia_session_stats_own('TRIGGER restore_session_stats_rollup ON alicia_session_stats_rollup');
END
$migration$;
