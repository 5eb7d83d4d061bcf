-- Every difference between this database and what the migrations created, with the statement that fixes it.
--
-- Purpose: operations
-- Returns: one row per difference; no row when there is none.
--     object       kind and name
--     found        what the catalog has
--     expected     what the migrations recorded, or what the specification says of a table of the application's
--     fix          the statement to run, as the owner
--     An object of the package must be exactly as recorded. What the application had before is judged by what it does,
--     not by its name: any index that serves, any constraint that says the same, any enabled trigger that keeps
--     updated_at.
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
        SPLIT_PART(o.object, ' ', 1) AS kind
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
    -- Functions and views have long definitions; CREATE does not restore a comment.
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN o.kind IN ('FUNCTION', 'TRIGGER', 'VIEW') THEN FORMAT('SELECT alicia_session_stats_restore(%L);', o.object)
            WHEN o.kind IN ('INDEX', 'CONSTRAINT')
                THEN alicia_session_stats_fix(o.object, o.definition) || FORMAT(' COMMENT ON %s IS %L;', o.object, o.comment)
            ELSE alicia_session_stats_fix(o.object, CASE WHEN c.object IS NOT NULL THEN o.definition END)
        END AS recreate
    ) AS r
    CROSS JOIN LATERAL (
        SELECT
            'missing' AS found,
            'as created' AS expected,
            r.recreate AS fix
        WHERE c.object IS NULL
        UNION ALL
        SELECT
            c.definition,
            o.definition,
            r.recreate
        WHERE c.definition <> o.definition AND (o.kind <> 'VIEW' OR o.is_same_version)
        UNION ALL
        SELECT
            c.fault,
            'valid and enabled',
            CASE
                WHEN o.kind = 'CONSTRAINT' AND c.fault = 'disabled' THEN 'ALTER TABLE alicia_session_stats ENABLE TRIGGER ALL;'
                WHEN o.kind = 'CONSTRAINT'
                    THEN FORMAT(
                        'ALTER TABLE alicia_session_stats VALIDATE CONSTRAINT %s;', SUBSTRING(o.object FROM '^CONSTRAINT (.*) ON ')
                    )
                WHEN o.kind = 'INDEX' THEN FORMAT('REINDEX INDEX CONCURRENTLY %s;', SUBSTR(o.object, 7))
                ELSE
                    FORMAT('ALTER TABLE alicia_session_stats ENABLE TRIGGER %s;', SUBSTRING(o.object FROM '^TRIGGER (.*) ON '))
            END
        WHERE c.fault IS NOT NULL
        UNION ALL
        SELECT
            COALESCE('comment ' || c.comment, 'no comment'),
            'comment ' || o.comment,
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
    SELECT
        'this session' AS holder,
        reset_val AS zone,
        FORMAT('ALTER DATABASE %I SET TimeZone = ''UTC'';', CURRENT_DATABASE()) AS fix
    FROM pg_settings
    WHERE name = 'TimeZone'
    UNION ALL
    SELECT
        COALESCE('role ' || r.rolname, 'database ' || d.datname),
        SPLIT_PART(s.setting, '=', 2),
        'ALTER ' || COALESCE(
            FORMAT('ROLE %I', r.rolname) || COALESCE(FORMAT(' IN DATABASE %I', d.datname), ''), FORMAT('DATABASE %I', d.datname)
        ) || ' SET TimeZone = ''UTC'';'
    FROM pg_db_role_setting AS g
    CROSS JOIN LATERAL UNNEST(g.setconfig) AS s (setting)
    LEFT JOIN pg_roles AS r ON g.setrole = r.oid
    LEFT JOIN pg_database AS d ON g.setdatabase = d.oid
    WHERE s.setting ILIKE 'timezone=%' AND (g.setdatabase = 0 OR d.datname = CURRENT_DATABASE())
)

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
    'TimeZone of ' || holder,
    zone,
    'UTC',
    fix
FROM time_zones
WHERE REPLACE(UPPER(zone), 'ETC/', '') NOT IN ('UTC', 'UCT', 'UNIVERSAL', 'ZULU', 'GMT')
ORDER BY object, found, fix;
