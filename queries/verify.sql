-- What differs between this database and what the migrations promise, and the statement that mends it.
--
-- Purpose: operations
-- Returns: a row for each difference, none when all is well. What the package created must be exactly as
--     it was made. What it adopted from the host is judged by what it does, not by its name: any index that
--     serves, any constraint that says the same, any enabled trigger that keeps updated_at.
-- Reads: no index
--
-- psql -f queries/verify.sql
WITH promised_columns (position, name, type, default_value, comment) AS (
    VALUES
    (1, 'id', 'text', 'generate_random_id(''ass''::text)', 'Primary key with ass_ prefix'),
    (2, 'conversation_id', 'text', NULL, 'FK to alicia_conversations'),
    (3, 'message_count', 'integer', '0', 'Total messages in session (messages, 0 or more)'),
    (4, 'tool_call_count', 'integer', '0', 'Total tool calls made (calls, 0 or more)'),
    (5, 'memories_used', 'integer', '0', 'Unique memories retrieved (memories, 0 or more)'),
    (6, 'session_duration_seconds', 'integer', '0', 'Session duration (seconds, 0 or more)'),
    (7, 'created_at', 'timestamp without time zone', 'now()', 'Session start timestamp (UTC)'),
    (
        8, 'updated_at', 'timestamp without time zone', 'now()',
        'Last update timestamp (UTC), kept by the trigger update_session_stats_updated_at'
    )
),

promised_constraints (name, definition, comment) AS (
    VALUES
    ('alicia_session_stats_pkey', 'PRIMARY KEY (id)', NULL),
    (
        'alicia_session_stats_conversation_id_fkey',
        'FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE', NULL
    ),
    ('session_stats_message_count_not_negative', 'CHECK ((message_count >= 0))', 'Messages: 0 or more'),
    ('session_stats_tool_call_count_not_negative', 'CHECK ((tool_call_count >= 0))', 'Tool calls: 0 or more'),
    ('session_stats_memories_used_not_negative', 'CHECK ((memories_used >= 0))', 'Memories: 0 or more'),
    ('session_stats_duration_not_negative', 'CHECK ((session_duration_seconds >= 0))', 'Duration in seconds: 0 or more')
),

promised_indexes (name, column_name, definition, comment) AS (
    VALUES
    (
        'idx_session_stats_conversation', 'conversation_id', '(conversation_id)',
        'The sessions of one conversation, and cascade from it'
    ),
    ('idx_session_stats_created_at', 'created_at', '(created_at DESC)', 'The sessions of a time window, newest first')
),

promised_trigger (name, definition, comment) AS (
    VALUES
    (
        'update_session_stats_updated_at',
        'BEFORE UPDATE ON alicia_session_stats FOR EACH ROW WHEN (old.* IS DISTINCT FROM new.*) '
        || 'EXECUTE FUNCTION update_session_stats_updated_at()',
        'Stamps updated_at when a row really changes'
    )
),

-- Word for word, but for white space.
promised_functions (name, body, settings, comment) AS (
    VALUES
    (
        'generate_random_id(text)',
        'RETURN ((prefix || ''_''::text) || translate(encode(uuid_send(gen_random_uuid()), ''base64''::text), '
        || '''+/=''::text, ''-_''::text))',
        NULL,
        'Random id: the prefix, an underscore and 22 URL-safe characters that carry 122 random bits'
    ),
    (
        'update_session_stats_updated_at()',
        'BEGIN NEW.updated_at := GREATEST( CLOCK_TIMESTAMP() AT TIME ZONE ''UTC'', '
        || 'OLD.updated_at + INTERVAL ''1 microsecond'' ); RETURN NEW; END',
        'search_path=pg_catalog, pg_temp',
        'Trigger function: stamps updated_at with the UTC time, always later than before'
    )
),

-- What counts: the body of a function by its MD5 sum.
promised_counting (position, kind, name, definition) AS (
    VALUES
    (1, 'table', 'alicia_session_stats_counters', NULL),
    (2, 'table', 'alicia_session_stats_candidates', NULL),
    (3, 'table', 'alicia_session_stats_floor', NULL),
    (4, 'view', 'alicia_session_stats_quarter_hours', NULL),
    (5, 'view', 'alicia_session_stats_leaders', NULL),
    (6, 'index', 'idx_session_stats_counters', '(quarter_hour, slot)'),
    (7, 'index', 'idx_session_stats_floor', '((true))'),
    (7, 'index', 'idx_session_stats_candidates', '(message_count, created_at, id, conversation_id)'),
    (
        8, 'trigger', 'count_session_stats_insert',
        'AFTER INSERT ON alicia_session_stats REFERENCING NEW TABLE AS new_rows '
        || 'FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_inserted()'
    ),
    (
        9, 'trigger', 'count_session_stats_update',
        'AFTER UPDATE ON alicia_session_stats FOR EACH ROW EXECUTE FUNCTION alicia_session_stats_updated()'
    ),
    (
        10, 'trigger', 'count_session_stats_delete',
        'AFTER DELETE ON alicia_session_stats REFERENCING OLD TABLE AS old_rows '
        || 'FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_deleted()'
    ),
    (
        11, 'trigger', 'count_session_stats_truncate',
        'AFTER TRUNCATE ON alicia_session_stats FOR EACH STATEMENT EXECUTE FUNCTION alicia_session_stats_emptied()'
    ),
    (
        12, 'function', 'alicia_session_stats_count(timestamp,bigint,bigint,bigint,bigint,bigint,boolean,boolean)',
        '7c779a5d7d6813e5f2c3ff064f556dda'
    ),
    (13, 'function', 'alicia_session_stats_trim()', '665b289611570ed986fa8b13df74542e'),
    (14, 'function', 'alicia_session_stats_inserted()', '9687f63385361c32135dad43fb89d470'),
    (15, 'function', 'alicia_session_stats_updated()', '5f3b1fab635c00661e650a1be34c8475'),
    (16, 'function', 'alicia_session_stats_deleted()', 'c2fcb8401ae3591580e8ebda77321bea'),
    (17, 'function', 'alicia_session_stats_emptied()', '78dcdffcf6f8c4782e31e65e2f2d584a'),
    (18, 'function', 'alicia_session_stats_differences()', '0517729accf427e95b91ebabcd407fac'),
    (19, 'function', 'alicia_session_stats_repair()', 'ed017fef62db15d267704074012b8975')
),

sessions AS (
    SELECT
        TO_REGCLASS('alicia_session_stats') AS oid,
        'TABLE alicia_session_stats' IN (SELECT object FROM alicia_session_stats_created) AS is_ours
),

live_columns AS (
    SELECT
        a.attname::TEXT AS name,
        FORMAT_TYPE(a.atttypid, a.atttypmod) AS type,
        a.attnotnull AS is_not_null,
        PG_GET_EXPR(d.adbin, d.adrelid) AS default_value,
        COL_DESCRIPTION(a.attrelid, a.attnum) AS comment
    FROM sessions AS s
    INNER JOIN pg_attribute AS a ON s.oid = a.attrelid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
),

table_differences AS (
    SELECT
        'table ' || t.name AS object,
        COALESCE('comment: ' || OBJ_DESCRIPTION(TO_REGCLASS(t.name)), 'no comment') AS found,
        'comment: ' || t.comment AS expected,
        FORMAT('COMMENT ON TABLE %I IS %L;', t.name, t.comment) AS mend
    FROM (
        VALUES
        ('alicia_conversations', 'Conversations: the smallest parent that alicia_session_stats needs'),
        (
            'alicia_session_stats',
            'Session-level analytics for conversations: one row per session, deleted for good. Times are UTC.'
        )
    ) AS t (name, comment)
    INNER JOIN alicia_session_stats_created AS o ON o.object = 'TABLE ' || t.name
    WHERE OBJ_DESCRIPTION(TO_REGCLASS(t.name)) IS DISTINCT FROM t.comment AND TO_REGCLASS(t.name) IS NOT NULL
    UNION ALL
    SELECT
        'table ' || t.name,
        'missing',
        'a table',
        'roll back with --all and migrate again, or restore it'
    FROM (VALUES ('alicia_conversations'), ('alicia_session_stats')) AS t (name)
    WHERE TO_REGCLASS(t.name) IS NULL
),

column_differences AS (
    SELECT
        'column ' || COALESCE(p.name, l.name) AS object,
        judged.found,
        judged.expected,
        'ALTER TABLE alicia_session_stats ' || judged.mend AS mend,
        COALESCE(p.position, 9) AS position
    FROM promised_columns AS p
    FULL JOIN live_columns AS l ON p.name = l.name
    CROSS JOIN sessions AS s
    CROSS JOIN LATERAL (
        SELECT
            COALESCE(l.type, 'missing') AS found,
            COALESCE(p.type, 'not there') AS expected,
            CASE
                WHEN p.name IS NULL THEN FORMAT('DROP COLUMN %I;', l.name)
                WHEN l.name IS NULL THEN FORMAT('ADD COLUMN %I %s;', p.name, p.type)
                ELSE FORMAT('ALTER COLUMN %I TYPE %s;', p.name, p.type)
            END AS mend
        WHERE l.type IS DISTINCT FROM p.type
        UNION ALL
        SELECT
            'nullable',
            'NOT NULL',
            FORMAT('ALTER COLUMN %I SET NOT NULL;', p.name)
        WHERE p.name IS NOT NULL AND NOT l.is_not_null
        UNION ALL
        SELECT
            COALESCE('default ' || l.default_value, 'no default'),
            COALESCE('default ' || p.default_value, 'no default'),
            FORMAT('ALTER COLUMN %I ', p.name) || COALESCE('SET DEFAULT ' || p.default_value, 'DROP DEFAULT') || ';'
        WHERE
            p.name IS NOT NULL AND l.name IS NOT NULL
            AND CASE
                -- Which id or clock fills an adopted column is the host's choice; that something does is not.
                WHEN s.is_ours OR p.default_value = '0' THEN l.default_value IS DISTINCT FROM p.default_value
                ELSE p.default_value IS NOT NULL AND l.default_value IS NULL
            END
    ) AS judged
    WHERE s.oid IS NOT NULL
    UNION ALL
    SELECT
        'column ' || p.name,
        COALESCE('comment: ' || l.comment, 'no comment'),
        'comment: ' || p.comment,
        FORMAT('COMMENT ON COLUMN alicia_session_stats.%I IS %L;', p.name, p.comment),
        p.position
    FROM promised_columns AS p
    INNER JOIN live_columns AS l ON p.name = l.name
    INNER JOIN sessions AS s ON s.is_ours
    WHERE l.comment IS DISTINCT FROM p.comment
),

constraint_differences AS (
    SELECT
        'constraint ' || p.name AS object,
        CASE
            WHEN c.oid IS NULL THEN 'missing'
            WHEN c.definition <> p.definition THEN c.definition
            WHEN NOT c.is_validated THEN 'not validated'
            WHEN c.is_disabled THEN 'its triggers are disabled'
            ELSE COALESCE('comment: ' || c.comment, 'no comment')
        END AS found,
        CASE
            WHEN c.definition = p.definition AND c.is_validated AND NOT c.is_disabled THEN 'comment: ' || p.comment
            ELSE p.definition
        END AS expected,
        CASE
            WHEN c.oid IS NULL THEN FORMAT('ALTER TABLE alicia_session_stats ADD CONSTRAINT %I %s;', p.name, p.definition)
            WHEN c.definition <> p.definition
                THEN FORMAT(
                    'ALTER TABLE alicia_session_stats DROP CONSTRAINT %1$I, ADD CONSTRAINT %1$I %2$s;', p.name, p.definition
                )
            WHEN NOT c.is_validated THEN FORMAT('ALTER TABLE alicia_session_stats VALIDATE CONSTRAINT %I;', c.name)
            WHEN c.is_disabled THEN 'ALTER TABLE alicia_session_stats ENABLE TRIGGER ALL;'
            ELSE FORMAT('COMMENT ON CONSTRAINT %I ON alicia_session_stats IS %L;', p.name, p.comment)
        END AS mend
    FROM promised_constraints AS p
    CROSS JOIN sessions AS s
    LEFT JOIN LATERAL (
        SELECT
            c.oid,
            c.conname AS name,
            REPLACE(PG_GET_CONSTRAINTDEF(c.oid), ' NOT VALID', '') AS definition,
            c.convalidated AS is_validated,
            c.oid IN (
                SELECT t.tgconstraint
                FROM pg_trigger AS t
                WHERE t.tgenabled = 'D'
            ) AS is_disabled,
            OBJ_DESCRIPTION(c.oid, 'pg_constraint') AS comment
        FROM pg_constraint AS c
        WHERE
            c.conrelid = s.oid
            AND (c.conname = p.name OR REPLACE(PG_GET_CONSTRAINTDEF(c.oid), ' NOT VALID', '') = p.definition)
        -- One that says the promised thing, before one that has the promised name.
        ORDER BY REPLACE(PG_GET_CONSTRAINTDEF(c.oid), ' NOT VALID', '') = p.definition DESC, c.conname = p.name DESC, c.conname
        LIMIT 1
    ) AS c ON TRUE
    LEFT JOIN alicia_session_stats_created AS o ON o.object = 'CONSTRAINT ' || p.name
    WHERE
        s.oid IS NOT NULL
        AND (
            c.oid IS NULL OR c.definition <> p.definition OR NOT c.is_validated OR c.is_disabled
            OR (o.object IS NOT NULL AND p.comment IS NOT NULL AND c.comment IS DISTINCT FROM p.comment)
        )
),

index_differences AS (
    SELECT
        'index ' || p.name AS object,
        CASE
            WHEN i.oid IS NULL THEN 'missing'
            WHEN NOT i.is_valid THEN 'INVALID, left by an interrupted build'
            WHEN NOT i.serves OR (o.object IS NOT NULL AND NOT i.is_exact) THEN i.definition
            ELSE COALESCE('comment: ' || i.comment, 'no comment')
        END AS found,
        CASE
            WHEN i.is_valid AND i.is_exact THEN 'comment: ' || p.comment
            ELSE 'a valid index on alicia_session_stats ' || p.definition
        END AS expected,
        CASE
            WHEN i.oid IS NULL THEN FORMAT('CREATE INDEX CONCURRENTLY %I ON alicia_session_stats %s;', p.name, p.definition)
            WHEN NOT i.is_valid THEN FORMAT('REINDEX INDEX CONCURRENTLY %I;', i.name)
            WHEN NOT i.serves OR (o.object IS NOT NULL AND NOT i.is_exact)
                THEN FORMAT(
                    'DROP INDEX CONCURRENTLY %1$I; CREATE INDEX CONCURRENTLY %1$I ON alicia_session_stats %2$s;',
                    p.name, p.definition
                )
            ELSE FORMAT('COMMENT ON INDEX %I IS %L;', p.name, p.comment)
        END AS mend
    FROM promised_indexes AS p
    CROSS JOIN sessions AS s
    LEFT JOIN alicia_session_stats_created AS o ON o.object = 'INDEX ' || p.name
    LEFT JOIN LATERAL (
        SELECT
            x.indexrelid AS oid,
            c.relname AS name,
            x.indisvalid AND x.indisready AS is_valid,
            PG_GET_INDEXDEF(x.indexrelid) AS definition,
            PG_GET_INDEXDEF(x.indexrelid) LIKE '% USING btree ' || p.definition AS is_exact,
            COALESCE(a.attname = p.column_name AND x.indpred IS NULL AND m.amname = 'btree', FALSE) AS serves,
            OBJ_DESCRIPTION(x.indexrelid, 'pg_class') AS comment
        FROM pg_index AS x
        INNER JOIN pg_class AS c ON x.indexrelid = c.oid
        INNER JOIN pg_am AS m ON c.relam = m.oid
        LEFT JOIN pg_attribute AS a ON x.indrelid = a.attrelid AND x.indkey[0] = a.attnum
        WHERE x.indrelid = s.oid AND (c.relname = p.name OR (o.object IS NULL AND a.attname = p.column_name))
        ORDER BY
            x.indisvalid AND COALESCE(a.attname = p.column_name AND x.indpred IS NULL, FALSE) DESC,
            c.relname = p.name DESC, c.relname
        LIMIT 1
    ) AS i ON TRUE
    WHERE
        s.oid IS NOT NULL
        AND (
            i.oid IS NULL OR NOT i.is_valid OR NOT i.serves
            OR (o.object IS NOT NULL AND (NOT i.is_exact OR i.comment IS DISTINCT FROM p.comment))
        )
),

-- BEFORE UPDATE, for each row (tgtype: 1 row, 2 before, 16 update), by a function that speaks of updated_at, or
-- the extension that is told the column's name.
trigger_differences AS (
    SELECT
        'trigger ' || p.name AS object,
        CASE
            WHEN t.oid IS NULL THEN 'missing'
            WHEN NOT t.is_enabled THEN 'disabled'
            WHEN o.object IS NOT NULL AND NOT t.is_exact THEN t.definition
            ELSE COALESCE('comment: ' || t.comment, 'no comment')
        END AS found,
        CASE
            WHEN t.is_exact AND t.is_enabled THEN 'comment: ' || p.comment
            ELSE p.definition
        END AS expected,
        CASE
            WHEN t.oid IS NULL THEN FORMAT('CREATE TRIGGER %I %s;', p.name, p.definition)
            WHEN NOT t.is_enabled THEN FORMAT('ALTER TABLE alicia_session_stats ENABLE TRIGGER %I;', t.name)
            WHEN NOT t.is_exact THEN FORMAT('CREATE OR REPLACE TRIGGER %I %s;', p.name, p.definition)
            ELSE FORMAT('COMMENT ON TRIGGER %I ON alicia_session_stats IS %L;', p.name, p.comment)
        END AS mend
    FROM promised_trigger AS p
    CROSS JOIN sessions AS s
    LEFT JOIN alicia_session_stats_created AS o ON o.object = 'TRIGGER ' || p.name
    LEFT JOIN LATERAL (
        SELECT
            t.oid,
            t.tgname AS name,
            t.tgenabled IN ('O', 'A') AS is_enabled,
            PG_GET_TRIGGERDEF(t.oid, TRUE) AS definition,
            REPLACE(PG_GET_TRIGGERDEF(t.oid, TRUE), ' ON ' || s.oid::REGCLASS || ' ', ' ON alicia_session_stats ')
            LIKE '% ' || p.definition AS is_exact,
            OBJ_DESCRIPTION(t.oid, 'pg_trigger') AS comment
        FROM pg_trigger AS t
        INNER JOIN pg_proc AS f ON t.tgfoid = f.oid
        WHERE
            t.tgrelid = s.oid AND NOT t.tgisinternal
            AND (
                t.tgname = p.name
                OR (o.object IS NULL AND t.tgtype & 19 = 19 AND f.prosrc ~* 'updated_at|moddatetime')
            )
        ORDER BY t.tgenabled IN ('O', 'A') DESC, t.tgname = p.name DESC, t.tgname
        LIMIT 1
    ) AS t ON TRUE
    WHERE
        s.oid IS NOT NULL
        AND (
            t.oid IS NULL OR NOT t.is_enabled
            OR (o.object IS NOT NULL AND (NOT t.is_exact OR t.comment IS DISTINCT FROM p.comment))
        )
),

function_differences AS (
    SELECT
        'function ' || p.name AS object,
        judged.found,
        judged.expected,
        judged.mend
    FROM promised_functions AS p
    INNER JOIN alicia_session_stats_created AS o ON o.object = 'FUNCTION ' || p.name
    LEFT JOIN pg_proc AS f ON f.oid = TO_REGPROCEDURE(p.name)
    CROSS JOIN LATERAL (
        SELECT
            'missing' AS found,
            'a function' AS expected,
            'create it as its migration does' AS mend
        WHERE f.oid IS NULL
        UNION ALL
        SELECT
            'another body',
            p.body,
            'create it as its migration does'
        WHERE
            BTRIM(REGEXP_REPLACE(COALESCE(PG_GET_FUNCTION_SQLBODY(f.oid), f.prosrc), '\s+', ' ', 'g')) <> p.body
        UNION ALL
        SELECT
            COALESCE(ARRAY_TO_STRING(f.proconfig, ', '), 'no settings'),
            COALESCE(p.settings, 'no settings'),
            FORMAT('ALTER FUNCTION %s ', p.name) || COALESCE('SET ' || REPLACE(p.settings, '=', ' = '), 'RESET ALL') || ';'
        WHERE f.oid IS NOT NULL AND ARRAY_TO_STRING(f.proconfig, ', ') IS DISTINCT FROM p.settings
        UNION ALL
        SELECT
            COALESCE('comment: ' || OBJ_DESCRIPTION(f.oid, 'pg_proc'), 'no comment'),
            'comment: ' || p.comment,
            FORMAT('COMMENT ON FUNCTION %s IS %L;', p.name, p.comment)
        WHERE f.oid IS NOT NULL AND OBJ_DESCRIPTION(f.oid, 'pg_proc') IS DISTINCT FROM p.comment
    ) AS judged
),

counting_differences AS (
    SELECT
        p.position,
        p.kind || ' ' || p.name AS object,
        CASE
            WHEN l.definition IS NULL THEN 'missing'
            WHEN NOT l.is_enabled THEN 'disabled'
            WHEN p.kind = 'function' THEN 'another body'
            ELSE l.definition
        END AS found,
        CASE WHEN p.kind IN ('trigger', 'index') THEN p.definition ELSE 'as it was created' END AS expected,
        CASE
            WHEN p.kind = 'trigger' AND NOT l.is_enabled
                THEN FORMAT('ALTER TABLE alicia_session_stats ENABLE TRIGGER %I;', p.name)
            WHEN p.kind = 'trigger' THEN FORMAT('CREATE OR REPLACE TRIGGER %I %s;', p.name, p.definition)
            ELSE 'roll back with --steps 3 and migrate again'
        END AS mend
    FROM promised_counting AS p
    CROSS JOIN sessions AS s
    LEFT JOIN LATERAL (
        SELECT
            COALESCE(i.definition, '') AS definition,
            COALESCE(x.indisvalid, TRUE) AS is_enabled
        FROM pg_class AS c
        LEFT JOIN pg_index AS x ON c.oid = x.indexrelid
        LEFT JOIN LATERAL (SELECT SUBSTRING(PG_GET_INDEXDEF(x.indexrelid) FROM '[(].*') AS definition) AS i ON TRUE
        WHERE
            c.oid = TO_REGCLASS(p.name)
            AND c.relkind = CASE p.kind WHEN 'table' THEN 'r' WHEN 'view' THEN 'v' WHEN 'index' THEN 'i' END
        UNION ALL
        SELECT
            SUBSTRING(
                REPLACE(PG_GET_TRIGGERDEF(t.oid, TRUE), ' ON ' || s.oid::REGCLASS || ' ', ' ON alicia_session_stats ')
                FROM 'AFTER.*'
            ),
            t.tgenabled IN ('O', 'A')
        FROM pg_trigger AS t
        WHERE p.kind = 'trigger' AND t.tgrelid = s.oid AND t.tgname = p.name
        UNION ALL
        SELECT
            MD5(f.prosrc),
            TRUE
        FROM pg_proc AS f
        WHERE p.kind = 'function' AND f.oid = TO_REGPROCEDURE(CASE WHEN p.kind = 'function' THEN p.name END)
    ) AS l ON TRUE
    WHERE (l.definition = COALESCE(p.definition, '') AND l.is_enabled) IS NOT TRUE
),

-- created_at defaults to NOW(), which is UTC only where the session's TimeZone is.
time_zones AS (
    SELECT
        'this session' AS holder,
        reset_val AS zone,
        FORMAT('ALTER DATABASE %I SET TimeZone = ''UTC'';', CURRENT_DATABASE()) AS mend
    FROM pg_settings
    WHERE name = 'TimeZone'
    UNION ALL
    SELECT
        COALESCE('role ' || r.rolname, 'database ' || d.datname),
        SPLIT_PART(setting, '=', 2),
        'ALTER ' || COALESCE(
            'ROLE ' || QUOTE_IDENT(r.rolname) || COALESCE(' IN DATABASE ' || QUOTE_IDENT(d.datname), ''),
            'DATABASE ' || QUOTE_IDENT(d.datname)
        ) || ' SET TimeZone = ''UTC'';'
    FROM pg_db_role_setting AS g
    CROSS JOIN LATERAL UNNEST(g.setconfig) AS setting
    LEFT JOIN pg_roles AS r ON g.setrole = r.oid
    LEFT JOIN pg_database AS d ON g.setdatabase = d.oid
    WHERE setting ILIKE 'timezone=%' AND (g.setdatabase = 0 OR d.datname = CURRENT_DATABASE())
),

differences (kind, position, object, found, expected, mend) AS (
    SELECT 1, 0, object, found, expected, mend FROM table_differences
    UNION ALL
    SELECT 2, position, object, found, expected, mend FROM column_differences
    UNION ALL
    SELECT 3, 0, object, found, expected, mend FROM constraint_differences
    UNION ALL
    SELECT 4, 0, object, found, expected, mend FROM index_differences
    UNION ALL
    SELECT 5, 0, object, found, expected, mend FROM trigger_differences
    UNION ALL
    SELECT 6, 0, object, found, expected, mend FROM function_differences
    UNION ALL
    SELECT 7, position, object, found, expected, mend FROM counting_differences
    UNION ALL
    SELECT 8, 0, 'TimeZone of ' || holder, zone, 'UTC', mend FROM time_zones
    WHERE REPLACE(UPPER(zone), 'ETC/', '') NOT IN ('UTC', 'UCT', 'UNIVERSAL', 'ZULU', 'GMT')
)

SELECT
    object,
    found,
    expected,
    mend
FROM differences
WHERE
    -- But for what scale/citus.sql replaces.
    found IN ('missing', 'disabled')
    OR object NOT IN (
        'constraint alicia_session_stats_pkey', 'function alicia_session_stats_repair()', 'trigger count_session_stats_insert',
        'trigger count_session_stats_update', 'trigger count_session_stats_delete', 'trigger count_session_stats_truncate'
    )
    OR 'TABLE alicia_session_stats_undistributed' NOT IN (SELECT object FROM alicia_session_stats_created)
ORDER BY kind, position, object, found, mend;
