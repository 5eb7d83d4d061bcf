"""Where the SQL files are: beside the modules in the wheel, one directory above them in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "migrations").is_dir() else PACKAGE.parent
MIGRATIONS = ROOT / "migrations"
QUERIES = ROOT / "queries"
LIVE = ROOT / "live"
