-- Record sessions from the application's messages, tool uses and memories, in the transaction that writes these.
--
-- Param gap_minutes (integer, default 30): a session ends when its conversation's next message is more than this many
--     minutes later.
--
-- Why: the table fills itself, at once, with nothing to schedule. docs/recording.md compares the ways to record.
-- How: triggers on the application's tables. A new message usually belongs to its conversation's latest session or
--      begins the next one: that is one look-up and one write. After any other change the conversation is computed again,
--      with the functions that rebuild_sessions calls. Writers of one conversation take turns: each locks the
--      conversation's row until it commits.
-- Locks: SHARE ROW EXCLUSIVE on the application's tables for an instant: writers wait, readers do not. Filling in what was
--      there before locks the rows of up to a hundred conversations at a time, and waits for a writer only while it
--      holds no other.
-- Needs: the migrations, and the role that ran them, which must also own the application's tables.
--
-- psql -v ON_ERROR_STOP=1 -v gap_minutes=30 -f live/attach.sql
\if :{?gap_minutes}
\else
\set gap_minutes 30
\endif
BEGIN ISOLATION LEVEL READ COMMITTED;

SET LOCAL lock_timeout = '500ms';
-- The bodies name columns and tables of the application.
SET LOCAL check_function_bodies = off;
SET LOCAL client_min_messages = warning;

SELECT SET_CONFIG('alicia_session_stats.gap_minutes', :'gap_minutes', TRUE) AS gap_minutes;

DO $attach$
DECLARE
    gap CONSTANT TEXT := CURRENT_SETTING('alicia_session_stats.gap_minutes');
    problems TEXT;
BEGIN
    IF gap !~ '^\d{1,6}$' THEN
        RAISE EXCEPTION 'gap_minutes must be a whole number, 0 to 999999, not %', gap
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF TO_REGPROCEDURE('alicia_session_stats_attached_gap()') IS NULL THEN
        RAISE EXCEPTION 'this database is not migrated, or not by this release'
            USING ERRCODE = 'undefined_function', HINT = 'Run migrate, then attach.';
    ELSIF TO_REGCLASS('alicia_session_stats_undistributed') IS NOT NULL THEN
        RAISE EXCEPTION 'alicia_session_stats is distributed over the workers of a Citus cluster, where live recording does not work'
            USING ERRCODE = 'feature_not_supported', HINT = 'scale/README.md says what to use instead.';
    ELSIF alicia_session_stats_attached_gap() <> gap::INTEGER THEN
        RAISE EXCEPTION 'sessions are recorded live with a gap of % minutes already', alicia_session_stats_attached_gap()
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Run detach first.';
    END IF;

    SELECT STRING_AGG(name, ', ') INTO problems
    FROM UNNEST(ARRAY['alicia_conversations', 'alicia_messages', 'alicia_tool_uses', 'alicia_memory_used']) AS t (name)
    WHERE TO_REGCLASS(name) IS NULL;
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'tables of the application are missing: %', problems
            USING ERRCODE = 'undefined_table', HINT = 'If they are named without the prefix, run live/unprefixed.sql first.';
    END IF;

    SELECT STRING_AGG(FORMAT('%s (%s)', c.relname, c.relowner::REGROLE), ', ') INTO problems
    FROM pg_class AS c
    WHERE c.oid IN (
        TO_REGCLASS('alicia_session_stats_owned_objects'), TO_REGCLASS('alicia_session_stats'), TO_REGCLASS('alicia_conversations'),
        TO_REGCLASS('alicia_messages'), TO_REGCLASS('alicia_tool_uses'), TO_REGCLASS('alicia_memory_used')
    ) AND NOT PG_HAS_ROLE(c.relowner, 'USAGE');
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'permission denied: % must own, or be a member of the owners of: %', CURRENT_USER, problems
            USING ERRCODE = 'insufficient_privilege', HINT = 'Attach as that role, or as a member of it.';
    END IF;

    problems := alicia_session_stats_source_problems(is_attaching => TRUE);
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'the application''s tables do not fit: %', problems
            USING ERRCODE = 'invalid_table_definition',
                HINT = 'A foreign key may be NOT VALID. For other names or types, see the views in live/unprefixed.sql.';
    END IF;
END
$attach$;

-- The functions ----------------------------------------------------------------------------------------------------

-- In these functions, as in those of the rollup, literals are typed and operators exact; what is polymorphic is qualified.

CREATE OR REPLACE FUNCTION alicia_session_stats_live_lock(conversations TEXT[]) RETURNS VOID
LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM FROM alicia_conversations AS c WHERE c.id = ANY(conversations) ORDER BY c.id FOR NO KEY UPDATE;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_lock(TEXT[]) IS
'Private: locks conversations until the transaction ends. Every writer does, before it reads what it computes from.';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_touch(conversations TEXT[]) RETURNS VOID
LANGUAGE plpgsql
AS $function$
BEGIN
    -- Under REPEATABLE READ the snapshot may be older than what another writer has committed before this one got its lock,
    -- and the result would be wrong. Whatever that was, it has changed a session or the version: fail on that.
    IF CURRENT_SETTING('transaction_isolation'::TEXT) NOT LIKE 'read%'::TEXT THEN
        IF NOT EXISTS (
            SELECT FROM alicia_session_stats_owned_objects AS o
            WHERE o.object = 'TABLE alicia_session_stats_live_versions'::TEXT
        ) THEN
            RAISE EXCEPTION 'could not serialize access: live recording began after this transaction'
                USING ERRCODE = 'serialization_failure', HINT = 'The transaction might succeed if retried.';
        END IF;
        PERFORM FROM alicia_session_stats AS s WHERE s.conversation_id = ANY(conversations) ORDER BY s.id FOR NO KEY UPDATE;
    END IF;
    INSERT INTO alicia_session_stats_live_versions AS v
    SELECT c.id, 1::BIGINT FROM alicia_conversations AS c WHERE c.id = ANY(conversations)
    ON CONFLICT (conversation_id) DO UPDATE SET version = v.version + 1::BIGINT;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_touch(TEXT[]) IS
'Private: changes the versions of conversations, so that a transaction with an older snapshot fails';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_recompute(conversations TEXT[], gap_minutes INTEGER) RETURNS VOID
LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM alicia_session_stats_live_touch(conversations);
    -- This counts rows whose trigger is still to come: those of the same statement, and of the statement whose trigger
    -- wrote these. That trigger must not add them again.
    PERFORM SET_CONFIG('alicia_session_stats.recomputed_at'::TEXT, STATEMENT_TIMESTAMP()::TEXT, TRUE);
    PERFORM alicia_session_stats_recompute(conversations, gap_minutes);
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_recompute(TEXT[], INTEGER) IS
'Private: computes the sessions of locked conversations again';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_latest(conversation TEXT)
RETURNS TABLE (id TEXT, starts_at TIMESTAMP, ends_at TIMESTAMP)
LANGUAGE sql STABLE
AS $function$
SELECT
    s.id,
    s.created_at,
    -- NULL near the ends of the types.
    CASE
        WHEN s.created_at >= TIMESTAMP '0001-01-01' AND s.created_at < TIMESTAMP '9000-01-01'
            AND s.session_duration_seconds < 2147483647
            THEN s.created_at + s.session_duration_seconds::DOUBLE PRECISION * INTERVAL '1 second'
    END
FROM alicia_session_stats AS s
WHERE s.conversation_id = conversation
    -- CASE, because the planner expects an equality to hold for few rows, and would read and sort all of the conversation's.
    AND CASE WHEN s.id = alicia_session_stats_session_id(s.conversation_id, s.created_at) THEN TRUE END
ORDER BY s.created_at DESC
LIMIT 1
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_latest(TEXT) IS
'Private: the computed session of a conversation that started last. Its last message is less than a second after ends_at.';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_warn(changed_table NAME, error_state TEXT, error_message TEXT) RETURNS VOID
LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE WARNING 'this change of % is stored, but its sessions are not recorded: %', changed_table, error_message
        USING ERRCODE = error_state, HINT = 'Remove the cause, then run rebuild_sessions.';
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_warn(NAME, TEXT, TEXT) IS
'Private: warns of an error that a trigger has caught';

-- The triggers' functions ------------------------------------------------------------------------------------------
--
-- They are SECURITY DEFINER, so that a role that writes messages needs no privilege on the sessions. enable_seqscan and jit are off
-- as in those of the rollup. TimeZone is UTC for columns that are TIMESTAMPTZ.
--
-- Each locks the conversations first. All else is in a block that catches errors: the application's write goes on, and a
-- WARNING says that its sessions must be rebuilt. Only what a retry of the transaction resolves is raised again. The lock is
-- outside, because writers deadlock over a row that they have locked in a subtransaction and lock again. So that it cannot
-- fail on a column which was renamed after attach, a block before it names all that it reads.

CREATE OR REPLACE FUNCTION alicia_session_stats_live_on_message() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET TimeZone = 'UTC'
AS $function$
DECLARE
    gap_minutes CONSTANT INTEGER := TG_ARGV[0];
    gap CONSTANT INTERVAL := MAKE_INTERVAL(mins => gap_minutes);
    keeps_snapshot CONSTANT BOOLEAN := CURRENT_SETTING('transaction_isolation'::TEXT) NOT LIKE 'read%'::TEXT;
    is_usual CONSTANT BOOLEAN := TG_OP = 'INSERT' AND PG_TRIGGER_DEPTH() = 1
        AND CURRENT_SETTING('alicia_session_stats.recomputed_at'::TEXT, TRUE) IS DISTINCT FROM STATEMENT_TIMESTAMP()::TEXT;
    message RECORD;
    conversations TEXT[];
    placed RECORD;
BEGIN
    -- Fails where a name that this or the locking reads has gone. The planner removes the join.
    BEGIN
        SELECT r.conversation_id, r.created_at::TIMESTAMP AS at, NOT EXISTS (SELECT FROM changed_rows OFFSET 1) AS is_single
        INTO message
        FROM changed_rows AS r
        LEFT JOIN alicia_conversations AS c ON c.id = r.conversation_id
        WHERE r.deleted_at IS NULL
        LIMIT 1;
    EXCEPTION WHEN OTHERS THEN
        PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
        RETURN NULL;
    END;

    -- Lock the conversations. One message is the usual case, and its look-up costs much less than those for any number.
    -- Where alicia_conversations has no deleted_at, the name means that of the outer row.
    IF message.is_single THEN
        SELECT ARRAY[c.id] INTO conversations
        FROM (SELECT NULL::TIMESTAMP AS deleted_at) AS absent
        CROSS JOIN LATERAL (
            SELECT o.id, deleted_at FROM alicia_conversations AS o WHERE o.id = message.conversation_id FOR NO KEY UPDATE
        ) AS c
        WHERE c.deleted_at IS NULL;
    ELSE
        SELECT PG_CATALOG.ARRAY_AGG(c.id) FILTER (WHERE c.deleted_at IS NULL) INTO conversations
        FROM (SELECT NULL::TIMESTAMP AS deleted_at) AS absent
        CROSS JOIN LATERAL (
            SELECT o.id, deleted_at
            FROM alicia_conversations AS o
            WHERE o.id = ANY(ARRAY(SELECT DISTINCT r.conversation_id FROM changed_rows AS r WHERE r.deleted_at IS NULL))
            ORDER BY o.id
            FOR NO KEY UPDATE
        ) AS c;
    END IF;
    IF conversations IS NULL THEN
        RETURN NULL;
    END IF;

    BEGIN
        IF NOT is_usual THEN
            PERFORM alicia_session_stats_live_recompute(conversations, gap_minutes);
            RETURN NULL;
        END IF;
        IF keeps_snapshot THEN
            PERFORM alicia_session_stats_live_touch(conversations);
        END IF;

        -- Most often one message continues the latest session.
        IF message.is_single THEN
            UPDATE alicia_session_stats AS s
            SET message_count = s.message_count + 1,
                session_duration_seconds = GREATEST(
                    s.session_duration_seconds,
                    LEAST(FLOOR(EXTRACT(EPOCH FROM message.at - s.created_at)), 2147483647)::INTEGER
                )
            WHERE s.id = (
                SELECT l.id
                FROM alicia_session_stats_live_latest(message.conversation_id) AS l
                WHERE message.at >= l.starts_at AND message.at <= l.ends_at + gap
            );
            IF FOUND THEN
                RETURN NULL;
            END IF;
        END IF;

        -- In each conversation, the new messages continue the latest session, or begin the next one. starts_at is that session's
        -- start, and NULL where neither is certain: where the messages may make several sessions, join two, or are too near the
        -- ends of the types to calculate with.
        WITH added AS MATERIALIZED (
            SELECT
                n.*,
                CASE
                    WHEN n.first_at < TIMESTAMP '0001-01-01' OR n.last_at >= TIMESTAMP '9000-01-01' THEN NULL
                    WHEN n.last_at > n.first_at + gap THEN NULL
                    WHEN n.first_at >= l.starts_at AND n.first_at <= l.ends_at + gap THEN l.starts_at
                    WHEN n.first_at > l.ends_at + INTERVAL '1 second' + gap OR l.id IS NULL THEN n.first_at
                END AS starts_at
            FROM (
                SELECT
                    r.conversation_id, COUNT(*)::INTEGER AS messages, MIN(r.created_at)::TIMESTAMP AS first_at,
                    MAX(r.created_at)::TIMESTAMP AS last_at
                FROM changed_rows AS r
                WHERE r.deleted_at IS NULL AND r.conversation_id = ANY(conversations)
                GROUP BY r.conversation_id
            ) AS n
            LEFT JOIN LATERAL alicia_session_stats_live_latest(n.conversation_id) AS l ON TRUE
        ),

        -- ON CONFLICT finds each session by its key, whatever the number of rows that the plan was made for.
        written AS (
            INSERT INTO alicia_session_stats AS s (
                id, conversation_id, message_count, session_duration_seconds, created_at, updated_at
            )
            SELECT
                alicia_session_stats_session_id(a.conversation_id, a.starts_at), a.conversation_id, a.messages,
                LEAST(FLOOR(EXTRACT(EPOCH FROM a.last_at - a.starts_at)), 2147483647)::INTEGER, a.starts_at,
                NOW() AT TIME ZONE 'UTC'::TEXT
            FROM added AS a
            WHERE a.starts_at IS NOT NULL
            ON CONFLICT (id) DO UPDATE
            SET message_count = s.message_count + excluded.message_count,
                session_duration_seconds = GREATEST(s.session_duration_seconds, excluded.session_duration_seconds)
            WHERE s.conversation_id = excluded.conversation_id AND s.created_at = excluded.created_at
        )

        SELECT
            PG_CATALOG.ARRAY_AGG(a.conversation_id) FILTER (WHERE a.starts_at = a.first_at) AS begun,
            PG_CATALOG.ARRAY_AGG(a.conversation_id) FILTER (WHERE a.starts_at IS NULL) AS unusual
        INTO placed
        FROM added AS a;
        IF placed.begun IS NOT NULL THEN
            PERFORM alicia_session_stats_live_touch(placed.begun);
        END IF;
        IF placed.unusual IS NOT NULL THEN
            PERFORM alicia_session_stats_live_recompute(placed.unusual, gap_minutes);
        END IF;
    EXCEPTION
        WHEN serialization_failure OR deadlock_detected OR lock_not_available THEN
            RAISE;
        WHEN OTHERS THEN
            PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
    END;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_on_message() IS
'Private: trigger function that records inserted and deleted messages';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_on_use() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET TimeZone = 'UTC'
AS $function$
DECLARE
    gap_minutes CONSTANT INTEGER := TG_ARGV[0];
    is_memory CONSTANT BOOLEAN := TG_ARGV[1] = 'memories';
    keeps_snapshot CONSTANT BOOLEAN := CURRENT_SETTING('transaction_isolation'::TEXT) NOT LIKE 'read%'::TEXT;
    is_usual CONSTANT BOOLEAN := TG_OP = 'INSERT' AND PG_TRIGGER_DEPTH() = 1
        AND CURRENT_SETTING('alicia_session_stats.recomputed_at'::TEXT, TRUE) IS DISTINCT FROM STATEMENT_TIMESTAMP()::TEXT;
    locked TEXT[];
    conversations TEXT[];
    unusual TEXT[];
    added RECORD;
    latest RECORD;
    new_memories INTEGER := 0;
BEGIN
    -- Fails where a name that the locking reads has gone.
    BEGIN
        PERFORM
        FROM changed_rows AS r
        INNER JOIN alicia_messages AS o ON o.id = r.message_id
        INNER JOIN alicia_conversations AS c ON c.id = o.conversation_id
        WHERE FALSE;
    EXCEPTION WHEN OTHERS THEN
        PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
        RETURN NULL;
    END;

    -- Again after each wait for a lock, during which another transaction may have moved a message to another conversation.
    LOOP
        conversations := ARRAY(
            SELECT DISTINCT m.conversation_id
            FROM changed_rows AS r
            -- OFFSET 0 makes it one look-up for each row, whatever the number of rows that the plan was made for.
            CROSS JOIN LATERAL (SELECT o.conversation_id FROM alicia_messages AS o WHERE o.id = r.message_id OFFSET 0) AS m
        );
        EXIT WHEN conversations OPERATOR(pg_catalog.=) locked;
        PERFORM alicia_session_stats_live_lock(conversations);
        locked := conversations;
    END LOOP;
    IF PG_CATALOG.CARDINALITY(conversations) = 0 THEN
        RETURN NULL;
    END IF;

    BEGIN
        IF is_usual THEN
            IF keeps_snapshot THEN
                PERFORM alicia_session_stats_live_touch(conversations);
            END IF;
            FOR added IN
                SELECT m.conversation_id, COUNT(*)::INTEGER AS uses, MIN(m.created_at) AS first_at, MAX(m.created_at) AS last_at
                -- Where the table has no deleted_at, the name means that of the outer row.
                FROM (SELECT NULL::TIMESTAMP AS deleted_at) AS absent
                CROSS JOIN LATERAL (SELECT r.message_id FROM changed_rows AS r WHERE deleted_at IS NULL) AS u
                CROSS JOIN LATERAL (
                    SELECT o.conversation_id, o.created_at
                    FROM alicia_messages AS o
                    WHERE o.id = u.message_id AND o.deleted_at IS NULL
                    OFFSET 0
                ) AS m
                GROUP BY m.conversation_id
            LOOP
                SELECT l.id, l.starts_at, l.ends_at INTO latest FROM alicia_session_stats_live_latest(added.conversation_id) AS l;
                -- A message less than a second after ends_at is the session's, unless the gap is shorter.
                IF (
                    added.first_at >= latest.starts_at
                    AND (added.last_at <= latest.ends_at OR gap_minutes > 0 AND added.last_at < latest.ends_at + INTERVAL '1 second')
                ) IS NOT TRUE THEN
                    unusual := PG_CATALOG.ARRAY_APPEND(unusual, added.conversation_id);
                    CONTINUE;
                END IF;
                IF is_memory THEN
                    -- Those that the session has not used but here.
                    SELECT COUNT(*)::INTEGER INTO new_memories
                    FROM (
                        SELECT u.memory_id, COUNT(*) AS uses
                        FROM (SELECT NULL::TIMESTAMP AS deleted_at) AS absent
                        CROSS JOIN LATERAL (SELECT r.message_id, r.memory_id FROM changed_rows AS r WHERE deleted_at IS NULL) AS u
                        CROSS JOIN LATERAL (
                            SELECT o.conversation_id
                            FROM alicia_messages AS o
                            WHERE o.id = u.message_id AND o.deleted_at IS NULL
                            OFFSET 0
                        ) AS m
                        WHERE m.conversation_id = added.conversation_id
                        GROUP BY u.memory_id
                    ) AS n
                    WHERE n.uses = (
                        SELECT COUNT(*)
                        FROM alicia_memory_used AS u
                        INNER JOIN alicia_messages AS m ON m.id = u.message_id
                        WHERE u.memory_id = n.memory_id AND u.deleted_at IS NULL AND m.conversation_id = added.conversation_id
                            AND m.deleted_at IS NULL AND m.created_at >= latest.starts_at
                    );
                END IF;
                -- Also where nothing is new: a transaction with an older snapshot must fail on it.
                UPDATE alicia_session_stats AS s
                SET tool_call_count = s.tool_call_count + CASE WHEN is_memory THEN 0 ELSE added.uses END,
                    memories_used = s.memories_used + new_memories
                WHERE s.id = latest.id;
            END LOOP;
        ELSE
            unusual := conversations;
        END IF;
        IF unusual IS NOT NULL THEN
            PERFORM alicia_session_stats_live_recompute(unusual, gap_minutes);
        END IF;
    EXCEPTION
        WHEN serialization_failure OR deadlock_detected OR lock_not_available THEN
            RAISE;
        WHEN OTHERS THEN
            PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
    END;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_on_use() IS
'Private: trigger function that records inserted and deleted tool uses and memories';

-- An UPDATE has two triggers. That for each row fires only where a column has changed that matters, so an update of a
-- message's text costs nothing; a trigger that gets the changed rows at once cannot be so selective. It notes what the row
-- belongs to, and the trigger for the statement computes each conversation once.
CREATE OR REPLACE FUNCTION alicia_session_stats_live_on_change() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    BEGIN
        IF TG_ARGV[0] = 'messages' THEN
            INSERT INTO alicia_session_stats_live_changes
            SELECT PG_CURRENT_XACT_ID(), c.id, ''::TEXT
            FROM PG_CATALOG.UNNEST(ARRAY[OLD.conversation_id, NEW.conversation_id]) AS c (id)
            WHERE c.id IS NOT NULL
            ON CONFLICT DO NOTHING;
        ELSIF TG_ARGV[0] = 'conversations' THEN
            INSERT INTO alicia_session_stats_live_changes VALUES (PG_CURRENT_XACT_ID(), NEW.id, ''::TEXT) ON CONFLICT DO NOTHING;
        ELSE
            INSERT INTO alicia_session_stats_live_changes
            SELECT PG_CURRENT_XACT_ID(), ''::TEXT, m.id
            FROM PG_CATALOG.UNNEST(ARRAY[OLD.message_id, NEW.message_id]) AS m (id)
            WHERE m.id IS NOT NULL
            ON CONFLICT DO NOTHING;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
    END;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_on_change() IS
'Private: trigger function that notes what an updated row belongs to';

CREATE OR REPLACE FUNCTION alicia_session_stats_live_on_update() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET TimeZone = 'UTC'
AS $function$
DECLARE
    gap_minutes CONSTANT INTEGER := TG_ARGV[0];
    noted RECORD;
    locked TEXT[];
    conversations TEXT[];
BEGIN
    -- Taken first, so that none are left whatever fails below.
    WITH taken AS (
        DELETE FROM alicia_session_stats_live_changes AS c
        WHERE c.writer = PG_CURRENT_XACT_ID_IF_ASSIGNED()
        RETURNING c.conversation_id, c.message_id
    )

    SELECT
        ARRAY(SELECT t.conversation_id FROM taken AS t WHERE t.message_id = ''::TEXT) AS conversations,
        ARRAY(SELECT t.message_id FROM taken AS t WHERE t.conversation_id = ''::TEXT) AS messages
    INTO noted;

    -- Fails where a name that the locking reads has gone.
    BEGIN
        PERFORM o.id
        FROM alicia_messages AS o
        INNER JOIN alicia_conversations AS c ON c.id = o.conversation_id
        INNER JOIN alicia_session_stats AS s ON s.conversation_id = c.id
        WHERE FALSE;
    EXCEPTION WHEN OTHERS THEN
        PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
        RETURN NULL;
    END;

    LOOP
        IF TG_OP = 'TRUNCATE' THEN
            conversations := ARRAY(SELECT DISTINCT s.conversation_id FROM alicia_session_stats AS s);
        ELSE
            conversations := ARRAY(
                SELECT c.id
                FROM PG_CATALOG.UNNEST(noted.conversations) AS c (id)
                UNION
                SELECT o.conversation_id
                FROM alicia_messages AS o
                WHERE o.id = ANY(noted.messages)
            );
        END IF;
        EXIT WHEN conversations OPERATOR(pg_catalog.=) locked;
        PERFORM alicia_session_stats_live_lock(conversations);
        locked := conversations;
    END LOOP;
    IF PG_CATALOG.CARDINALITY(conversations) = 0 THEN
        RETURN NULL;
    END IF;

    BEGIN
        PERFORM alicia_session_stats_live_recompute(conversations, gap_minutes);
    EXCEPTION
        WHEN serialization_failure OR deadlock_detected OR lock_not_available THEN
            RAISE;
        WHEN OTHERS THEN
            PERFORM alicia_session_stats_live_warn(TG_TABLE_NAME, SQLSTATE, SQLERRM);
    END;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_live_on_update() IS
'Private: trigger function that computes the conversations again whose rows an UPDATE or TRUNCATE has changed';

DO $attach$
BEGIN
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_live_' || created, is_closed => TRUE)
    FROM UNNEST(ARRAY[
        'lock(text[])', 'touch(text[])', 'recompute(text[],integer)', 'latest(text)',
        'warn(name,text,text)', 'on_message()', 'on_use()', 'on_change()', 'on_update()'
    ]) AS created;
END
$attach$;

-- The tables and triggers ----------------------------------------------------------------------------------------------
--
-- Last, because from here on writers wait until the transaction ends.

CREATE TABLE IF NOT EXISTS alicia_session_stats_live_versions (
    conversation_id TEXT CONSTRAINT alicia_session_stats_live_versions_pkey PRIMARY KEY
        CONSTRAINT alicia_session_stats_live_versions_conversation_id_fkey REFERENCES alicia_conversations (id) ON DELETE CASCADE,
    version BIGINT NOT NULL
);

COMMENT ON TABLE alicia_session_stats_live_versions IS
'Private: a row for each conversation, which a writer changes unless it changes an existing session. A transaction whose snapshot is older fails on the one or the other, and must be retried.';
COMMENT ON COLUMN alicia_session_stats_live_versions.conversation_id IS
'The conversation';
COMMENT ON COLUMN alicia_session_stats_live_versions.version IS
'How often it was changed';

CREATE TABLE IF NOT EXISTS alicia_session_stats_live_changes (
    writer XID8,
    conversation_id TEXT,
    message_id TEXT,
    CONSTRAINT alicia_session_stats_live_changes_pkey PRIMARY KEY (writer, conversation_id, message_id)
);

COMMENT ON TABLE alicia_session_stats_live_changes IS
'Private: what the rows that an UPDATE has changed belong to, until the statement ends';
COMMENT ON COLUMN alicia_session_stats_live_changes.writer IS
'The transaction';
COMMENT ON COLUMN alicia_session_stats_live_changes.conversation_id IS
'A conversation; empty where message_id is set';
COMMENT ON COLUMN alicia_session_stats_live_changes.message_id IS
'A message; empty where conversation_id is set';

DO $attach$
DECLARE
    gap CONSTANT INTEGER := CURRENT_SETTING('alicia_session_stats.gap_minutes');
    source RECORD;
    columns TEXT;
    changes TEXT;
    event RECORD;
BEGIN
    FOR source IN
        SELECT t.*, s.relation
        FROM (
            VALUES
            ('alicia_conversations', 'conversations', NULL, '{deleted_at}'::NAME[]),
            ('alicia_messages', 'messages', 'conversation_id', '{conversation_id,created_at,deleted_at}'),
            ('alicia_tool_uses', 'tool_calls', 'message_id', '{message_id,deleted_at}'),
            ('alicia_memory_used', 'memories', 'message_id', '{message_id,memory_id,deleted_at}')
        ) AS t (name, kind, parent, counted)
        INNER JOIN alicia_session_stats_source_tables() AS s ON s.name = t.name
    LOOP
        SELECT
            STRING_AGG(FORMAT('%I', a.attname), ', '),
            STRING_AGG(FORMAT('OLD.%1$I IS DISTINCT FROM NEW.%1$I', a.attname), ' OR ')
        INTO columns, changes
        FROM pg_attribute AS a
        WHERE a.attrelid = source.relation AND a.attname = ANY(source.counted) AND NOT a.attisdropped;

        FOR event IN
            SELECT *
            FROM (
                VALUES
                ('insert', 'INSERT', 'REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT', 'use'),
                ('delete', 'DELETE', 'REFERENCING OLD TABLE AS changed_rows FOR EACH STATEMENT', 'use'),
                ('change', 'UPDATE OF ' || columns, FORMAT('FOR EACH ROW WHEN (%s)', changes), 'change'),
                ('update', 'UPDATE OF ' || columns, 'FOR EACH STATEMENT', 'update'),
                ('truncate', 'TRUNCATE', 'FOR EACH STATEMENT', 'update')
            ) AS e (name, event, rows, function)
            WHERE source.parent IS NOT NULL OR e.name IN ('change', 'update') AND columns IS NOT NULL
        LOOP
            EXECUTE FORMAT(
                'CREATE OR REPLACE TRIGGER record_session_stats_%s AFTER %s ON %s %s '
                'EXECUTE FUNCTION alicia_session_stats_live_on_%s(%s)',
                event.name, event.event, source.relation, event.rows,
                CASE WHEN event.function = 'use' AND source.kind = 'messages' THEN 'message' ELSE event.function END,
                CASE
                    WHEN event.function = 'change' THEN QUOTE_LITERAL(source.kind)
                    WHEN event.function = 'use' AND source.kind <> 'messages' THEN FORMAT('%s, %L', gap, source.kind)
                    ELSE gap::TEXT
                END
            );
            EXECUTE FORMAT(
                'COMMENT ON TRIGGER record_session_stats_%s ON %s IS %L', event.name, source.relation,
                'Records sessions in alicia_session_stats. The command detach of alicia-session-stats drops it.'
            );
            -- Recorded with its definition below.
            INSERT INTO alicia_session_stats_owned_objects
            SELECT FORMAT('TRIGGER record_session_stats_%s ON %I', event.name, c.relname), '', NULL, FALSE, 0
            FROM pg_class AS c
            WHERE c.oid = source.relation
            ON CONFLICT DO NOTHING;
        END LOOP;
    END LOOP;
END
$attach$;

-- Those of the tables, too. A transaction whose snapshot lacks this row is older than the triggers.
INSERT INTO alicia_session_stats_owned_objects
SELECT
    'TABLE alicia_session_stats_live_' || name, '', NULL, TRUE, 0
FROM UNNEST(ARRAY['versions', 'changes']) AS t (name)
ON CONFLICT DO NOTHING;

COMMIT;

DO $attach$
BEGIN
    PERFORM alicia_session_stats_own(o.object, o.is_closed)
    FROM alicia_session_stats_owned_objects AS o
    WHERE o.object ~ '^(TRIGGER record_session_stats_|TABLE alicia_session_stats_live_)';
END
$attach$;

-- What was there before ----------------------------------------------------------------------------------------------

-- Every transaction from now on records its own writes, and those that wrote before have ended. So a conversation that is
-- right in one look at it stays right.
DO $attach$
DECLARE
    gap CONSTANT INTEGER := alicia_session_stats_attached_gap();
    page CONSTANT INTEGER := 1000;
    at_once CONSTANT INTEGER := 100;
    last_id TEXT := '';
    conversations TEXT[];
    differing TEXT[] := '{}';
    free TEXT[];
    busy TEXT[] := '{}';
BEGIN
    LOOP
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        BEGIN
            IF differing <> '{}' THEN
                conversations := differing[:at_once];
                differing := differing[at_once + 1:];
                free := ARRAY(
                    SELECT c.id FROM alicia_conversations AS c WHERE c.id = ANY(conversations) FOR NO KEY UPDATE SKIP LOCKED
                );
                PERFORM alicia_session_stats_live_recompute(free, gap);
                busy := busy || ARRAY(SELECT c.id FROM UNNEST(conversations) AS c (id) WHERE NOT c.id = ANY(free));
                CONTINUE;
            END IF;

            conversations := ARRAY(SELECT c.id FROM alicia_conversations AS c WHERE c.id > last_id ORDER BY c.id LIMIT page);
            IF conversations <> '{}' THEN
                last_id := conversations[CARDINALITY(conversations)];
                EXECUTE $query$
                    SELECT ARRAY(
                        SELECT DISTINCT c.conversation_id
                        FROM alicia_session_stats_compare($1, $2) AS c
                        WHERE c.action IN ('insert', 'update', 'delete')
                    )
                $query$ INTO differing USING conversations, gap;
                CONTINUE;
            END IF;

            EXIT WHEN busy = '{}';
            conversations := busy[:1];
            busy := busy[2:];
            PERFORM alicia_session_stats_live_lock(conversations);
            PERFORM alicia_session_stats_live_recompute(conversations, gap);
        -- OTHERS does not include a statement_timeout.
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            RAISE EXCEPTION 'sessions are recorded from now on, but not all of those before are filled in: %', SQLERRM
                USING ERRCODE = SQLSTATE, HINT = 'Remove the cause and attach again, or detach.';
        END;
    END LOOP;
END
$attach$;

-- With it, the latest session of a conversation is found at once, however many it has.
DO $attach$
BEGIN
    IF (SELECT indisvalid FROM pg_index WHERE indexrelid = TO_REGCLASS('idx_session_stats_latest')) IS FALSE THEN
        DROP INDEX idx_session_stats_latest;
    END IF;
    -- Recorded before the build, because a build that is killed leaves an index too.
    INSERT INTO alicia_session_stats_owned_objects VALUES ('INDEX idx_session_stats_latest', '', NULL, FALSE, 0)
    ON CONFLICT DO NOTHING;
END
$attach$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_session_stats_latest ON alicia_session_stats (conversation_id, created_at);

COMMENT ON INDEX idx_session_stats_latest IS
'The latest session of a conversation, for live recording';

DO $attach$
BEGIN
    PERFORM alicia_session_stats_own('INDEX idx_session_stats_latest');
END
$attach$;
