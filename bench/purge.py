"""Delete the sessions begun more than DAYS days ago, batch by batch: python -m bench.purge DAYS"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

import runner

TIMEOUT = 600  # Seconds that the server may take for the count, or for one batch.


def purge(conninfo: str | None, days: object) -> int:
    """Delete them, each batch in a transaction of its own, with a progress bar on stderr; returns how many.

    Raises:
        SessionStatsError: also when some remain because somebody else is writing them.
    """
    delete = runner.named_queries()["delete_sessions_before"]
    count = replace(
        delete,
        writes=False,
        statement="SELECT COUNT(*) FROM alicia_session_stats "
        "WHERE created_at < NOW() AT TIME ZONE 'UTC' - MAKE_INTERVAL(days => %(days)s)",
    )
    _, [(total,)] = runner.run_query(conninfo, count, {"days": days}, timeout=TIMEOUT)
    with tqdm(total=total, unit=" sessions", desc="deleting") as progress:
        while True:
            _, [(deleted, more_remain)] = runner.run_query(conninfo, delete, {"days": days}, timeout=TIMEOUT)
            progress.update(deleted)
            if not (deleted and more_remain):
                break
    if more_remain:
        raise runner.SessionStatsError("the sessions that remain are being written by somebody else: run it again later")
    return progress.n


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed or some remain, 2 usage."""
    try:
        if len(arguments) != 1:
            raise runner.UsageError("usage: python -m bench.purge DAYS")
        purge(None, arguments[0])
    except runner.SessionStatsError as error:
        print(f"purge: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("purge: interrupted; what was deleted stays deleted, and it can be run again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
