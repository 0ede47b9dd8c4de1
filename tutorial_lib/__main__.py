"""Checks this machine, or a handler. The exit status is 1 if something is wrong, 2 for a wrong argument."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tutorial_lib import __version__
from tutorial_lib.extras import DISTRIBUTION
from tutorial_lib.machine.environment import EXTRAS, check_environment


def main(arguments: Sequence[str]) -> int:
    """Runs one command; without a command, checks the machine."""
    if arguments[:1] == ["check-handler"]:
        from tutorial_lib.handlers.check_handler import main as check_handler

        return check_handler(arguments)  # which reads its own options
    parser = argparse.ArgumentParser("python -m tutorial_lib", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {__version__}")
    parser.set_defaults(extra=[])
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    machine = "Python, packages, Java, GPU, ports and disk of this machine (also without a command)"
    check = commands.add_parser("check-machine", help=machine, description=machine, allow_abbrev=False)
    check.add_argument(
        "--extra", action="append", choices=EXTRAS, help="an extra that must be installed; may be repeated"
    )
    commands.add_parser("check-handler", help="a handler, without a server (check-handler --help says how)")
    report = check_environment(parser.parse_args(arguments).extra or [])
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
