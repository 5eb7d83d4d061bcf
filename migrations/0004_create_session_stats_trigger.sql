-- Stamp updated_at whenever a session's row really changes.
--
-- Why: readers of updated_at must see every change. So the stamp strictly advances, also twice in one
--      transaction (NOW() stands still there), and nothing the statement wrote to it counts. It is UTC
--      whatever the session's TimeZone. A trigger of the host's that keeps updated_at is left as it is.
-- Locks: SHARE ROW EXCLUSIVE on alicia_session_stats for an instant: writers wait, readers do not.
-- Rollback: drops the trigger and its function, where this file created them; updated_at stays as it was last.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    -- BEFORE UPDATE, for each row (tgtype: 1 row, 2 before, 16 update), by a function that
    -- speaks of updated_at, or the extension that is told the column's name.
    IF EXISTS (
        SELECT FROM pg_trigger AS t
        JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = 'alicia_session_stats'::REGCLASS AND NOT t.tgisinternal
            AND t.tgtype & 19 = 19 AND p.prosrc ~* 'updated_at|moddatetime'
    ) THEN
        RETURN;
    END IF;

    IF TO_REGPROCEDURE('update_session_stats_updated_at()') IS NULL THEN
        -- The search_path is pinned: no function or operator of a caller's schema can slip in.
        CREATE FUNCTION update_session_stats_updated_at() RETURNS TRIGGER
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $function$
        BEGIN
            NEW.updated_at := GREATEST(
                CLOCK_TIMESTAMP() AT TIME ZONE 'UTC', OLD.updated_at + INTERVAL '1 microsecond'
            );
            RETURN NEW;
        END
        $function$;

        COMMENT ON FUNCTION update_session_stats_updated_at() IS
        'Trigger function: stamps updated_at with the UTC time, always later than before';
        INSERT INTO alicia_session_stats_created VALUES ('FUNCTION update_session_stats_updated_at()');
    END IF;

    -- An UPDATE that changes nothing is not a modification.
    CREATE TRIGGER update_session_stats_updated_at
    BEFORE UPDATE ON alicia_session_stats
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION update_session_stats_updated_at();

    COMMENT ON TRIGGER update_session_stats_updated_at ON alicia_session_stats IS
    'Stamps updated_at when a row really changes';
    INSERT INTO alicia_session_stats_created VALUES ('TRIGGER update_session_stats_updated_at');
END
$migration$;
