"""Sets up the kernel of a chapter: every chapter begins with `import course`.

Chapters work in the course's folder, with the programs of this Python's environment (torchserve,
torch-model-archiver) on PATH. Code that only chapters share is in this package, once: a raw server and free
ports (`servers`), events in TorchServe's logs (`logs`), a model's label map (`labels`), folders, the exported
model and its archive (`files`), cells that can run again (`reruns`), exercises, sample tweets (`texts`).

With COURSE_QUICK=1 in the environment, which `make test` sets, measurements are short, and chapter 06 builds
no image. A chapter's assertions stay the same.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
from pathlib import Path

from course.files import course_archive, exported_model, new_folder, sample_request
from course.labels import label_map
from course.measuring import measured, quick, seconds, spare_the_machine, times
from course.reruns import forget, watch_cells
from course.waiting import changes, wait_until

__all__ = [
    "ROOT",
    "changes",
    "course_archive",
    "exported_model",
    "forget",
    "label_map",
    "measured",
    "new_folder",
    "quick",
    "sample_request",
    "seconds",
    "times",
    "wait_until",
    "without_ports",
    "without_root",
    "wrapped",
]

ROOT = Path(__file__).resolve().parents[2]


def set_up() -> None:
    """Moves a chapter's kernel into the course's folder, and puts the environment's programs on PATH."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "notebooks"))  # chdir removed this folder (as "") from the path
    Path("build").mkdir(exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A download shows its progress bar; loading weights for a second does not.
    os.environ.setdefault("TQDM_DELAY", "5")
    if quick:
        spare_the_machine()
    logging.getLogger("ts.torch_handler.base_handler").setLevel("ERROR")  # hides "OpenVINO is not enabled"
    watch_cells()


def without_root(text: object) -> str:
    """Returns text with paths relative to the course, so that outputs look the same on every machine.

    >>> without_root(f"in {ROOT}/build")
    'in build'
    """
    return str(text).replace(f"{ROOT}{os.sep}", "")


def without_ports(text: object) -> str:
    """Returns text without the numbers of loopback's ports, which differ from run to run.

    >>> without_ports("http://127.0.0.1:8080/ping")
    'http://127.0.0.1:…/ping'
    """
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:…", str(text))


def wrapped(text: object) -> str:
    """Returns text in lines of at most 100 characters, so that a long message fits.

    >>> len(wrapped("word " * 50).splitlines())
    3
    """
    return textwrap.fill(str(text), 100, break_long_words=False, break_on_hyphens=False)


if "ipykernel" in sys.modules:  # tests import this package too, and keep their folder
    set_up()
