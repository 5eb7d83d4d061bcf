-- Refuse an application whose tables do not fit, before anything is changed.
--
-- Why: the package lives in the application's database. Tables that exist are adopted as they are, what is
--      missing is added, and a table of another shape is refused. The rules stand in one function, which this
--      file, later migrations and the query verify call.
-- Locks: ACCESS SHARE on the application's tables. An existing alicia_session_stats is read once, to find rows
--        that later constraints would refuse.
-- Rollback: drops the functions. No row is lost.
SET LOCAL lock_timeout = '500ms';

CREATE OR REPLACE FUNCTION alicia_session_stats_catalog()
RETURNS TABLE (object TEXT, definition TEXT, comment TEXT, fault TEXT, owner NAME, grantees TEXT)
LANGUAGE sql STABLE
AS $function$
WITH package AS (
    SELECT pronamespace AS namespace FROM pg_proc WHERE oid = TO_REGPROCEDURE('alicia_session_stats_catalog()')
),

relations AS (
    SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relowner, c.relacl
    FROM pg_class AS c
    CROSS JOIN package AS p
    WHERE c.oid IN (TO_REGCLASS('alicia_conversations'), TO_REGCLASS('alicia_session_stats'))
        OR c.relnamespace = p.namespace AND c.relname LIKE 'alicia\_session\_stats\_%' AND c.relkind IN ('r', 'v', 'S')
),

objects (object, definition, fault, owner, acl, classid, objid, objsubid) AS (
    SELECT
        CASE
            WHEN relkind = 'S' THEN 'SEQUENCE '
            WHEN relkind = 'v' AND relname LIKE 'alicia\_session\_stats\_%' THEN 'VIEW '
            ELSE 'TABLE '
        END || relname,
        CASE
            WHEN relkind = 'v' THEN PG_GET_VIEWDEF(oid)
            ELSE CASE relpersistence WHEN 'p' THEN 'permanent ' ELSE 'temporary or unlogged ' END
                || CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' ELSE 'relation' END
        END,
        NULL, relowner, relacl, 'pg_class'::REGCLASS, oid, 0
    FROM relations
    UNION ALL
    SELECT
        FORMAT('COLUMN %s.%I', r.relname, a.attname),
        FORMAT_TYPE(a.atttypid, a.atttypmod)
            || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
            || CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE '' END
            || COALESCE(' DEFAULT ' || PG_GET_EXPR(d.adbin, d.adrelid), ''),
        NULL, NULL, NULL, 'pg_class'::REGCLASS, r.oid, a.attnum
    FROM relations AS r
    INNER JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind <> 'S'
    UNION ALL
    SELECT
        FORMAT('CONSTRAINT %I ON %s', c.conname, r.relname),
        REPLACE(PG_GET_CONSTRAINTDEF(c.oid), ' NOT VALID', ''),
        CASE
            WHEN NOT c.convalidated THEN 'not validated'
            WHEN EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgconstraint = c.oid AND t.tgenabled = 'D') THEN 'disabled'
        END,
        NULL, NULL, 'pg_constraint'::REGCLASS, c.oid, 0
    FROM relations AS r
    INNER JOIN pg_constraint AS c ON c.conrelid = r.oid AND c.contype IN ('p', 'u', 'f', 'c')
    UNION ALL
    SELECT
        'INDEX ' || c.relname,
        PG_GET_INDEXDEF(i.indexrelid, 0, TRUE),
        CASE WHEN NOT i.indisvalid THEN 'INVALID' END,
        NULL, NULL, 'pg_class'::REGCLASS, c.oid, 0
    FROM relations AS r
    INNER JOIN pg_index AS i ON i.indrelid = r.oid
    INNER JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid AND k.conrelid = r.oid)
    UNION ALL
    SELECT
        FORMAT('TRIGGER %I ON %s', t.tgname, r.relname),
        PG_GET_TRIGGERDEF(t.oid, TRUE),
        CASE WHEN t.tgenabled NOT IN ('O', 'A') THEN 'disabled' END,
        NULL, NULL, 'pg_trigger'::REGCLASS, t.oid, 0
    FROM pg_trigger AS t
    INNER JOIN pg_class AS r ON r.oid = t.tgrelid
    INNER JOIN pg_proc AS f ON f.oid = t.tgfoid
    CROSS JOIN package AS p
    WHERE NOT t.tgisinternal AND (
        r.oid IN (SELECT o.oid FROM relations AS o)
        -- The triggers of live/attach.sql are on other tables of the application.
        OR f.pronamespace = p.namespace AND f.proname LIKE 'alicia\_session\_stats\_live\_%'
    )
    UNION ALL
    SELECT
        'FUNCTION ' || f.oid::REGPROCEDURE,
        FORMAT(
            '%s(%s) RETURNS %s LANGUAGE %s%s%s%s%s%s AS %L',
            f.proname, PG_GET_FUNCTION_ARGUMENTS(f.oid), PG_GET_FUNCTION_RESULT(f.oid), l.lanname,
            CASE f.provolatile WHEN 'i' THEN ' IMMUTABLE' WHEN 's' THEN ' STABLE' ELSE '' END,
            CASE f.proparallel WHEN 's' THEN ' PARALLEL SAFE' WHEN 'r' THEN ' PARALLEL RESTRICTED' ELSE '' END,
            CASE WHEN f.prosecdef THEN ' SECURITY DEFINER' ELSE '' END,
            CASE WHEN f.proretset AND f.prorows <> 1000 THEN ' ROWS ' || f.prorows ELSE '' END,
            (SELECT STRING_AGG(' SET ' || REPLACE(setting, '=', ' = '), '') FROM UNNEST(f.proconfig) AS setting),
            f.prosrc
        ),
        -- After ALTER SCHEMA RENAME.
        CASE WHEN f.prosrc LIKE '%alicia\_session\_stats\_%' AND f.proconfig::TEXT LIKE '%search\_path=%'
            AND POSITION(FORMAT(', %s,', p.namespace::REGNAMESPACE) IN ARRAY_TO_STRING(f.proconfig, ' ')) = 0
            THEN 'its search_path lacks its schema'
        END,
        f.proowner, COALESCE(f.proacl, ACLDEFAULT('f', f.proowner)), 'pg_proc'::REGCLASS, f.oid, 0
    FROM pg_proc AS f
    CROSS JOIN package AS p
    INNER JOIN pg_language AS l ON l.oid = f.prolang
    WHERE f.proname IN ('generate_random_id', 'update_session_stats_updated_at') AND PG_FUNCTION_IS_VISIBLE(f.oid)
        OR f.proname LIKE 'alicia\_session\_stats\_%' AND f.pronamespace = p.namespace
)

SELECT
    o.object,
    o.definition,
    d.description,
    o.fault,
    PG_GET_USERBYID(o.owner),
    (
        SELECT STRING_AGG(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END, ', ')
        FROM ACLEXPLODE(o.acl) AS g
        WHERE g.grantee <> o.owner
    )
FROM objects AS o
LEFT JOIN pg_description AS d ON d.classoid = o.classid AND d.objoid = o.objid AND d.objsubid = o.objsubid
$function$;

COMMENT ON FUNCTION alicia_session_stats_catalog() IS
'Private: the application''s tables and the package''s objects, as the catalog has them. object is what COMMENT ON takes.';

CREATE OR REPLACE FUNCTION alicia_session_stats_fix(object TEXT, definition TEXT, found TEXT) RETURNS TEXT
LANGUAGE sql IMMUTABLE
AS $function$
SELECT CASE SPLIT_PART(object, ' ', 1) || CASE WHEN object LIKE 'COLUMN %' AND found IS NULL THEN ' missing' ELSE '' END
    WHEN 'COLUMN' THEN FORMAT(
        'ALTER TABLE %1$s%3$s ALTER COLUMN %2$s %4$s NOT NULL, ALTER COLUMN %2$s %5$s;',
        SUBSTRING(object FROM '^COLUMN (.*)\.'),
        SUBSTRING(object FROM '^COLUMN .*\.(.*)'),
        -- Only where it differs: PostgreSQL refuses TYPE for a column that a view reads, even if the type stays.
        (
            SELECT ' ALTER COLUMN ' || SUBSTRING(object FROM '^COLUMN .*\.(.*)') || ' TYPE ' || t.expected || ','
            FROM (
                SELECT SUBSTRING(definition FROM t.pattern), SUBSTRING(found FROM t.pattern)
                FROM (VALUES ('^(.*?)(?: NOT NULL)?(?: DEFAULT .*)?$')) AS t (pattern)
            ) AS t (expected, found)
            WHERE t.expected <> t.found
        ),
        CASE WHEN definition ~ ' NOT NULL' THEN 'SET' ELSE 'DROP' END,
        COALESCE('SET ' || SUBSTRING(definition FROM ' (DEFAULT .*)'), 'DROP DEFAULT')
    )
    WHEN 'CONSTRAINT' THEN FORMAT(
        'ALTER TABLE %1$s DROP CONSTRAINT IF EXISTS %2$s, ADD CONSTRAINT %2$s %3$s;',
        SUBSTRING(object FROM ' ON (.*)'), SUBSTRING(object FROM '^CONSTRAINT (.*) ON '), definition
    )
    WHEN 'INDEX' THEN FORMAT(
        'DROP INDEX CONCURRENTLY IF EXISTS %s; %s;',
        SUBSTR(object, 7), REGEXP_REPLACE(definition, 'INDEX', 'INDEX CONCURRENTLY')
    )
    WHEN 'TRIGGER' THEN REGEXP_REPLACE(definition, '^CREATE', 'CREATE OR REPLACE') || ';'
    WHEN 'FUNCTION' THEN 'CREATE OR REPLACE FUNCTION ' || definition || ';'
    WHEN 'VIEW' THEN FORMAT('CREATE OR REPLACE %s AS %s', object, definition)
    ELSE '-- Restore it from a backup; or roll back all migrations, then migrate again.'
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_fix(TEXT, TEXT, TEXT) IS
'Private: the statements that give an object of alicia_session_stats_catalog() this definition. found: the one that it has.';

CREATE OR REPLACE FUNCTION alicia_session_stats_misfits()
RETURNS TABLE (object TEXT, found TEXT, expected TEXT, fix TEXT, can_add BOOLEAN)
LANGUAGE sql STABLE
AS $function$
WITH promises (object, definition, pattern, can_add) AS (
    VALUES
    ('TABLE alicia_conversations', 'permanent table', '^permanent (partitioned )?table', TRUE),
    ('COLUMN alicia_conversations.id', 'text NOT NULL', '^(text|character varying)', FALSE),
    ('CONSTRAINT alicia_conversations_pkey ON alicia_conversations', 'PRIMARY KEY (id)', '^(PRIMARY KEY|UNIQUE) \(id\)$', FALSE),
    ('TABLE alicia_session_stats', 'permanent table', '^permanent table', TRUE),
    -- Which id or clock fills id and the times is the application's choice.
    ('COLUMN alicia_session_stats.id', 'text NOT NULL DEFAULT generate_random_id(''ass''::text)', '^text NOT NULL DEFAULT', FALSE),
    ('COLUMN alicia_session_stats.conversation_id', 'text NOT NULL', '^text NOT NULL', FALSE),
    ('COLUMN alicia_session_stats.message_count', 'integer NOT NULL DEFAULT 0', '^integer NOT NULL DEFAULT 0$', FALSE),
    ('COLUMN alicia_session_stats.tool_call_count', 'integer NOT NULL DEFAULT 0', '^integer NOT NULL DEFAULT 0$', FALSE),
    ('COLUMN alicia_session_stats.memories_used', 'integer NOT NULL DEFAULT 0', '^integer NOT NULL DEFAULT 0$', FALSE),
    ('COLUMN alicia_session_stats.session_duration_seconds', 'integer NOT NULL DEFAULT 0', '^integer NOT NULL DEFAULT 0$', FALSE),
    (
        'COLUMN alicia_session_stats.created_at', 'timestamp without time zone NOT NULL DEFAULT now()',
        '^timestamp without time zone NOT NULL DEFAULT', FALSE
    ),
    (
        'COLUMN alicia_session_stats.updated_at', 'timestamp without time zone NOT NULL DEFAULT now()',
        '^timestamp without time zone NOT NULL DEFAULT', FALSE
    ),
    ('CONSTRAINT alicia_session_stats_pkey ON alicia_session_stats', 'PRIMARY KEY (id)', '^PRIMARY KEY \(id\)$', FALSE),
    (
        'CONSTRAINT alicia_session_stats_conversation_id_fkey ON alicia_session_stats',
        'FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE',
        '^FOREIGN KEY \(conversation_id\) REFERENCES \S*alicia_conversations\(id\) .*ON DELETE CASCADE', TRUE
    ),
    (
        'CONSTRAINT session_stats_counts_and_duration_not_negative ON alicia_session_stats',
        'CHECK ((LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) >= 0))',
        '^CHECK \(\(LEAST\(message_count, tool_call_count, memories_used, session_duration_seconds\) >= 0\)\)$', TRUE
    ),
    (
        'INDEX idx_session_stats_conversation',
        'CREATE INDEX idx_session_stats_conversation ON alicia_session_stats USING btree (conversation_id)',
        ' ON \S*alicia_session_stats USING btree \(conversation_id\M(?!.* WHERE )', TRUE
    ),
    (
        'INDEX idx_session_stats_created_at',
        'CREATE INDEX idx_session_stats_created_at ON alicia_session_stats USING btree (created_at DESC)',
        ' ON \S*alicia_session_stats USING btree \(created_at\M(?!.* WHERE )', TRUE
    ),
    (
        'TRIGGER update_session_stats_updated_at ON alicia_session_stats',
        'CREATE TRIGGER update_session_stats_updated_at BEFORE UPDATE ON alicia_session_stats FOR EACH ROW '
        'EXECUTE FUNCTION update_session_stats_updated_at()',
        ' BEFORE (INSERT OR )?UPDATE ', TRUE
    )
),

catalog AS (
    SELECT c.*, SPLIT_PART(c.object, ' ', 1) AS kind
    FROM alicia_session_stats_catalog() AS c
)

-- A promise is kept by the object of that name, or, but for tables and columns, by any that does the same.
SELECT
    p.object,
    COALESCE(n.fault, n.definition, 'missing'),
    p.definition,
    CASE
        WHEN p.object LIKE 'TRIGGER %' AND TO_REGPROCEDURE('update_session_stats_updated_at()') IS NULL
            THEN '-- Enable or create a trigger that keeps updated_at.'
        ELSE alicia_session_stats_fix(p.object, p.definition, n.definition)
    END,
    p.can_add AND (n.object IS NULL OR n.fault IS NOT NULL)
FROM promises AS p
LEFT JOIN catalog AS n ON n.object = p.object
WHERE NOT EXISTS (
    SELECT FROM catalog AS c
    WHERE c.definition ~ p.pattern AND c.fault IS NULL AND c.kind = SPLIT_PART(p.object, ' ', 1)
        AND (c.object = p.object OR c.kind IN ('INDEX', 'TRIGGER', 'CONSTRAINT'))
        AND COALESCE(SUBSTRING(c.object FROM ' ON (.*)') = SUBSTRING(p.object FROM ' ON (.*)'), TRUE)
        -- A trigger keeps updated_at if its function names it, or is the extension moddatetime.
        AND (c.kind <> 'TRIGGER' OR EXISTS (
            SELECT FROM pg_trigger AS t
            INNER JOIN pg_proc AS f ON f.oid = t.tgfoid
            WHERE t.tgrelid = TO_REGCLASS('alicia_session_stats') AND PG_GET_TRIGGERDEF(t.oid, TRUE) = c.definition
                AND f.prosrc ~* 'updated_at|moddatetime'
        ))
)
    -- Of a table that does not exist, its columns and constraints are not missed too.
    AND (p.object LIKE 'TABLE %' OR TO_REGCLASS(COALESCE(
        SUBSTRING(p.object FROM '^COLUMN (.*)\.'), SUBSTRING(p.object FROM ' ON (.*)'), 'alicia_session_stats'
    )) IS NOT NULL)

-- What must not be there. A column without a value for our INSERTs; one session per conversation; another foreign key.
UNION ALL
SELECT
    c.object,
    c.definition,
    f.expected,
    '-- Change it.',
    FALSE
FROM catalog AS c
INNER JOIN (
    VALUES
    ('^COLUMN alicia_session_stats\.', ' NOT NULL$', 'nullable, or with a default'),
    (
        '^(INDEX|CONSTRAINT .* ON alicia_session_stats$)',
        '^(CREATE UNIQUE INDEX .* ON \S*alicia_session_stats |UNIQUE ).*\((?!id\M)', 'not unique'
    ),
    (
        '^CONSTRAINT .* ON alicia_session_stats$',
        '^FOREIGN KEY \(.*\mconversation_id\M(?!\) REFERENCES \S*alicia_conversations\(id\) .*ON DELETE CASCADE)',
        'FOREIGN KEY (conversation_id) REFERENCES alicia_conversations(id) ON DELETE CASCADE'
    )
) AS f (object, definition, expected) ON c.object ~ f.object AND c.definition ~ f.definition
WHERE c.object NOT IN (SELECT p.object FROM promises AS p)
$function$;

COMMENT ON FUNCTION alicia_session_stats_misfits() IS
'Private: how the application''s tables differ from the specification. can_add: the migrations add it.';

DO $migration$
DECLARE
    sessions CONSTANT REGCLASS := TO_REGCLASS('alicia_session_stats');
    conversations CONSTANT REGCLASS := TO_REGCLASS('alicia_conversations');
    problems TEXT;
    rows_refused BIGINT := 0;
BEGIN
    SELECT STRING_AGG(FORMAT('%s is %s, must be %s', m.object, m.found, m.expected), '; ') INTO problems
    FROM alicia_session_stats_misfits() AS m
    WHERE NOT m.can_add;
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'the tables in this database do not fit: %', problems
            USING ERRCODE = 'invalid_table_definition', HINT = 'Nothing was changed.';
    END IF;

    SELECT STRING_AGG(name, ', ') INTO problems
    FROM UNNEST(ARRAY[
        'alicia_session_stats_rollup', 'alicia_session_stats_top_candidates', 'alicia_session_stats_top_cutoff',
        'alicia_session_stats_parts', 'alicia_session_stats_quarter_hours', 'alicia_session_stats_top_sessions'
    ]) AS t (name)
    WHERE TO_REGCLASS(name) IS NOT NULL AND TO_REGCLASS('alicia_session_stats_owned_objects') IS NULL;
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'this database has relations that the package would create: %', problems
            USING ERRCODE = 'duplicate_table', HINT = 'Nothing was changed. Rename or drop them.';
    END IF;

    -- The foreign key needs REFERENCES. To compare existing rows with the conversations needs SELECT.
    IF sessions IS NULL OR NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = sessions AND contype = 'f') THEN
        SELECT STRING_AGG(privilege, ', ') INTO problems
        FROM UNNEST(ARRAY['REFERENCES', 'SELECT']) AS p (privilege)
        WHERE NOT HAS_COLUMN_PRIVILEGE(conversations, 'id', privilege) AND (privilege = 'REFERENCES' OR sessions IS NOT NULL);
        IF problems IS NOT NULL THEN
            RAISE EXCEPTION 'permission denied: the foreign key needs % on alicia_conversations', problems
                USING ERRCODE = 'insufficient_privilege',
                    HINT = FORMAT('Ask its owner for: GRANT %s ON %s TO %I;', problems, conversations, CURRENT_USER);
        END IF;
    END IF;
    IF sessions IS NULL THEN
        RETURN;
    END IF;

    SELECT relowner::REGROLE::TEXT INTO problems FROM pg_class WHERE oid = sessions AND NOT PG_HAS_ROLE(relowner, 'USAGE');
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'permission denied: only the owner of alicia_session_stats, %, can create triggers on it', problems
            USING ERRCODE = 'insufficient_privilege',
                HINT = FORMAT('Migrate as that role, or: GRANT %s TO %I;', problems, CURRENT_USER);
    END IF;

    -- EXECUTE, since the tables may not exist when this block is planned.
    EXECUTE $rows$
        SELECT COUNT(*) FROM alicia_session_stats
        WHERE LEAST(message_count, tool_call_count, memories_used, session_duration_seconds) < 0
    $rows$ INTO rows_refused;
    IF rows_refused > 0 THEN
        RAISE EXCEPTION 'rows of alicia_session_stats with a negative count or duration: %', rows_refused
            USING ERRCODE = 'check_violation', HINT = 'Nothing was changed. Correct those rows, then migrate again.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = sessions AND contype = 'f') THEN
        EXECUTE CASE
            WHEN conversations IS NULL THEN 'SELECT COUNT(*) FROM alicia_session_stats'
            ELSE 'SELECT COUNT(*) FROM alicia_session_stats AS s '
                'WHERE NOT EXISTS (SELECT FROM alicia_conversations AS c WHERE c.id = s.conversation_id)'
        END INTO rows_refused;
    END IF;
    IF rows_refused > 0 THEN
        RAISE EXCEPTION 'rows of alicia_session_stats whose conversation does not exist: %', rows_refused
            USING ERRCODE = 'foreign_key_violation', HINT = 'Nothing was changed. Correct those rows, then migrate again.';
    END IF;
END
$migration$;
