"""A sample of what `make chaos` does to every statement: kill the runner there, run it again, look."""

import subprocess
import sys

import pytest
from conftest import EMBEDDED, ROOT


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED, reason="the proxy stands before the embedded server")
def test_a_migration_killed_at_any_statement_is_finished_by_the_next_run() -> None:
    command = [sys.executable, "-m", "bench.chaos", "--every", "23", "--without-yoyo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout
    assert "healed by the next run" in result.stdout
