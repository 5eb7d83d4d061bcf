-- Every difference between this database and what the package needs, with the statement that fixes it.
--
-- Purpose: operations
-- Returns: one row per difference; no row when there is none.
--     object       kind and name
--     found        what the catalog has
--     expected     what the migrations recorded, or what the specification says of a table of the application's
--     fix          the statement to run, as the owner of the object; for a TimeZone, as the owner of the database
--     An object of the package must be exactly as recorded. In place of it, the application may have an equivalent: an
--     index with the same leading column, the same constraint, an enabled trigger that sets updated_at.
-- Reads: no index
--
-- psql -f queries/verify.sql
WITH owned AS (
    SELECT
        o.object,
        o.definition,
        o.comment,
        o.is_closed,
        o.server_version = CURRENT_SETTING('server_version_num')::INTEGER / 10000 AS is_same_version,
        SPLIT_PART(o.object, ' ', 1) AS kind,
        -- What a column or constraint belongs to.
        COALESCE(SUBSTRING(o.object FROM '^COLUMN (.*)\.'), SUBSTRING(o.object FROM '^CONSTRAINT .* ON (.*)')) AS relation
    FROM alicia_session_stats_owned_objects AS o
),

catalog AS (
    SELECT *
    FROM alicia_session_stats_catalog()
),

-- The owner of the record owns everything in it.
package AS (
    SELECT owner
    FROM catalog
    WHERE object = 'TABLE alicia_session_stats_owned_objects'
),

package_differences AS (
    SELECT
        o.object,
        d.found,
        d.expected,
        d.fix
    FROM owned AS o
    LEFT JOIN catalog AS c ON o.object = c.object
    CROSS JOIN package AS p
    LEFT JOIN owned AS v ON v.object = 'VIEW ' || o.relation
    -- Functions and views have long definitions; CREATE does not restore a comment.
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN v.object IS NOT NULL OR o.kind IN ('FUNCTION', 'TRIGGER', 'VIEW')
                THEN FORMAT('SELECT alicia_session_stats_restore(%L);', COALESCE(v.object, o.object))
            WHEN o.kind IN ('INDEX', 'CONSTRAINT')
                THEN alicia_session_stats_fix(o.object, o.definition, c.definition)
                || FORMAT(' COMMENT ON %s IS %L;', o.object, o.comment)
            ELSE alicia_session_stats_fix(o.object, o.definition, c.definition)
        END AS recreate
    ) AS r
    CROSS JOIN LATERAL (
        SELECT
            'missing' AS found,
            'as created' AS expected,
            r.recreate AS fix
        -- Not the columns of a table that is missing itself.
        WHERE c.object IS NULL AND TO_REGCLASS(COALESCE(o.relation, 'pg_class')) IS NOT NULL
        UNION ALL
        SELECT
            c.definition AS found,
            o.definition AS expected,
            r.recreate AS fix
        WHERE c.definition <> o.definition AND (o.kind <> 'VIEW' OR o.is_same_version)
        UNION ALL
        SELECT
            c.fault,
            'valid and enabled',
            CASE
                WHEN o.kind = 'CONSTRAINT' AND c.fault = 'disabled' THEN r.recreate
                WHEN o.kind = 'CONSTRAINT'
                    THEN REGEXP_REPLACE(o.object, '^(CONSTRAINT .*) ON (.*)', 'ALTER TABLE \2 VALIDATE \1;')
                WHEN o.kind = 'INDEX' THEN FORMAT('REINDEX INDEX CONCURRENTLY %s;', SUBSTR(o.object, 7))
                WHEN o.kind = 'FUNCTION' THEN FORMAT('SELECT alicia_session_stats_own(%L, %L);', o.object, o.is_closed)
                ELSE REGEXP_REPLACE(o.object, '^(TRIGGER .*) ON (.*)', 'ALTER TABLE \2 ENABLE \1;')
            END
        WHERE c.fault IS NOT NULL
        UNION ALL
        SELECT
            COALESCE('comment ' || c.comment, 'no comment'),
            COALESCE('comment ' || o.comment, 'no comment'),
            FORMAT('COMMENT ON %s IS %L;', o.object, o.comment)
        WHERE c.object IS NOT NULL AND c.comment IS DISTINCT FROM o.comment
        UNION ALL
        SELECT
            'owner ' || c.owner,
            'owner ' || p.owner,
            FORMAT('ALTER %s OWNER TO %I;', o.object, p.owner)
        WHERE c.owner <> p.owner
        UNION ALL
        SELECT
            'granted to ' || c.grantees,
            'granted to no role',
            FORMAT('REVOKE ALL ON %s FROM %s;', o.object, c.grantees)
        WHERE o.is_closed AND c.grantees IS NOT NULL
    ) AS d
),

-- created_at defaults to NOW(), which is UTC only where the session's TimeZone is.
time_zones AS (
    -- What a role or database sets follows below. What this session sets, with PGTZ or SET, tells nothing about others.
    SELECT
        'the server' AS holder,
        setting AS zone,
        FORMAT('ALTER DATABASE %I SET TimeZone = ''UTC'';', CURRENT_DATABASE()) AS fix
    FROM pg_settings
    WHERE name = 'TimeZone' AND source IN ('default', 'environment variable', 'configuration file', 'command line')
    UNION ALL
    SELECT
        COALESCE('role ' || r.rolname, 'database ' || d.datname, 'all roles'),
        SPLIT_PART(s.setting, '=', 2),
        'ALTER ' || COALESCE(
            'ROLE ' || QUOTE_IDENT(r.rolname) || COALESCE(' IN DATABASE ' || QUOTE_IDENT(d.datname), ''),
            'DATABASE ' || QUOTE_IDENT(d.datname),
            'ROLE ALL'
        ) || ' SET TimeZone = ''UTC'';'
    FROM pg_db_role_setting AS g
    CROSS JOIN LATERAL UNNEST(g.setconfig) AS s (setting)
    LEFT JOIN pg_roles AS r ON g.setrole = r.oid
    LEFT JOIN pg_database AS d ON g.setdatabase = d.oid
    WHERE s.setting ILIKE 'timezone=%' AND (g.setdatabase = 0 OR d.datname = CURRENT_DATABASE())
),

differences AS (
    SELECT
        object,
        found,
        expected,
        fix
    FROM package_differences
    UNION ALL
    SELECT
        m.object,
        m.found,
        m.expected,
        m.fix
    FROM alicia_session_stats_misfits() AS m
    WHERE m.object NOT IN (SELECT o.object FROM owned AS o)
    UNION ALL
    SELECT
        'TABLE alicia_session_stats',
        'not readable by ' || owner,
        'readable by the owner of the package, with whose privileges the triggers run',
        FORMAT('GRANT SELECT ON alicia_session_stats TO %I;', owner)
    FROM package
    WHERE NOT HAS_TABLE_PRIVILEGE(owner, TO_REGCLASS('alicia_session_stats'), 'SELECT')
    UNION ALL
    SELECT
        FORMAT('SCHEMA %I', n.nspname),
        'CREATE granted to PUBLIC',
        'CREATE for trusted roles only, since the triggers run with the privileges of their owner',
        FORMAT('REVOKE CREATE ON SCHEMA %I FROM PUBLIC;', n.nspname)
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    CROSS JOIN LATERAL ACLEXPLODE(n.nspacl) AS g
    WHERE c.oid = TO_REGCLASS('alicia_session_stats_owned_objects') AND g.grantee = 0 AND g.privilege_type = 'CREATE'
    UNION ALL
    SELECT
        'TimeZone of ' || holder,
        zone,
        'UTC',
        fix
    FROM time_zones
    WHERE REPLACE(UPPER(zone), 'ETC/', '') NOT IN ('UTC', 'UCT', 'UNIVERSAL', 'ZULU', 'GMT')
)

SELECT
    object,
    found,
    expected,
    fix
FROM differences
-- In the order in which they can be fixed: functions first, since defaults and triggers call them.
ORDER BY object NOT LIKE 'FUNCTION %', object COLLATE "C", found, fix;
