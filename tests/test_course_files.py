"""course_file: what the course ships beside the library."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tutorial_lib import course_file


@pytest.mark.parametrize(
    "name",
    [
        *("handler.py", "index_to_name.json", "model-config.yaml", "sample_input.json", "metrics.yaml"),
        *("constraints.txt", "deploy/image", "deploy/image/Dockerfile"),
    ],
)
def test_in_a_checkout_it_is_the_checkouts_own(name: str) -> None:
    assert course_file(name) == ROOT / name


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'handlers\.py'\. It has handler\.py"):
        course_file("handlers.py")
