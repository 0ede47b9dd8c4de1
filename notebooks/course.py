"""What every chapter begins with: `import course`.

Chapters work in the course's folder, with the programs of this Python's environment (torchserve,
torch-model-archiver) on PATH, and without progress bars that last a second.
"""

import logging as python_logging
import os
import sys
from pathlib import Path

from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "notebooks"))  # for exercises: it was on the path as "", the folder just left
Path("build").mkdir(exist_ok=True)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
logging.disable_progress_bar()
python_logging.getLogger("ts.torch_handler.base_handler").setLevel("ERROR")  # "OpenVINO is not enabled"


def without_root(text: object) -> str:
    """Text with paths relative to the course, so that outputs look the same on every machine."""
    return str(text).replace(f"{ROOT}{os.sep}", "")
