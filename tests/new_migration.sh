#!/bin/sh
# Write the two files of a new migration, with the header that each needs: new_migration.sh verb_session_stats_object
set -eu
cd "$(dirname "$0")/../migrations"
last=$(ls [0-9]*.sql | tail -n 1 | cut -c 1-4)
name=$(printf '%04d' $((${last#"${last%%[!0]*}"} + 1)))_$1
for file in "$name.sql" "$name.rollback.sql"; do
    cat > "$file" <<'SQL'
-- What it does, in one sentence.
--
-- Why: the reason, not a paraphrase of the SQL.
-- Locks: which, on which table, for how long.
-- Rollback: what is lost.
SET LOCAL lock_timeout = '500ms';

SQL
    echo "migrations/$file"
done
