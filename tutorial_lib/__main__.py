"""`python -m tutorial_lib`: is this machine ready? Exit status 1 where something is missing."""

import sys

from tutorial_lib.environment import check_environment

report = check_environment()
print(report)
sys.exit(0 if report.ok else 1)
