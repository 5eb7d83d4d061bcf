"""The Prometheus output is valid for the node exporter, has no unbounded label, and the alert rules fire on it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import ROOT, cli, conninfo_of

import alicia_session_stats as stats
import runner

Database = psycopg.Connection[Any]
READING = sorted(name for name, query in stats.queries().items() if not query.writes)
MONITORING = ROOT / "monitoring"
PAGE = (MONITORING / "README.md").read_text()


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool."""
    program = shutil.which("promtool")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed (apt-get install --no-install-recommends prometheus)")

    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [program, *arguments]
        return subprocess.run(
            command, cwd=MONITORING, input=given, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
        )

    return run


@pytest.fixture
def filled(db: Database) -> Database:
    """A database in which every query has something to answer."""
    db.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT")
    db.execute("INSERT INTO alicia_conversations (id) SELECT 'ac_' || n FROM GENERATE_SERIES(0, 9) AS n")
    db.execute("""
        INSERT INTO alicia_session_stats (conversation_id, message_count, tool_call_count, session_duration_seconds, created_at)
        SELECT 'ac_' || n % 10, n % 7, n % 3, n * 7, NOW() AT TIME ZONE 'UTC' - n * INTERVAL '31 hours'
        FROM GENERATE_SERIES(1, 60) AS n
    """)
    return db


def metrics(db: Database, name: str, *arguments: str) -> str:
    """What the command line prints; in this process, since so many queries are asked."""
    required = [f"--{param.name}=ac_1".replace("_id", "-id") for param in stats.queries()[name].params if param.default is None]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = runner.main(["query", name, *required, *arguments, "--format", "prometheus", "--database", conninfo_of(db)])
    assert (code, err.getvalue()) == (0, "")
    return out.getvalue()


def samples(text: str) -> dict[str, float]:
    """Each series and its value."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    found = {series: float(value) for series, _, value in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("name", READING)
def test_metrics_of_every_query_are_valid_and_documented(
    filled: Database, name: str, promtool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    text = metrics(filled, name)
    assert samples(text)
    checked = promtool("check", "metrics", given=text)
    # promtool takes a word in a query's name for a unit: busiest_hours.
    told = [line for line in checked.stderr.splitlines() if not re.match(rf"alicia_session_stats_{name}_\w+ use base unit", line)]
    assert (checked.stdout, told) == ("", []), text
    gauges = re.findall(rf"^# TYPE alicia_session_stats_{name}_(\w+) gauge$", text, re.M)
    helps = dict(re.findall(rf"^# HELP alicia_session_stats_{name}_(\w+) (.+)$", text, re.M))
    assert list(helps) == gauges
    assert not any(gauge.endswith(("_minutes", "_hours", "_days", "_pct", "_count")) for gauge in gauges)
    # No id and no time is a label.
    labels = set(re.findall(r'[{,](\w+)="', text))
    assert not {label for label in labels if label in ("id", "bar") or label.endswith("_id")}
    assert "ac_" not in text
    assert not re.search(r'="\d{4}-\d\d', text)


def test_numbers_are_in_base_units_texts_are_labels_and_help_is_the_headers(filled: Database) -> None:
    [expected] = stats.query(filled, "average_session_metrics")
    found = samples(metrics(filled, "average_session_metrics"))
    prefix = "alicia_session_stats_average_session_metrics_avg"
    assert found[f"{prefix}_messages"] == pytest.approx(float(expected["avg_messages"]))
    assert found[f"{prefix}_duration_seconds"] == pytest.approx(float(expected["avg_duration_minutes"]) * 60)

    text = metrics(filled, "usage_change", "--days", "3")
    rows = {row["metric"]: row for row in stats.query(filled, "usage_change", days=3)}
    ratio = samples(text)['alicia_session_stats_usage_change_change_ratio{days="3",metric="messages"}']
    assert ratio == pytest.approx(float(rows["messages"]["change_pct"]) / 100)
    help_line = "# HELP alicia_session_stats_usage_change_change_ratio change in percent of previous_period"
    assert any(line.startswith(help_line) for line in text.splitlines())


def test_two_answers_of_one_query_are_different_series(filled: Database) -> None:
    both = [samples(metrics(filled, "metric_usage", "-v", f"metric={metric}")) for metric in ("memories", "seconds")]
    assert not both[0].keys() & both[1].keys()


def test_rows_without_a_label_of_their_own_are_numbered(filled: Database) -> None:
    found = samples(metrics(filled, "most_active_sessions", "--limit", "3"))
    series = 'alicia_session_stats_most_active_sessions_messages{limit="3",row="%d"}'
    assert [found[series % row] for row in (1, 2, 3)] == [6, 6, 6]


def test_null_has_no_sample_and_an_empty_answer_is_valid(db: Database) -> None:
    assert samples(metrics(db, "average_session_metrics")) == {}
    assert samples(metrics(db, "session_stats")) == {}


def test_verify_is_a_metric_and_exits_with_0(db: Database) -> None:
    database = ("--database", conninfo_of(db))
    assert samples(cli("verify", "--format", "prometheus", *database).stdout) == {"alicia_session_stats_verify_differences": 0}
    db.execute("DROP INDEX idx_session_stats_created_at")
    differs = cli("verify", "--format", "prometheus", *database)
    assert (differs.returncode, differs.stderr) == (0, "")
    assert samples(differs.stdout) == {"alicia_session_stats_verify_differences": 1}


def test_alert_rules_are_valid_and_their_tests_pass(promtool: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for arguments in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_reads_metrics_that_are_written_and_has_a_test(filled: Database) -> None:
    rules, tests = ((MONITORING / name).read_text() for name in ("alerts.yml", "alerts.test.yml"))
    written = cli("verify", "--format", "prometheus", "--database", conninfo_of(filled)).stdout
    for name in READING:
        written += metrics(filled, name)
    names = set(re.findall(r"^# TYPE (\w+)", written, re.M))
    assert set(re.findall(r"\balicia_session_stats_\w+", rules)) <= names
    assert set(re.findall(r"- alert: (\w+)", rules)) == set(re.findall(r"alertname: (\w+)", tests))


def test_recent_activity_compares_with_the_same_time_a_week_ago(db: Database, insert: Callable[..., str]) -> None:
    def at(hours: float) -> str:
        return db.execute("SELECT (NOW() AT TIME ZONE 'UTC' - %s * INTERVAL '1 hour')::TEXT", [hours]).fetchall()[0][0]

    for hours, seconds in ((0.5, 10), (23, 30), (25, 99), (168.5, 4), (191, 8), (193, 99)):
        insert(created_at=at(hours), session_duration_seconds=seconds, tool_call_count=2)
    hour, day = stats.query(db, "recent_activity")
    assert list(hour.values()) == ["hour", 1, 2, 10, 1, 2, 4]
    assert [float(value) if name.startswith("p95") else value for name, value in day.items()] == ["day", 2, 4, 29, 2, 4, 7.8]


def test_sessions_before_counts_what_delete_sessions_before_deletes(db: Database, insert: Callable[..., str]) -> None:
    for created in ("2020-01-01 10:00", "2020-01-02", "-infinity"):
        insert(created_at=created)
    insert()
    [row] = stats.query(db, "delete_sessions_before", days=100, batch=1)
    assert row == {"deleted": 1, "more_remain": True}  # The one at -infinity, which no datetime can hold.
    [found] = stats.query(db, "sessions_before", days=100)
    assert [str(value) for value in found.values()] == ["2", "66.67", "2020-01-01 10:00:00", "2020-01-02 00:00:00"]
    [row] = stats.query(db, "delete_sessions_before", days=100)
    assert row["deleted"] == found["sessions"]
    assert stats.query(db, "sessions_before", days=100) == [{"sessions": 0, "share_pct": 0, "oldest": None, "newest": None}]


def test_the_pages_script_writes_valid_files_and_keeps_the_old_one_on_failure(
    filled: Database, tmp_path: Path, promtool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    [script] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
    program = tmp_path / "bin" / "alicia-session-stats"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "runner.py"}" "$@"\n')
    program.chmod(0o755)
    folder = tmp_path / "metrics"
    folder.mkdir()

    def run(conninfo: str) -> str:
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "DATABASE_URL": conninfo}
        command = ["sh", "-c", script, "metrics.sh", str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stderr

    assert run(conninfo_of(filled)) == ""
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(written) == re.findall(r"^write (\S+)", script, re.M)
    checked = promtool("check", "metrics", given="".join(written.values()))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "cannot connect" in run("host=/nonexistent")
    assert {path.name: path.read_text() for path in folder.glob("*.prom")} == written


def test_the_pages_dashboard_queries_run_on_the_public_views(filled: Database) -> None:
    over_time, most_active = re.findall(r"^```sql\n(.*?)^```", PAGE, re.S | re.M)
    days = filled.execute(over_time.replace("$__timeFilter(bucket_start)", "bucket_start >= '2020-01-01'").encode()).fetchall()
    assert sum(day[1] for day in days) == 60
    assert len(filled.execute(most_active.encode()).fetchall()) == 10


def test_the_pages_table_has_every_alert() -> None:
    rules = (MONITORING / "alerts.yml").read_text()
    assert re.findall(r"- alert: (\w+)", rules) == re.findall(r"`([A-Z]\w+)`", PAGE.partition("| alert |")[2].partition("##")[0])
