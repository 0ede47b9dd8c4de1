"""What every chapter begins with: `import course`.

Chapters work in the course's folder, with the programs of this Python's environment (torchserve,
torch-model-archiver) on PATH, and without progress bars that last a second. A download keeps its bar.
"""

import logging as python_logging
import os
import sys
from pathlib import Path

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "notebooks"))  # for exercises: it was on the path as "", the folder just left
Path("build").mkdir(exist_ok=True)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
hub_shows_bars = not are_progress_bars_disabled()
logging.disable_progress_bar()  # the hub's too, which may have 540 MB to fetch
if hub_shows_bars:
    enable_progress_bars()
python_logging.getLogger("ts.torch_handler.base_handler").setLevel("ERROR")  # "OpenVINO is not enabled"


def without_root(text: object) -> str:
    """Text with paths relative to the course, so that outputs look the same on every machine."""
    return str(text).replace(f"{ROOT}{os.sep}", "")


def measured(holds: object, claim: str) -> None:
    """Says so where a measurement goes against what the chapter claims.

    That is no error: other programs may have had the cores. The outputs that are committed hold every
    claim; a test sees to it.
    """
    if not holds:
        print(f"Not so in this run: {claim}. Is the machine busy? Run it again when it is not.")
