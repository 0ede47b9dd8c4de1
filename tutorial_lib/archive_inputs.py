"""Gathers and checks the files of a model archive, before the archiver packs them."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from tutorial_lib.errors import ArchiveError

_IMAGES = {"captum": "captum", "PIL": "pillow", "torchvision": "torchvision"}
# TorchServe's own handlers that the archiver takes by name, with the imports of each that TorchServe does not
# install: module → the package to install.
_BUILT_IN: dict[str, dict[str, str]] = {
    "base_handler": {},
    "text_classifier": {"captum": "captum"},
    "image_classifier": _IMAGES,
    "image_segmenter": _IMAGES,
    "object_detector": _IMAGES,
    "dali_image_classifier": {"nvidia.dali": "nvidia-dali-cuda120"},
    "vllm_handler": {"vllm": "vllm"},
    "trt_llm_handler": {"tensorrt_llm": "tensorrt-llm", "transformers": "transformers"},
}
# What a worker imports beside the standard library, before it imports the handler.
_IMPORTED_BY_WORKERS = (
    "numpy",
    "psutil",
    "pynvml",
    "torch",
    "torchgen",
    "tqdm",
    "ts",
    "typing_extensions",
    "yaml",
)
_WHOLE_NUMBERS = (
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
)
_FETCH_THEIR_MODEL = ("vllm_handler", "trt_llm_handler")  # from a path in the model config
_TOP_CLASSES = 5  # image_classifier answers with this many, and fails on a model with fewer


@dataclass(frozen=True)
class Inputs:
    """The files of one archive.

    Attributes:
        handler: the path of a Python file, or the name of one of TorchServe's own handlers.
        model_dir: the folder that weights and extra files were taken from, if any.
        model_file: the Python file with the model's class.
        serialized_file: the weights.
        extra_files: files and folders.
        config_file: the model config (YAML).
        requirements_file: pip requirements.
    """

    handler: str
    model_dir: Path | None
    model_file: Path | None
    serialized_file: Path | None
    extra_files: tuple[Path, ...]
    config_file: Path | None
    requirements_file: Path | None

    @property
    def files(self) -> list[Path]:
        """Every file and folder that the archive will hold."""
        handler = None if self.handler in _BUILT_IN else Path(self.handler)
        single = (handler, self.model_file, self.serialized_file, self.config_file, self.requirements_file)
        return [*self.extra_files, *(file for file in single if file is not None)]


def gather(
    handler: str | Path,
    *,
    model_dir: str | Path | None = None,
    model_file: str | Path | None = None,
    serialized_file: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    config_file: str | Path | None = None,
    requirements_file: str | Path | None = None,
) -> Inputs:
    """Gathers the files of an archive, and checks that each exists and has a name of its own.

    Args:
        handler, model_dir, model_file, serialized_file, extra_files, config_file, requirements_file: as for
            `build_archive`. The weights of `model_dir`, model.safetensors, become the serialized file.

    Raises:
        ArchiveError: a file is missing, two have one name, or an argument is no path.

    >>> gather("handler.py", extra_files=["index_to_name.json"]).extra_files
    (PosixPath('index_to_name.json'),)
    >>> gather("image_clasifier")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: There is no handler 'image_clasifier'. Give the path of a Python file...
    """
    if not isinstance(extra_files, Sequence) or isinstance(extra_files, str):
        shown = str(extra_files) if isinstance(extra_files, Path) else extra_files
        raise ArchiveError(f"extra_files is {shown!r:.100}. Give a list of paths.")
    if None in extra_files:
        raise ArchiveError("extra_files has None. Give paths.")
    weights = check_path("serialized_file", serialized_file)
    extras = [check_path("extra_files", file) for file in extra_files]
    folder = check_path("model_dir", model_dir)
    if folder is not None:
        if not folder.is_dir():
            raise ArchiveError(f"There is no model folder {folder}. Make it with export_model.")
        exported = sorted(file for file in folder.iterdir() if file.is_file())
        own_weights = next((file for file in exported if file.name == "model.safetensors"), None)
        if own_weights and weights:
            raise ArchiveError(
                f"Both {own_weights} and serialized_file={str(weights)!r} are weights. Leave one of them out."
            )
        weights = weights or own_weights
        extras = [*(file for file in exported if file != own_weights), *extras]
    inputs = Inputs(
        _check_handler(handler),
        folder,
        check_path("model_file", model_file),
        weights,
        tuple(file for file in extras if file is not None),
        check_path("config_file", config_file),
        check_path("requirements_file", requirements_file),
    )
    _check_names(inputs.files)
    return inputs


def check(inputs: Inputs) -> None:
    """Checks the files' content for what would make the server fail later, as far as it can be seen here.

    Raises:
        ArchiveError: a file is not what it should be, or does not fit another one.
    """
    if inputs.model_dir is not None:
        _check_model_dir(inputs.model_dir)
    for file in (inputs.serialized_file, *inputs.extra_files):
        if file is not None and file.suffix == ".safetensors":
            _check_safetensors(file)
    if inputs.model_file is not None:
        _check_model_file(inputs.model_file)
    if inputs.config_file is not None:
        _check_yaml(inputs.config_file)
    labels = next((file for file in inputs.extra_files if file.name == "index_to_name.json"), None)
    classes = _check_labels(labels, inputs.model_dir) if labels is not None else None
    if inputs.handler in _BUILT_IN:
        _check_built_in(inputs, classes)


def is_built_in(handler: str | Path) -> bool:
    """Returns whether this is the name of one of TorchServe's own handlers.

    >>> is_built_in("image_classifier"), is_built_in("handler.py")
    (True, False)
    """
    return str(handler) in _BUILT_IN


def missing_packages(handler: str) -> list[str]:
    """Returns the packages, by pip name, that one of TorchServe's own handlers imports and that are missing.

    >>> missing_packages("base_handler"), missing_packages("handler.py")
    ([], [])
    """
    return [package for module, package in _BUILT_IN.get(handler, {}).items() if not _installed(module)]


def read_labels(model_dir: str | Path) -> dict[int, str]:
    """Returns the model's own labels by class index, as transformers reads them from its config.json.

    transformers leaves the labels out if they are its defaults, LABEL_0, LABEL_1.

    Raises:
        ArchiveError: config.json is missing or cut off.

    >>> from tutorial_lib.export import EMBEDDED
    >>> read_labels(EMBEDDED)
    {0: 'NEG', 1: 'NEU', 2: 'POS'}
    """
    file = Path(model_dir) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        labels = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels") or 2)}
        return {int(index): str(label) for index, label in labels.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ArchiveError(f"{file} can't be read: {error}. Export the model again.") from error


def check_loads(folder: Path, inputs: Inputs) -> None:
    """Loads an unpacked archive once, in a process of its own, if TorchServe's own code loads the model.

    A handler with its own `initialize` is not run here: `tutorial_lib.testing.check_handler` runs it.

    Args:
        folder: the unpacked archive.
        inputs: the files that it was made of.

    Raises:
        ArchiveError: the model does not load.
    """
    if inputs.serialized_file is None or not _loads_with_torchserve(inputs.handler):
        return
    code = "import pathlib; from tutorial_lib import worker; worker.load_service(pathlib.Path(), 'model')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    cause = _last_error(run.stderr)
    if run.returncode == 0 or (inputs.handler not in _BUILT_IN and cause.startswith("ModuleNotFoundError")):
        return  # the server may have packages that are not here
    if inputs.serialized_file.suffix != ".pt" or zipfile.is_zipfile(inputs.serialized_file):  # it is complete
        _check_weights_of_built_in("BaseHandler", inputs.serialized_file, inputs.model_file)
    fix = "Was it saved from this class, as torch.save(model.state_dict(), …)?"
    if inputs.model_file is None:
        fix = "Was it saved as torch.jit.script(model).save(…), with this version of torch?"
    raise ArchiveError(
        f"TorchServe can't load {inputs.serialized_file.name}"
        f"{f' into the class of {inputs.model_file.name}' if inputs.model_file else ''}: {cause} {fix}"
    )


def check_path(name: str, value: str | Path | None) -> Path | None:
    """Returns the path that an argument names; one that ends in ".." is made absolute, so that it has a name.

    Raises:
        ArchiveError: the argument is no path.

    >>> check_path("config_file", {"batchSize": 8})
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: config_file is {'batchSize': 8}. Give a path.
    """
    if value is not None and not isinstance(value, str | os.PathLike):
        raise ArchiveError(f"{name} is {value!r:.100}. Give a path.")
    if value is None:
        return None
    return Path(value) if Path(value).name not in ("", "..") else Path(value).resolve()


def _check_handler(handler: str | Path) -> str:
    if not isinstance(handler, str | os.PathLike):
        raise ArchiveError(f"handler is {handler!r:.100}. Give the path of a Python file.")
    name = str(handler)
    if Path(name).suffix.startswith(".py:"):
        raise ArchiveError(
            f"The archiver can't pack {name}: it takes a file, not a function of it. Pass the file, "
            "and call the function handle(data, context), which is the name that TorchServe looks for."
        )
    if name in _BUILT_IN:
        return name
    if Path(name).suffix != ".py":
        raise ArchiveError(
            f"There is no handler {name!r}. Give the path of a Python file, or one of TorchServe's own "
            f"handlers: {', '.join(_BUILT_IN)}."
        )
    if not Path(name).is_file():
        raise ArchiveError(f"There is no handler file {name}. Check the path.")
    return name


def _check_names(files: Sequence[Path]) -> None:
    """Checks that files exist, and that no name is taken: by another file, since the archiver packs one flat
    folder, or by a module that a worker imports, since it looks in that folder first.
    """
    first: dict[str, Path] = {}
    for file in files:
        if not file.exists():
            raise ArchiveError(f"There is no file {file}. Check the path.")
        if file.name in first:
            raise ArchiveError(
                f"{first[file.name]} and {file} have the same name, and an archive is one flat "
                "folder. Rename one of them."
            )
        first[file.name] = file
        if file.suffix == ".py" or (file / "__init__.py").is_file():
            module = file.name.removesuffix(".py")
            if module in sys.stdlib_module_names or module in _IMPORTED_BY_WORKERS:
                raise ArchiveError(
                    f"A worker would import {file} in place of the module {module} that Python and "
                    "TorchServe need themselves. Give it another name."
                )


def _check_model_dir(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ArchiveError(f"There is no config.json in {folder}. Name a folder that export_model wrote.")
    if not any(folder.glob("*.safetensors")):
        raise ArchiveError(
            f"There are no safetensors weights in {folder}. Export the model again: export_model "
            "turns older formats into model.safetensors."
        )


def _check_safetensors(file: Path) -> None:
    """Reads the file's header: its length (8 bytes, little-endian), then JSON with each tensor's place."""
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > size:
                raise ValueError("the header is not whole")
            header = json.loads(content.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        if (expected := 8 + length + max(ends, default=0)) != size:
            raise ValueError(f"the file has {size} bytes, and its header announces {expected}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error) as error:
        raise ArchiveError(
            f"The weights {file} are cut off or not safetensors: {error}. Export the model again."
        ) from error


def _check_yaml(file: Path) -> None:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{file} is not YAML: {error}. Fix it first.") from error
    if not isinstance(config, dict):
        raise ArchiveError(f"{file} has no settings (key: value). Fix it, or leave it out.")
    for key in _WHOLE_NUMBERS:  # TorchServe takes its default for a value that it can't read
        value = config.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArchiveError(f"{file} has {key}: {value!r}. Give a whole number.")
    minimum, maximum = config.get("minWorkers", 0), config.get("maxWorkers", 0)
    if maximum and minimum > maximum:
        raise ArchiveError(f"{file} has minWorkers: {minimum} and maxWorkers: {maximum}. Raise maxWorkers.")


def _check_labels(file: Path, model_dir: Path | None) -> list[str]:
    """Returns the classes of a label map, whose values are texts, or lists with the label as last item."""
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{file} is not JSON: {error}. Fix it first.") from error
    if isinstance(labels, dict) and isinstance(labels.get("object_type_names"), list):
        labels = {str(index): name for index, name in enumerate(labels["object_type_names"])}
    names = (
        [v[-1] if isinstance(v, list) and v else v for v in labels.values()]
        if isinstance(labels, dict)
        else []
    )
    if not names or not all(isinstance(name, str) for name in names):
        raise ArchiveError(
            f'{file} should look like {{"0": "Negative", …}} or {{"0": ["id", "Negative"], …}}.'
        )
    if model_dir is not None:
        wanted = {str(index) for index in read_labels(model_dir)}
        if set(labels) != wanted:
            raise ArchiveError(
                f"{file} names the classes {sorted(labels)}, and the model has {sorted(wanted)}. "
                "Give each class of the model one label."
            )
    return [*labels]


def _check_model_file(file: Path) -> None:
    """Checks that a model file defines one class, which TorchServe can call with no arguments."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ArchiveError(f"The model file {file} is not Python: {error}. Fix it first.") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        found = ", ".join(node.name for node in classes) or "none"
        raise ArchiveError(
            f"The model file {file} must define exactly one class, the model; it defines {found}. Move the "
            "others into a file of their own and add that to extra_files (all of it, if your handler builds "
            "the model itself)."
        )
    if needed := _required_arguments(classes[0]):
        raise ArchiveError(
            f"TorchServe makes the model as {classes[0].name}(), and its __init__ needs {', '.join(needed)}. "
            "Give each a default."
        )


def _required_arguments(node: ast.ClassDef) -> list[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = [argument.arg for argument in (*item.args.posonlyargs, *item.args.args)][1:]
            required = positional[: max(0, len(positional) - len(item.args.defaults))]
            pairs = zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True)
            return [*required, *(argument.arg for argument, default in pairs if default is None)]
    return []


def _check_built_in(inputs: Inputs, classes: Sequence[str] | None) -> None:
    handler = inputs.handler
    if handler not in _FETCH_THEIR_MODEL:
        _check_model_of_built_in(inputs, classes)
    if packages := missing_packages(handler):
        raise ArchiveError(
            f"TorchServe's {handler} imports packages that are not installed: {', '.join(packages)}. "
            f"Install them here and where the model is served: pip install {' '.join(packages)}"
        )


def _check_model_of_built_in(inputs: Inputs, classes: Sequence[str] | None) -> None:
    handler, weights = inputs.handler, inputs.serialized_file
    if weights is None:
        raise ArchiveError(
            f"TorchServe's {handler} needs a model, but none is given. Give serialized_file=, and also "
            "model_file= unless the file is TorchScript."
        )
    _check_weights_of_built_in(handler, weights, inputs.model_file)
    names = {file.name for file in inputs.extra_files}
    if handler == "text_classifier" and "source_vocab.pt" not in names:
        raise ArchiveError(
            "TorchServe's text_classifier needs its vocabulary: add source_vocab.pt to extra_files, a dict "
            "from words and word pairs to numbers, saved with torch.save."
        )
    if handler == "image_classifier" and classes is not None and len(classes) < _TOP_CLASSES:
        raise ArchiveError(
            f"TorchServe's image_classifier answers the {_TOP_CLASSES} likeliest classes, and the label map "
            f"has {len(classes)}. Give handler= a file with a subclass of ImageClassifier that sets topk = "
            f"{len(classes)}."
        )


def _check_weights_of_built_in(handler: str, weights: Path, model_file: Path | None) -> None:
    suffix = weights.suffix
    if suffix == ".onnx":
        raise ArchiveError(
            f"TorchServe's {handler} loads an ONNX file and calls it as a torch module, so requests fail. "
            "Give handler= a file whose inference() calls self.model.run(…)."
        )
    if model_file is not None:
        if suffix == ".safetensors":
            raise ArchiveError(
                f"TorchServe's {handler} loads weights with torch.load, which does not read {weights.name}. "
                "Save them with torch.save(model.state_dict(), 'weights.pt')."
            )
        return
    if suffix == ".so":
        return
    if suffix != ".pt":
        raise ArchiveError(
            f"TorchServe's {handler} loads .pt files, and {weights.name} is none. Save the model as "
            "TorchScript, torch.jit.script(model).save('model.pt'); or give handler= a file whose "
            f"initialize() loads {suffix or 'it'}."
        )
    if not _is_torchscript(weights):
        raise ArchiveError(
            f"{weights.name} holds weights without their architecture. Give the model's class too, as "
            "model_file=, or save the model as TorchScript: torch.jit.script(model).save('model.pt')."
        )


def _is_torchscript(file: Path) -> bool:
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(file) as content:
        return any(name.endswith("/constants.pkl") for name in content.namelist())
    return False


def _loads_with_torchserve(handler: str) -> bool:
    if handler in _BUILT_IN:
        return handler not in _FETCH_THEIR_MODEL
    source = Path(handler).read_text(encoding="utf-8", errors="replace")
    own = re.search(r"def (initialize|_load_\w+)\b|^(async )?def handle\b", source, re.MULTILINE)
    return "ts.torch_handler" in source and own is None


def _last_error(stderr: str) -> str:
    """Returns the last exception of a program's output, on one line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    start = max(
        (i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), default=-1
    )
    text = " ".join(line.strip() for line in lines[start:]) or "no reason was given"
    return text[:500].rstrip(".") + "."


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the module's package is not installed
        return False
