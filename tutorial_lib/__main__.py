"""`python -m tutorial_lib` checks this machine, `python -m tutorial_lib check-handler` checks a handler.

The exit status is 1 if something is missing or wrong.
"""

import sys

from tutorial_lib.environment import check_environment

if sys.argv[1:2] == ["check-handler"]:
    from tutorial_lib.handler_report import main

    sys.exit(main(sys.argv[1:]))
report = check_environment()
print(report)
sys.exit(0 if report.ok else 1)
