"""Measure the package against the bare schema of the specification and DuckDB, side by side.

    python -m bench.bench ROWS [--json FILE] [--seconds S] [--server CONNINFO]

A server of its own, PostgreSQL 18 from the wheel, and every file it needs live in a temporary folder (TMPDIR), roughly
3 GB for each million rows, that is gone afterwards. Databases of ROWS, of a tenth and of a hundredth of them hold
the same sessions in the bare schema, in ours and in DuckDB. What is compared is measured in turns. Tables go to stdout.

Another major version: pg_virtualenv -v 15 -o shared_buffers=1GB sh -c 'python -m bench.bench 500000 --server ""'
"""

# ruff: noqa: RUF001 - a times sign is one.

import math
import os
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import simplejson
from tabulate import tabulate

from alicia_session_stats import SessionStatsError, UsageError
from alicia_session_stats.arguments import Parser, parse_count, parse_seconds
from bench.reads import DOCUMENTED, DUCKDB, READS_SESSIONS, READS_SUMMARIES, Read, measure_reads
from bench.samples import SETTINGS, load, measure_sizes, summarize, workplace
from bench.writes import INSERT, UPDATE, Write, measure_writes, profile

HERE = Path(__file__).parent
SYSTEMS = ("bare", "ours", "DuckDB")
UNSUMMARIZED = ", no summaries"
FASTER = {"average_session_metrics": (100, 1.0), "most_active_sessions": (1000, 0.2)}  # Times, and milliseconds.


@dataclass(frozen=True)
class Goal:
    """A goal beside its figure."""

    measure: str
    bare: str
    ours: str
    duckdb: str
    ratio: str
    goal: str
    met: bool


# The goals --------------------------------------------------------------------------------------------


def judge(rows: int, chunks: list[tuple[float, float]], reads: list[Read], writes: list[Write]) -> Iterator[Goal]:
    """Every goal beside its figure."""
    at = {(read.query, read.rows): read for read in reads}
    large = "" if rows == 5_000_000 else " (at 5,000,000)"
    for name in DOCUMENTED:
        full, tenth = at[name, rows], at[name, rows // 10]
        bare, ours = (statistics.median(full.server[system]) for system in SYSTEMS[:2])
        if name in FASTER:
            times, limit = FASTER[name]
            said = f"≥ {times:,}× faster{large}"
            yield Goal(name, f"{brief(bare)} ms", f"{brief(ours)} ms", "", f"{brief(bare / ours)}×", said, bare / ours >= times)
            yield Goal(name, "", f"{brief(ours)} ms", "", "", f"< {limit:g} ms{large}", ours < limit)
        else:  # A few microseconds in the server, of which the clock there tells one.
            bare, ours = (statistics.median(full.client[system]) for system in SYSTEMS[:2])
            cells = [f"{brief(bare)} ms", f"{brief(ours)} ms", "", f"{ours / bare:.2f}×"]
            yield Goal(f"{name}, to the client", *cells, "no slower (≤ 1.1×)", ours / bare <= 1.1)
        more = full.buffers["ours"] / max(1, tenth.buffers["ours"])
        yield Goal(f"{name}, rows × 10", "", "", "", f"{more:.2f}×", "≤ 1.5× buffers", more <= 1.5)

    for name in DUCKDB:
        ours, duck = (statistics.median(at[name, rows].client[system]) for system in SYSTEMS[1:])
        cells = ["", f"{brief(ours)} ms", f"{brief(duck)} ms", f"{ours / duck:.2f}×"]
        if name in READS_SESSIONS:
            yield Goal(name, *cells, "≤ 3× DuckDB", ours <= 3 * duck)
            continue
        yield Goal(name, *cells, "no slower than DuckDB", ours <= duck)
        slower = ours / statistics.median(at[name, rows // 10].client["ours"])
        yield Goal(f"{name}, rows × 10", "", "", "", f"{slower:.2f}×", "≤ 2× time", slower <= 2)

    for write in writes:
        cells = [f"{write.median(system, 'tps'):,.0f} tps" for system in (0, 1)]
        ratio = statistics.median(write.ratio("tps"))
        yield Goal(write.kind, *cells, "", f"{ratio:.2f}×", "≥ 0.75× tps", ratio >= 0.75)
        cells = [f"{write.median(system, 'tps', 'held'):,.0f} tps" for system in (0, 1)]
        held = statistics.median(write.ratio("tps", "held"))
        yield Goal(f"{write.kind}, a snapshot held", *cells, "", f"{held:.2f}×", "0.1 less at most", held >= ratio - 0.1)
        if write.kind != "inserts":
            cells = [f"{write.median(system, 'wal'):,.0f} B" for system in (0, 1)]
            ratio = statistics.median(write.ratio("wal"))
            yield Goal(f"{write.kind}, WAL", *cells, "", f"{ratio:.2f}×", "≤ 1.6× WAL", ratio <= 1.6)
            cells = [f"{wal:,.0f} B" for wal in write.imageless]
            ratio = write.imageless[1] / write.imageless[0]
            yield Goal(f"{write.kind}, WAL without page images", *cells, "", f"{ratio:.2f}×", "≤ 1.6× WAL", ratio <= 1.6)
    ratio = statistics.median(bare / ours for bare, ours in chunks)
    cells = [f"{sum(seconds):.2f} s" for seconds in zip(*chunks, strict=True)]
    yield Goal(f"COPY of {rows:,} rows", *cells, "", f"{ratio:.2f}×", "≥ 0.75× rows/s", ratio >= 0.75)


# What is shown ----------------------------------------------------------------------------------------


def print_tables(figures: dict[str, Any]) -> None:
    rows, reads, writes = figures["rows"], figures["reads"], figures["writes"]
    goals = [[*list(vars(goal).values())[:-1], "ok" if goal.met else "missed"] for goal in figures["goals"]]
    headers = ["measure", *SYSTEMS, "ratio", "goal", ""]
    show(f"GOALS, PostgreSQL {figures['postgresql']}, {rows:,} rows: medians, ratios of neighbours in time", headers, goals)

    cells = [
        [
            *(r.query, f"{r.rows:,}", spread(r.client.get("bare")), spread(r.client["ours"]), spread(r.client["DuckDB"])),
            *(brief(statistics.median(r.server["ours"])), f"{r.buffers['ours']:,}"),
        ]
        for r in reads
    ]
    headers = ["query", "rows", *SYSTEMS, "ours, in the server", "buffers"]
    show("READS: ms until the client has the rows, median (least–most)", headers, cells)

    cells = []
    for write in writes:
        for system in (0, 1):
            turns = [pair[system] for pair in write.turns]
            per = [spread([turn.wal for turn in turns]), f"{write.median(system, 'images'):.3f}"]
            per += [f"{write.imageless[system]:,.0f}", f"{100 * write.median(system, 'hot'):.0f}"]
            tps = [spread([turn.tps for turn in turns]), brief(write.median(system, "tps", "held"))]
            cells.append([write.kind, SYSTEMS[system], *tps, *per])
        ratios = [spread(write.ratio("tps")), spread(write.ratio("tps", "held")), spread(write.ratio("wal")), ""]
        cells.append([write.kind, "ours / bare", *ratios, f"{write.imageless[1] / write.imageless[0]:.2f}×", ""])
    headers = [
        "write",
        "",
        "tps, median (least–most)",
        "a snapshot held",
        "WAL B",
        "page images",
        "WAL B without images",
        "HOT %",
    ]
    show("WRITES: 8 clients, one row a transaction; WAL and images for each", headers, cells)

    for kind, steps in figures["profile"].items():
        names = dict.fromkeys([*steps["ours"], *steps["bare"]])
        cells = [
            [
                name,
                *(f"{of[name]:.0f}" if name in of else "" for of in (steps["bare"], steps["ours"])),
                f"{100 * steps['ours'][name] / steps['ours']['total']:.0f}" if name in steps["ours"] else "",
            ]
            for name in names
        ]
        show(f"WHERE THE TIME OF ONE {kind} GOES: µs, one client", ["step", "bare", "ours", "% of ours"], cells)

    sizes = figures["sizes"]
    cells = [[name, *(f"{of[name]:,}" if name in of else "" for of in sizes.values())] for name in sizes["ours"]]
    show("SIZES: bytes", ["", *sizes], cells)
    show(f"SUMMARIZING {rows:,} sessions", ["seconds"], [[f"{figures['summarize_seconds']:.1f}"]])
    show("EXACTNESS: alicia_session_stats_repair()", ["object", "corrections"], list(figures["repair"].items()))


def show(title: str, headers: list[str], cells: list[list[Any]]) -> None:
    align = ["left" if not i or header in ("", "goal", "object") else "right" for i, header in enumerate(headers)]
    print(f"\n{title}\n\n{tabulate(cells, headers, 'github', colalign=align, disable_numparse=True)}")


def brief(value: float) -> str:
    """Three digits."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def spread(values: list[float] | None) -> str:
    return f"{brief(statistics.median(values))} ({brief(min(values))}–{brief(max(values))})" if values else ""


# The command ------------------------------------------------------------------------------------------


def measure(rows: int, seconds: float, server: str | None) -> dict[str, Any]:
    """Everything there is to say."""
    with workplace(server) as (folder, conninfo):
        loaded = [load(conninfo, folder, size) for size in (rows // 100, rows // 10, rows)]
        sizes, chunks = [size for size, _ in loaded], loaded[-1][1]
        full = sizes[-1]
        until = datetime.now(UTC).replace(tzinfo=None)
        unsummarized = measure_reads(sizes, READS_SUMMARIES, until, UNSUMMARIZED)
        summarize_seconds = [summarize(size) for size in sizes][-1]
        reads = measure_reads(sizes, tuple(DUCKDB), until)
        stored = {"bare": measure_sizes(full.bare), "ours": measure_sizes(full.ours)}
        writes = measure_writes(full, seconds, 5 if rows < 1_000_000 else 9, folder)
        profiled = {
            kind: {"bare": profile(full.bare, statement, table), "ours": profile(full.ours, statement, table)}
            for kind, statement, table in (("UPDATE", UPDATE, "id_of"), ("INSERT", INSERT, "conversation_of"))
        }
        repair = dict(full.ours.execute("SELECT object, corrections FROM alicia_session_stats_repair()").fetchall())
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": rows,
            "postgresql": full.ours.info.parameter_status("server_version"),
            "duckdb": duckdb.__version__,
            "cpus": os.cpu_count(),
            "settings": SETTINGS if server is None else "as given",
            "goals": list(judge(rows, chunks, reads, writes)),
            "copy_seconds": chunks,
            "summarize_seconds": summarize_seconds,
            "reads": reads + unsummarized,
            "writes": writes,
            "profile": profiled,
            "sizes": {**stored, "ours, after the writes": measure_sizes(full.ours)},
            "repair": repair,
        }


def parse(arguments: Sequence[str]) -> Any:
    parser = Parser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", metavar="ROWS", type=parse_count, help="sessions, 1000 or more")
    parser.add_argument("--json", metavar="FILE", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--seconds", metavar="S", type=parse_seconds, help="of a pgbench round (3; from a million rows 5)")
    parser.add_argument("--server", metavar="CONNINFO", help="a server to create the databases on, as a superuser")
    a = parser.parse_args(arguments)
    if a.rows < 1000:
        raise UsageError(f"ROWS must be 1000 or more, not {a.rows}")
    if not a.json.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {a.json.parent}")
    return a


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 done, whatever goal was missed, 1 failed or not exact, 2 usage."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        a = parse(arguments)
        figures = measure(a.rows, a.seconds or (3 if a.rows < 1_000_000 else 5), a.server)
    except (SessionStatsError, psycopg.Error) as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    print_tables(figures)
    a.json.write_text(simplejson.dumps(figures, indent=2, ensure_ascii=False, default=vars) + "\n")
    if any(figures["repair"].values()):
        print("bench: the sums did not agree with the sessions", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
