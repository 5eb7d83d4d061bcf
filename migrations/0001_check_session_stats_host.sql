-- Refuse a host that does not fit, and open the record of what this package creates.
--
-- Why: the package lives inside somebody's database. Whatever could stop a later migration is looked at
--      here, so that a misfit is refused before anything changed. And rollback may drop only what the
--      package made, so every creation is recorded, in the transaction that creates.
-- Locks: ACCESS SHARE on the host's tables. A table that is there already is read once, for negative counts.
-- Rollback: drops the record. Nothing of the host's, no row.
SET LOCAL lock_timeout = '500ms';

DO $migration$
DECLARE
    sessions CONSTANT REGCLASS := TO_REGCLASS('alicia_session_stats');
    conversations CONSTANT REGCLASS := TO_REGCLASS('alicia_conversations');
    misfits TEXT;
    offenders TEXT[];
BEGIN
    -- The parent: a table whose id is text and unique, all that a foreign key asks of it.
    SELECT STRING_AGG(misfit, '; ') INTO misfits
    FROM (
        SELECT 'alicia_conversations is ' || CASE
            WHEN relkind NOT IN ('r', 'p') THEN 'not a table' ELSE 'unlogged or temporary' END || ', must be a permanent table'
            AS misfit
        FROM pg_class WHERE oid = conversations AND (relkind NOT IN ('r', 'p') OR relpersistence <> 'p')
        UNION ALL
        SELECT FORMAT('alicia_conversations.id is %s, must be text', COALESCE(FORMAT_TYPE(a.atttypid, a.atttypmod), 'missing'))
        FROM (SELECT conversations AS oid WHERE conversations IS NOT NULL) AS c
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
        WHERE a.atttypid IS NULL OR a.atttypid NOT IN ('TEXT'::REGTYPE, 'VARCHAR'::REGTYPE)
        UNION ALL
        SELECT 'alicia_conversations.id is not unique, must be the primary key or UNIQUE (and not deferrable)'
        FROM pg_attribute AS a
        WHERE a.attrelid = conversations AND a.attname = 'id' AND NOT EXISTS (
            SELECT FROM pg_index AS i
            WHERE i.indrelid = conversations AND i.indisunique AND i.indimmediate AND i.indisvalid
                AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum AND i.indpred IS NULL
        )
    ) AS parent;
    IF misfits IS NOT NULL THEN
        RAISE EXCEPTION 'this database does not fit: %', misfits
            USING ERRCODE = 'invalid_table_definition', HINT = 'Nothing was changed.';
    END IF;

    IF NOT HAS_COLUMN_PRIVILEGE(conversations, 'id', 'REFERENCES')
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = sessions AND contype = 'f')
    THEN
        RAISE EXCEPTION 'permission denied for table alicia_conversations: the foreign key to it needs REFERENCES'
            USING ERRCODE = 'insufficient_privilege', HINT = 'Nothing was changed.';
    END IF;

    -- A host's generate_random_id is called by the default of our id, so it must take one text.
    IF sessions IS NULL
        AND EXISTS (SELECT FROM pg_proc WHERE proname = 'generate_random_id' AND PG_FUNCTION_IS_VISIBLE(oid))
    THEN
        BEGIN
            -- Planned, not run. COALESCE takes no function that returns a set.
            EXECUTE $call$EXPLAIN SELECT COALESCE(generate_random_id('ass'), NULL)::TEXT$call$;
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION 'this database does not fit: generate_random_id(''ass'') cannot be called: %', SQLERRM
                USING ERRCODE = 'invalid_function_definition', HINT = 'Nothing was changed.';
        END;
    END IF;

    IF sessions IS NOT NULL THEN
        SELECT STRING_AGG(misfit, '; ') INTO misfits
        FROM (
            SELECT 'alicia_session_stats is ' || CASE
                WHEN relkind = 'p' THEN 'partitioned' WHEN relkind <> 'r' THEN 'not a table' ELSE 'unlogged or temporary'
                END || ', must be a permanent table in one piece' AS misfit
            FROM pg_class WHERE oid = sessions AND (relkind <> 'r' OR relpersistence <> 'p')
            UNION ALL
            SELECT FORMAT('alicia_session_stats belongs to %s, must belong to %s or a role that it is in', relowner::REGROLE, CURRENT_USER)
            FROM pg_class WHERE oid = sessions AND NOT PG_HAS_ROLE(relowner, 'USAGE')
            UNION ALL
            SELECT FORMAT('index %s is %s, must be one that is not unique', indexrelid::REGCLASS, PG_GET_INDEXDEF(indexrelid))
            FROM pg_index
            WHERE indrelid = sessions AND indisunique AND NOT indisprimary AND NOT EXISTS (
                SELECT FROM pg_attribute WHERE attrelid = sessions AND attname = 'id' AND attnum = ANY(indkey)
            )
            UNION ALL
            SELECT misfit
            FROM (
                VALUES
                ('id', 'text', NULL),
                ('conversation_id', 'text', 'none'),
                ('message_count', 'integer', '0'),
                ('tool_call_count', 'integer', '0'),
                ('memories_used', 'integer', '0'),
                ('session_duration_seconds', 'integer', '0'),
                ('created_at', 'timestamp without time zone', NULL),
                ('updated_at', 'timestamp without time zone', NULL)
            ) AS promised (name, type, default_value)
            FULL JOIN (
                SELECT
                    a.attname::TEXT AS name,
                    FORMAT_TYPE(a.atttypid, a.atttypmod) AS type,
                    a.attnotnull,
                    PG_GET_EXPR(d.adbin, d.adrelid) AS default_value
                FROM pg_attribute AS a
                LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                WHERE a.attrelid = sessions AND a.attnum > 0 AND NOT a.attisdropped
            ) AS found USING (name)
            CROSS JOIN LATERAL (
                VALUES
                (CASE
                    WHEN found.type IS NULL THEN FORMAT('column %s is missing, must be %s', name, promised.type)
                    WHEN promised.type IS NULL THEN FORMAT('column %s is %s, must not be there', name, found.type)
                    WHEN found.type <> promised.type THEN FORMAT('column %s is %s, must be %s', name, found.type, promised.type)
                END),
                (CASE WHEN NOT found.attnotnull AND promised.type IS NOT NULL
                    THEN FORMAT('column %s is nullable, must be NOT NULL', name)
                END),
                (CASE
                    -- Which id or clock fills the column is the host's choice; that something does is not.
                    WHEN found.type IS NULL OR promised.type IS NULL OR promised.default_value = 'none' THEN NULL
                    WHEN found.default_value IS NULL
                        THEN FORMAT('column %s has no default, must have %s', name, COALESCE(promised.default_value, 'one'))
                    WHEN found.default_value <> promised.default_value
                        THEN FORMAT('column %s has default %s, must be %s', name, found.default_value, promised.default_value)
                END)
            ) AS judged (misfit)
            WHERE misfit IS NOT NULL
            UNION ALL
            SELECT 'column id is not the primary key, must be'
            WHERE NOT EXISTS (
                SELECT FROM pg_constraint AS c
                JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attname = 'id'
                WHERE c.conrelid = sessions AND c.contype = 'p' AND c.conkey = ARRAY[a.attnum]
            )
            UNION ALL
            SELECT FORMAT(
                'constraint %s is %s, must be FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE',
                c.conname, PG_GET_CONSTRAINTDEF(c.oid)
            )
            FROM pg_constraint AS c
            JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attname = 'conversation_id' AND a.attnum = ANY(c.conkey)
            WHERE c.conrelid = sessions AND c.contype = 'f'
                AND (c.confrelid IS DISTINCT FROM conversations OR c.confdeltype <> 'c' OR CARDINALITY(c.conkey) > 1)
            UNION ALL
            -- Names that later migrations would need, held by something that does not do what they promise.
            SELECT FORMAT('constraint %s is %s, must be %s', c.conname, PG_GET_CONSTRAINTDEF(c.oid), definition)
            FROM (
                VALUES
                ('session_stats_message_count_not_negative', 'CHECK ((message_count >= 0))'),
                ('session_stats_tool_call_count_not_negative', 'CHECK ((tool_call_count >= 0))'),
                ('session_stats_memories_used_not_negative', 'CHECK ((memories_used >= 0))'),
                ('session_stats_duration_not_negative', 'CHECK ((session_duration_seconds >= 0))')
            ) AS promised (name, definition)
            JOIN pg_constraint AS c ON c.conrelid = sessions AND c.conname = name
            WHERE REPLACE(PG_GET_CONSTRAINTDEF(c.oid), ' NOT VALID', '') <> definition
            UNION ALL
            SELECT FORMAT('trigger %s is %s, must be BEFORE UPDATE FOR EACH ROW and stamp updated_at', t.tgname, PG_GET_TRIGGERDEF(t.oid))
            FROM pg_trigger AS t
            JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = sessions AND t.tgname = 'update_session_stats_updated_at'
                AND (t.tgtype & 19 <> 19 OR p.prosrc !~* 'updated_at|moddatetime')
        ) AS misfit;
        IF misfits IS NOT NULL THEN
            RAISE EXCEPTION 'alicia_session_stats does not fit: %', misfits
                USING ERRCODE = 'invalid_table_definition', HINT = 'Nothing was changed.';
        END IF;

        -- The CHECK constraints to come would refuse these rows.
        EXECUTE $rows$
            SELECT ARRAY[
                COUNT(*)::TEXT, MIN(message_count)::TEXT, MIN(tool_call_count)::TEXT,
                MIN(memories_used)::TEXT, MIN(session_duration_seconds)::TEXT
            ]
            FROM alicia_session_stats
            WHERE LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) < 0
        $rows$ INTO offenders;
        IF offenders[1] <> '0' THEN
            SELECT STRING_AGG(FORMAT('%s is as low as %s', name, lowest), ', ') INTO misfits
            FROM UNNEST(
                ARRAY['message_count', 'tool_call_count', 'memories_used', 'session_duration_seconds'], offenders[2:5]
            ) AS l (name, lowest)
            WHERE lowest::INTEGER < 0;
            RAISE EXCEPTION 'alicia_session_stats does not fit: in % rows %, must be 0 or more', offenders[1], misfits
                USING ERRCODE = 'check_violation', HINT = 'Nothing was changed. Correct those rows, then migrate again.';
        END IF;

        -- So would the foreign key, where it is still to come, refuse a session of no conversation.
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = sessions AND contype = 'f') THEN
            EXECUTE CASE WHEN conversations IS NULL
                THEN 'SELECT ARRAY[COUNT(*)::TEXT] FROM alicia_session_stats'
                ELSE 'SELECT ARRAY[COUNT(*)::TEXT] FROM alicia_session_stats AS s WHERE NOT EXISTS ('
                    'SELECT FROM alicia_conversations AS c WHERE c.id = s.conversation_id)'
            END INTO offenders;
            IF offenders[1] <> '0' THEN
                RAISE EXCEPTION 'alicia_session_stats does not fit: in % rows conversation_id names no conversation', offenders[1]
                    USING ERRCODE = 'foreign_key_violation', HINT = 'Nothing was changed. Correct those rows, then migrate again.';
            END IF;
        END IF;
    END IF;

    SELECT FORMAT('update_session_stats_updated_at() returns %s, must return trigger', FORMAT_TYPE(prorettype, NULL))
    INTO misfits
    FROM pg_proc
    WHERE oid = TO_REGPROCEDURE('update_session_stats_updated_at()') AND prorettype <> 'TRIGGER'::REGTYPE;
    IF misfits IS NOT NULL THEN
        RAISE EXCEPTION 'this database does not fit: %', misfits
            USING ERRCODE = 'invalid_function_definition', HINT = 'Nothing was changed.';
    END IF;

    -- CREATE INDEX IF NOT EXISTS looks at the name alone; whatever has it must be the right index.
    SELECT STRING_AGG(
        FORMAT('%s is %s, must be a btree index on alicia_session_stats (%s)', name,
            COALESCE(PG_GET_INDEXDEF(i.indexrelid), 'not an index'), column_name), '; '
    ) INTO misfits
    FROM (
        VALUES
        ('idx_session_stats_conversation', 'conversation_id'),
        ('idx_session_stats_created_at', 'created_at')
    ) AS promised (name, column_name)
    JOIN pg_class AS c ON c.oid = TO_REGCLASS(name)
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE (i.indrelid = sessions AND a.attname = column_name AND i.indpred IS NULL
        AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')) IS NOT TRUE;
    IF misfits IS NOT NULL THEN
        RAISE EXCEPTION 'this database does not fit: %', misfits
            USING ERRCODE = 'invalid_object_definition', HINT = 'Nothing was changed.';
    END IF;
END
$migration$;

-- IF NOT EXISTS: a run killed between this file and yoyo's mark of it comes through here again.
CREATE TABLE IF NOT EXISTS alicia_session_stats_created (
    object TEXT CONSTRAINT alicia_session_stats_created_pkey PRIMARY KEY
);

COMMENT ON TABLE alicia_session_stats_created IS
'What the package alicia-session-stats created in this schema, and so drops on rollback. Everything else is the host''s.';
COMMENT ON COLUMN alicia_session_stats_created.object IS
'Kind and name of the object, as DROP would take them';
