"""`python -m alicia_session_stats` in a checkout. In the wheel, runner.py takes the place of this file."""

import sys

from runner import main

if __name__ == "__main__":
    sys.exit(main())
