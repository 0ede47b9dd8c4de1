"""Loads an archive's model once before it is packed, in a process of its own, as TorchServe's code will."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tutorial_lib.errors import ArchiveError

# Error messages of torch, as regular expressions, and what to do about them; the first that is found wins.
_FIXES = {
    r"Unexpected key.*?\"module\.": "The keys begin with 'module.', as DataParallel and DDP name them. Save "
    "torch.save(model.module.state_dict(), …).",
    r"Unexpected key.*?\"_orig_mod\.": "The keys begin with '_orig_mod.', as torch.compile names them. Save "
    "torch.save(model._orig_mod.state_dict(), …).",
    r"Unexpected key.*?\"(model_?)?state_dict\"": "It is a training checkpoint. Save the model's own part: "
    "torch.save(checkpoint['state_dict'], …), under the key that it has there.",
    r"Weights only load failed|has no attribute 'copy'|to be dict-like": "It holds more than tensors, as a "
    "whole pickled model does. Save torch.save(model.state_dict(), …).",
    r"Unexpected key": "Was it saved from this class, as torch.save(model.state_dict(), …)?",
}
# What may convert a tensor to another type in a handler's code.
_CONVERTS = r"float16|half\(|float64|double\(|\.dtype|autocast|type_as"


def check_loads(folder: Path, serialized_file: str, model_file: str | None, source: str) -> None:
    """Loads an unpacked archive once, and checks that the model takes what handlers give: float32.

    Args:
        folder: the unpacked archive; its own code may write there.
        serialized_file, model_file: the names of the weights and of the file of the model's class.
        source: the handler's Python code; "" for one of TorchServe's own handlers.

    Raises:
        ArchiveError: the model does not load, or has another type of numbers.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tutorial_lib.archives.loading", serialized_file],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    into = f" into the class of {model_file}" if model_file else ""
    if run.returncode == 0:
        found = json.loads(run.stdout.splitlines()[-1])
        if found["whole"]:
            _check_script_type(serialized_file, found["types"], source)
        elif found["types"] and not any("float" in name for name in found["types"]):
            raise ArchiveError(
                f"{serialized_file} has no floating-point numbers, only {', '.join(found['types'])}: loaded"
                f"{into}, quantized weights would be taken for the values themselves. Save the model before "
                "it is quantized, or save the quantized model as TorchScript."
            )
        return
    cause = _last_error(run.stderr)
    if source and cause.startswith("ModuleNotFoundError"):
        return  # the server may have packages that are not here
    fix = next((fix for sign, fix in _FIXES.items() if re.search(sign, run.stderr, re.DOTALL)), "")
    if model_file is None:
        fix = "Was it saved as torch.jit.script(model).save(…), with this version of torch?"
    raise ArchiveError(f"TorchServe can't load {serialized_file}{into}: {cause} {fix}".rstrip())


def _check_script_type(name: str, types: list[str], source: str) -> None:
    """Checks that TorchScript computes in float32: its weights keep their type, and requests are float32."""
    floats = [kind for kind in types if "float" in kind]
    if floats and "float32" not in floats and not re.search(_CONVERTS, source):
        raise ArchiveError(
            f"The weights of {name} are {floats[0]}, and the handler never converts its input to that type, "
            f"so each request would fail. Convert it in preprocess(), as tensor.to(torch.{floats[0]}), or "
            "save the model in float32: torch.jit.script(model.float()).save(…)."
        )


def is_torchscript(file: Path) -> bool:
    """Returns whether a file is a model saved by torch.jit.save."""
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(file) as content:
        return any(name.endswith("/constants.pkl") for name in content.namelist())
    return False


def _last_error(stderr: str) -> str:
    """Returns the last exception of a program's output, on one line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    start = max(
        (i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), default=-1
    )
    text = " ".join(line.strip() for line in lines[start:]) or "no reason was given"
    return re.sub(r"\x1b\[\d*m", "", text)[:500].rstrip(".") + "."


def _load(serialized_file: str) -> None:
    """Loads the unpacked archive in the working directory, and prints the types of its weights."""
    import torch

    from tutorial_lib.worker import contract as worker

    worker.load_service(Path(), "model")
    whole, weights = is_torchscript(Path(serialized_file)), []
    if whole:
        script = torch.jit.load(serialized_file, map_location="cpu")  # type: ignore[no-untyped-call]
        # A model of words takes whole numbers, and one that converts its input takes any type.
        if not re.search(r"aten::(embedding|to)\b", str(script.inlined_graph)):
            weights = [*script.parameters(), *script.buffers()]
    elif zipfile.is_zipfile(serialized_file):
        state = torch.load(serialized_file, map_location="meta")
        weights = [value for value in state.values() if isinstance(value, torch.Tensor)]
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    print(json.dumps({"whole": whole, "types": types}))


if __name__ == "__main__":
    _load(sys.argv[1])
