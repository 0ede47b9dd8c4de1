"""What every chapter begins with: `import course`.

Chapters work in the course's folder, with the programs of this Python's environment (torchserve,
torch-model-archiver) on PATH. What only chapters share is in this package, each thing once: a raw server and
free ports (`servers`), events in TorchServe's logs (`logs`), a model's label map (`labels`), exercises,
sample tweets (`texts`).

With COURSE_QUICK=1 in the environment measurements are short: `make test` sets it. What a chapter asserts
stays the same.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from course.labels import label_map
from course.measuring import measured, quick, seconds, times
from course.waiting import wait_until

__all__ = ["ROOT", "label_map", "measured", "quick", "seconds", "times", "wait_until", "without_root"]

ROOT = Path(__file__).resolve().parents[2]


def set_up() -> None:
    """Brings a chapter's kernel into the course's folder, with its programs on PATH."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "notebooks"))  # it was there as "", which chdir made another folder
    Path("build").mkdir(exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A download shows its progress bar; loading weights for a second does not.
    os.environ.setdefault("TQDM_DELAY", "5")
    logging.getLogger("ts.torch_handler.base_handler").setLevel("ERROR")  # "OpenVINO is not enabled"


def without_root(text: object) -> str:
    """Text with paths relative to the course, so that outputs look the same on every machine.

    >>> without_root(f"in {ROOT}/build")
    'in build'
    """
    return str(text).replace(f"{ROOT}{os.sep}", "")


if "ipykernel" in sys.modules:  # tests import this package too, and keep their folder
    set_up()
