"""Tests of handlers without a server; `tutorial_lib.testing` is the door."""
