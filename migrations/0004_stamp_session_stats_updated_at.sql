-- Stamp updated_at whenever a session's row really changes.
--
-- Why: readers of updated_at must see every change. The stamp strictly advances, also twice in one transaction
--      (NOW() is the start of the transaction). It is UTC whatever the session's TimeZone, and replaces what the statement wrote.
--      A trigger of the application's that sets updated_at is left as it is.
-- Locks: SHARE ROW EXCLUSIVE on alicia_session_stats for an instant: writers wait, readers do not.
-- Rollback: drops the trigger and its function. updated_at keeps its last values.
SET LOCAL lock_timeout = '500ms';

DO $migration$
BEGIN
    IF NOT EXISTS (SELECT FROM alicia_session_stats_misfits() AS m WHERE m.object LIKE 'TRIGGER %') THEN
        RETURN;
    END IF;

    IF TO_REGPROCEDURE('update_session_stats_updated_at()') IS NULL THEN
        CREATE FUNCTION update_session_stats_updated_at() RETURNS TRIGGER
        LANGUAGE plpgsql
        AS $function$
        BEGIN
            -- An UPDATE that changes nothing is not a modification. *<> compares any column that the application may add:
            -- IS DISTINCT FROM fails for a type without an equality operator, such as JSON. In a table with a stored
            -- generated column every UPDATE counts as one that changes the row: the column is not computed yet.
            -- Names have their schema, so that search_path does not affect them. Setting it would cost each update more.
            IF OLD OPERATOR(pg_catalog.*<>) NEW THEN
                NEW.updated_at := GREATEST(
                    pg_catalog.CLOCK_TIMESTAMP() AT TIME ZONE 'UTC',
                    OLD.updated_at OPERATOR(pg_catalog.+) INTERVAL '1 microsecond'
                );
            END IF;
            RETURN NEW;
        END
        $function$;

        COMMENT ON FUNCTION update_session_stats_updated_at() IS
        'Trigger function: stamps updated_at with the UTC time, always later than before';
        PERFORM alicia_session_stats_own('FUNCTION update_session_stats_updated_at()');
    END IF;

    -- Without a WHEN, which PostgreSQL would read from the catalog for each statement.
    CREATE TRIGGER update_session_stats_updated_at
    BEFORE UPDATE ON alicia_session_stats
    FOR EACH ROW EXECUTE FUNCTION update_session_stats_updated_at();

    COMMENT ON TRIGGER update_session_stats_updated_at ON alicia_session_stats IS
    'Stamps updated_at';
    PERFORM alicia_session_stats_own('TRIGGER update_session_stats_updated_at ON alicia_session_stats');
END
$migration$;
