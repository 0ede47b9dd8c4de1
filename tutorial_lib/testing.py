"""Tests handlers without a server: `run_handler` runs one batch, `check_handler` runs all checks."""

from tutorial_lib.handlers.bodies import Request
from tutorial_lib.handlers.check_handler import HandlerReport, check_handler
from tutorial_lib.handlers.run_handler import HandlerAnswer, run_handler

__all__ = ["HandlerAnswer", "HandlerReport", "Request", "check_handler", "run_handler"]
