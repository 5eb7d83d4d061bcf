-- Record what the package creates: each object, its definition, and its comment.
--
-- Why: rollback may drop only what the package created, and verify compares each object with its record. A
--      migration creates an object, comments it, and calls alicia_session_stats_own() for it.
-- Locks: none on the application's tables.
-- Rollback: drops the record. Refused while an object of another migration is in it.
SET LOCAL lock_timeout = '500ms';

CREATE TABLE IF NOT EXISTS alicia_session_stats_owned_objects (
    object TEXT CONSTRAINT alicia_session_stats_owned_objects_pkey PRIMARY KEY,
    definition TEXT NOT NULL,
    comment TEXT,
    is_closed BOOLEAN NOT NULL,
    server_version INTEGER NOT NULL
);

COMMENT ON TABLE alicia_session_stats_owned_objects IS
'Private: what alicia-session-stats created in this schema. Rollback drops these objects and nothing else.';
COMMENT ON COLUMN alicia_session_stats_owned_objects.object IS
'Kind and name, as COMMENT ON takes them';
COMMENT ON COLUMN alicia_session_stats_owned_objects.definition IS
'What it is, as alicia_session_stats_catalog() writes it';
COMMENT ON COLUMN alicia_session_stats_owned_objects.comment IS
'Its comment';
COMMENT ON COLUMN alicia_session_stats_owned_objects.is_closed IS
'Whether only its owner may use it';
COMMENT ON COLUMN alicia_session_stats_owned_objects.server_version IS
'Major version of the server that wrote the definition: a view''s text differs between versions';
-- So that every role can run verify. It holds no application data.
GRANT SELECT ON alicia_session_stats_owned_objects TO PUBLIC;

CREATE OR REPLACE FUNCTION alicia_session_stats_own(created TEXT, is_closed BOOLEAN DEFAULT FALSE) RETURNS VOID
LANGUAGE plpgsql
AS $function$
DECLARE
    grantees CONSTANT TEXT := (SELECT c.grantees FROM alicia_session_stats_catalog() AS c WHERE c.object = created);
    schemas TEXT;
    readers TEXT;
BEGIN
    IF is_closed AND grantees IS NOT NULL THEN
        EXECUTE FORMAT('REVOKE ALL ON %s FROM %s', REPLACE(created, 'VIEW', 'TABLE'), grantees);
    END IF;

    -- A function that fixes its search_path names its schema, and that of the application's table, in it.
    IF EXISTS (
        SELECT FROM pg_proc
        WHERE 'FUNCTION ' || oid::REGPROCEDURE = created AND proconfig::TEXT LIKE '%search\_path=%'
            AND prosrc LIKE '%alicia\_session\_stats\_%'
    ) THEN
        SELECT STRING_AGG(DISTINCT relnamespace::REGNAMESPACE::TEXT, ', ') INTO schemas
        FROM pg_class
        WHERE oid IN ('alicia_session_stats'::REGCLASS, 'alicia_session_stats_owned_objects'::REGCLASS)
            -- The functions of live/attach.sql read the application's tables, too.
            OR created LIKE 'FUNCTION alicia\_session\_stats\_live\_%' AND oid IN (
                TO_REGCLASS('alicia_conversations'), TO_REGCLASS('alicia_messages'), TO_REGCLASS('alicia_tool_uses'),
                TO_REGCLASS('alicia_memory_used')
            );
        EXECUTE FORMAT('ALTER %s SET search_path = pg_catalog, %s, pg_temp', created, schemas);
    END IF;

    -- The roles that may read the sessions may read the views.
    IF created LIKE 'VIEW %' THEN
        SELECT STRING_AGG(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::REGROLE::TEXT END, ', ') INTO readers
        FROM pg_class AS c
        CROSS JOIN LATERAL ACLEXPLODE(c.relacl) AS g
        WHERE c.oid = 'alicia_session_stats'::REGCLASS AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner;
        IF readers IS NOT NULL THEN
            EXECUTE FORMAT('GRANT SELECT ON %s TO %s', SUBSTR(created, 6), readers);
        END IF;
    END IF;

    INSERT INTO alicia_session_stats_owned_objects AS o
    SELECT c.object, c.definition, c.comment, is_closed, CURRENT_SETTING('server_version_num')::INTEGER / 10000
    FROM alicia_session_stats_catalog() AS c
    WHERE c.object = created
        -- A table or view with its columns, a table with its constraints.
        OR c.object LIKE REGEXP_REPLACE(created, '^(TABLE|VIEW) ', 'COLUMN ') || '.%'
        OR c.object LIKE REGEXP_REPLACE(created, '^TABLE ', 'CONSTRAINT % ON ')
    ON CONFLICT (object) DO UPDATE
    SET definition = excluded.definition, comment = excluded.comment, is_closed = excluded.is_closed,
        server_version = excluded.server_version;
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_own(TEXT, BOOLEAN) IS
'Private: records an object that a migration has created. is_closed: only its owner may use it.';

CREATE OR REPLACE FUNCTION alicia_session_stats_restore(owned TEXT) RETURNS VOID
LANGUAGE plpgsql
AS $function$
DECLARE
    record CONSTANT alicia_session_stats_owned_objects := (
        SELECT o FROM alicia_session_stats_owned_objects AS o WHERE o.object = owned
    );
    part RECORD;
BEGIN
    -- A function may use what is not restored yet.
    PERFORM SET_CONFIG('check_function_bodies', 'off', TRUE);
    BEGIN
        EXECUTE alicia_session_stats_fix(owned, record.definition, NULL);
    EXCEPTION WHEN invalid_table_definition THEN
        -- A view that got other columns.
        EXECUTE 'DROP ' || owned;
        EXECUTE alicia_session_stats_fix(owned, record.definition, NULL);
    END;
    FOR part IN
        SELECT o.object, o.comment
        FROM alicia_session_stats_owned_objects AS o
        WHERE o.object = owned OR o.object LIKE REPLACE(owned, 'VIEW', 'COLUMN') || '.%'
    LOOP
        EXECUTE FORMAT('COMMENT ON %s IS %L', part.object, part.comment);
    END LOOP;
    PERFORM alicia_session_stats_own(owned, record.is_closed);
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_restore(TEXT) IS
'Private: creates an owned view, function or trigger again, as it was recorded';

CREATE OR REPLACE FUNCTION alicia_session_stats_drop(owned TEXT) RETURNS VOID
LANGUAGE plpgsql
AS $function$
DECLARE
    on_table CONSTANT TEXT := SUBSTRING(owned FROM '^CONSTRAINT .* ON (.*)');
    holds_rows BOOLEAN := FALSE;
BEGIN
    DELETE FROM alicia_session_stats_owned_objects AS o WHERE o.object = owned;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    IF owned IN ('TABLE alicia_session_stats', 'TABLE alicia_conversations')
        AND TO_REGCLASS(SUBSTR(owned, 7)) IS NOT NULL
        AND CURRENT_SETTING('alicia_session_stats.allow_data_loss', TRUE) IS DISTINCT FROM 'on'
    THEN
        EXECUTE 'LOCK ' || owned;
        EXECUTE FORMAT('SELECT EXISTS (%s)', 'SELECT FROM ' || SUBSTR(owned, 7)) INTO holds_rows;
        IF holds_rows THEN
            RAISE EXCEPTION '% holds rows, which this rollback would delete', SUBSTR(owned, 7)
                USING HINT = 'Roll back with --allow-data-loss, or SET alicia_session_stats.allow_data_loss = on.';
        END IF;
    END IF;

    IF on_table IS NULL THEN
        EXECUTE 'DROP ' || REGEXP_REPLACE(owned, ' ', ' IF EXISTS ');
    ELSIF TO_REGCLASS(on_table) IS NOT NULL THEN
        EXECUTE FORMAT('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s', on_table, SUBSTRING(owned FROM 'CONSTRAINT (.*) ON '));
    END IF;

    -- With a table or view go its columns, constraints and indexes.
    DELETE FROM alicia_session_stats_owned_objects AS o
    WHERE owned ~ '^(TABLE|VIEW)' AND o.object ~ '^(COLUMN|CONSTRAINT|INDEX)'
        AND NOT EXISTS (SELECT FROM alicia_session_stats_catalog() AS c WHERE c.object = o.object);
END
$function$;

COMMENT ON FUNCTION alicia_session_stats_drop(TEXT) IS
'Private: drops an object if the package created it. Never drops with CASCADE.';

DO $migration$
BEGIN
    PERFORM alicia_session_stats_own('TABLE alicia_session_stats_owned_objects');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_catalog()');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_fix(text,text,text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_misfits()');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_own(text,boolean)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_restore(text)');
    PERFORM alicia_session_stats_own('FUNCTION alicia_session_stats_drop(text)');
END
$migration$;
