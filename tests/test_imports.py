"""What `import tutorial_lib` costs: names are loaded when they are first used, and bring nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tutorial_lib
from tutorial_lib import testing

HEAVY = ("torch", "numpy", "pandas", "transformers", "pytest", "safetensors", "ray", "matplotlib")


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh Python has after this code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize(
    "code",
    [
        "import tutorial_lib",
        "from tutorial_lib import InferenceClient, ManagementClient, MetricsClient",
        "from tutorial_lib import ApiError, TutorialError, WorkerFailed",
        "from tutorial_lib import TorchServe",
        "from tutorial_lib import Container, Image, find_engine",
        "from tutorial_lib import archive_sha256, build_archive, read_manifest",
        "from tutorial_lib.testing import run_handler",
    ],
)
def test_what_serves_and_asks_brings_nothing_heavy(code: str) -> None:
    assert not loaded(code) & set(HEAVY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_star_import_brings_no_framework_and_a_child_of_it_ends() -> None:
    """ONNX Runtime's threads, once loaded, keep a forked child from ending."""
    assert not loaded("from tutorial_lib import *") & {"torch", "transformers", "onnxruntime", "pandas"}
    code = "from tutorial_lib import *; import os\nif not os.fork(): raise SystemExit\nos.wait()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_client_is_imported_in_three_times_what_requests_takes() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [
        (seconds("from tutorial_lib import InferenceClient"), seconds("import requests")) for _ in range(7)
    ]
    ours, requests = (min(times) for times in zip(*pairs, strict=True))
    assert ours <= 3 * requests


def test_the_plugin_brings_nothing_into_a_project_that_does_not_use_it(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\n\ndef test_own():\n"
        "    ours = {name for name in sys.modules if name.startswith('tutorial_lib')}\n"
        "    assert ours == {'tutorial_lib', 'tutorial_lib.pytest_plugin'}\n"
        f"    assert not set(sys.modules) & {set(HEAVY) - {'pytest'} | {'requests', 'psutil', 'yaml'}}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_public_name_loads_and_is_listed() -> None:
    for name in tutorial_lib.__all__:
        assert getattr(tutorial_lib, name).__name__ == name
        assert name in dir(tutorial_lib)
    assert tutorial_lib.__all__ == sorted(tutorial_lib.__all__)
    with pytest.raises(AttributeError, match="attribute TorchServer"):
        _ = tutorial_lib.TorchServer  # type: ignore[attr-defined]


def test_no_module_has_a_public_names_name() -> None:
    """Else `from tutorial_lib import it` gives the module, and the call fails with "not callable"."""
    files = Path(tutorial_lib.__file__).parent.glob("*.py")
    assert not {*tutorial_lib.__all__, *testing.__all__} & {file.stem for file in files}
