"""`make bench` on a few rows: every goal has its figure, which means nothing here, and every answer equals DuckDB's."""

# ruff: noqa: RUF001 - a times sign is one.

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import alicia_session_stats as stats

DOCUMENTED = ("average_session_metrics", "most_active_sessions", "session_stats")
FLAT = (
    *DOCUMENTED,
    "busiest_hours",
    "growth_forecast",
    "session_length_distribution",
    "session_percentiles",
    "metric_usage",
)
READING = ("list_sessions", "usage_change", "usage_over_time", "engagement", "peak_concurrency", "conversation_retention")
OPERATIONS = {"recent_activity", "sessions_before", "table_health", "verify", "verify_rollup"}
WRITES = ("updates", "updates of the newest 1,000", "inserts")
GOALS = {
    ("average_session_metrics", "≥ 100× faster (at 5,000,000)"),
    ("average_session_metrics", "< 1 ms (at 5,000,000)"),
    ("most_active_sessions", "≥ 1,000× faster (at 5,000,000)"),
    ("most_active_sessions", "< 0.2 ms (at 5,000,000)"),
    ("session_stats, to the client", "no slower (≤ 1.1×)"),
    *((f"{name}, rows × 10", "≤ 1.5× buffers") for name in DOCUMENTED),
    *((f"{name}, rows × 10", "≤ 2× time") for name in FLAT),
    *((name, "no slower than DuckDB") for name in FLAT),
    *((name, "≤ 3× DuckDB") for name in READING),
    *((kind, "≥ 0.75× tps") for kind in WRITES),
    *((f"{kind}, a snapshot held", "0.1 less at most") for kind in WRITES),
    *((f"{kind}, WAL{which}", "≤ 1.6× WAL") for kind in WRITES[:2] for which in ("", " without page images")),
    ("COPY of 2,000 rows", "≥ 0.75× rows/s"),
}  # fmt: skip


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_every_goal_has_its_figure(tmp_path: Path) -> None:
    result = bench("2000", "--seconds", "0.1", "--json", tmp_path / "results.json")
    assert result.returncode == 0, result.stderr

    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["rows"] == 2000
    assert {(goal["measure"], goal["goal"]) for goal in figures["goals"]} == GOALS
    assert set(figures["repair"].values()) == {0}
    readers = {name for name, query in stats.queries().items() if not query.writes}
    assert readers - {read["query"] for read in figures["reads"]} == OPERATIONS | {"active_users"}  # It needs user_id.

    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()]
    shown = {(cells[0], cells[5]): cells for cells in table if len(cells) == 7 and cells[6] in ("ok", "missed")}
    assert shown.keys() == GOALS
    assert all("×" in cells[4] or cells[5].startswith("<") for cells in shown.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["many"], "argument ROWS: expected a whole number, 1 or more, not 'many'"),
        (["999"], "ROWS must be 1000 or more, not 999"),
        ([], "the following arguments are required: ROWS"),
        (["1000", "--json", "/nowhere/results.json"], "there is no folder /nowhere"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    result = bench(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_live_recording_is_measured_beside_the_bare_tables_and_counting() -> None:
    command = [sys.executable, "-m", "bench.live", "--seconds", "0.1", "--rounds", "1", "--messages", "1000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for measure in (
        "10 messages in each conversation",
        "1,000 messages in each conversation",
        "100,000 in statements of 1,000",
        "since_days=366, of 1,000 messages in a year",
    ):
        assert f"| {measure} " in result.stdout
