"""Gathers and checks the files of a model archive, before the archiver packs them."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypedDict

import yaml

from tutorial_lib.archives import code as archive_code
from tutorial_lib.archives import loading as archive_loads
from tutorial_lib.archives import weights as archive_weights
from tutorial_lib.archives.copying import files_below, is_left_out, warn_about_left_out
from tutorial_lib.archives.settings import check_settings
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
# Field of ModelFiles → key of the manifest.
_KEYS: dict[Literal["handler", "model_file", "serialized_file", "config_file", "requirements_file"], str] = {
    "handler": "handler",
    "model_file": "modelFile",
    "serialized_file": "serializedFile",
    "config_file": "configFile",
    "requirements_file": "requirementsFile",
}
_FETCH_THEIR_MODEL = ("vllm_handler", "trt_llm_handler")  # from a path in the model config
_TOP_CLASSES = 5  # image_classifier answers with this many, and fails on a model with fewer


class FilesAroundHandler(TypedDict, total=False):
    """The fields of `ModelFiles` but for the handler, as keywords."""

    model_dir: str | Path | None
    model_file: str | Path | None
    serialized_file: str | Path | None
    extra_files: Sequence[str | Path]
    config_file: str | Path | None
    requirements_file: str | Path | None


class FileKeywords(FilesAroundHandler, total=False):
    """The fields of `ModelFiles`, as keywords."""

    handler: str | Path | None


@dataclass(frozen=True)
class ModelFiles:
    """A handler, a model and the files around them: what goes into an archive.

    A model is a folder from `export_model`, or your own: weights with the Python file that defines their
    class, TorchScript, or any file that the handler loads itself. `build_archive`, `run_handler`,
    `check_handler` and `TorchServe.redeploy` take a ModelFiles, or its fields as keywords.

    Attributes:
        handler: a Python file, or the name of one of TorchServe's own handlers ("image_classifier").
        model_dir: a folder from `export_model`: model.safetensors becomes the serialized file, all other
            files and folders become extra files. None for another kind of model, or for no model.
        model_file: the Python file that defines the model's class, and no other class. TorchServe's
            BaseHandler calls the class without arguments and loads the serialized file into it.
        serialized_file: with a model file, its state_dict; else TorchScript (.pt), or what the handler's
            own `initialize` loads (.pt2, .onnx, …).
        extra_files: more files to put in, as index_to_name.json. A folder keeps its name in the archive, so
            that the handler can import a package. What a folder (or model_dir) should not carry along stays
            out, with a warning that names it: files with a leading dot (.env, .git), key files (.pem,
            id_rsa), editors' copies, and links that lead out of the folder, but not a link in model_dir to a
            file, nor the links of the Hugging Face cache. Such a file is packed if it is named here.
        config_file: per-model settings (YAML): workers, batching, the handler's own options.
        requirements_file: pip requirements; TorchServe ignores them unless its config says
            install_py_dep_per_model=true.

    >>> ModelFiles("price_handler.py", model_file="price_model.py", serialized_file="weights.pt").handler
    'price_handler.py'
    """

    handler: str | Path
    model_dir: str | Path | None = None
    model_file: str | Path | None = None
    serialized_file: str | Path | None = None
    extra_files: Sequence[str | Path] = ()
    config_file: str | Path | None = None
    requirements_file: str | Path | None = None

    @classmethod
    def of(cls, files: str | Path | ModelFiles | None, keywords: FilesAroundHandler) -> ModelFiles:
        """Returns the files that a caller gave: as one ModelFiles, or as keywords; a path is the handler.

        Raises:
            TypeError: both were given, or no handler.
        """
        if not isinstance(files, cls):
            given: Mapping[str, Any] = keywords if files is None else {"handler": files, **keywords}
            return cls(**given)
        if both := [name for name, value in keywords.items() if value]:
            raise TypeError(
                f"Both a ModelFiles and {', '.join(both)} were given. Put them into the ModelFiles: "
                "dataclasses.replace(files, …)."
            )
        return files


@dataclass(frozen=True)
class Inputs:
    """The files of one archive, each found.

    Attributes:
        handler: the path of a Python file, or the name of one of TorchServe's own handlers.
        model_dir: the folder that weights and extra files were taken from, if any.
        model_file: the Python file with the model's class.
        serialized_file: the weights.
        extra_files: files and folders.
        config_file: the model config (YAML).
        requirements_file: pip requirements.
        weights_name: the name of the weights in the archive; None for the file's own.
    """

    handler: str
    model_dir: Path | None
    model_file: Path | None
    serialized_file: Path | None
    extra_files: tuple[Path, ...]
    config_file: Path | None
    requirements_file: Path | None
    weights_name: str | None = None

    @property
    def files(self) -> list[Path]:
        """Every file and folder that the archive will hold."""
        handler = Path(self.handler) if self.handler.endswith(".py") else None
        single = (handler, self.model_file, self.serialized_file, self.config_file, self.requirements_file)
        return [*self.extra_files, *(file for file in single if file is not None)]

    def name(self, file: Path) -> str:
        """Returns the name of one of `files` in the archive."""
        return self.weights_name or file.name if file == self.serialized_file else file.name

    @cached_property
    def code(self) -> str:
        """The text of the Python files at the archive's top."""
        sources = [file for file in self.files if file.suffix == ".py"]
        return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in sources)


def gather(files: ModelFiles) -> Inputs:
    """Gathers the files of an archive, and checks that each exists and has a name of its own.

    Raises:
        ArchiveError: a file is missing, two have one name, or a field is no path.

    >>> gather(ModelFiles("handler.py", extra_files=["index_to_name.json"])).extra_files
    (PosixPath('index_to_name.json'),)
    """
    extra_files = files.extra_files
    if not isinstance(extra_files, Sequence) or isinstance(extra_files, str):
        shown = str(extra_files) if isinstance(extra_files, Path) else extra_files
        raise ArchiveError(f"extra_files is {shown!r:.100}. Give a list of paths.")
    if None in extra_files:
        raise ArchiveError("extra_files has None. Give paths.")
    weights = check_path("serialized_file", files.serialized_file)
    extras = [check_path("extra_files", file) for file in extra_files]
    folder = check_path("model_dir", files.model_dir)
    if folder is not None:
        if not folder.is_dir():
            raise ArchiveError(f"There is no model folder {folder}. Make it with export_model.")
        _check_no_adapter(folder)
        # A link to a file may lead anywhere: weights are large, and often lie elsewhere.
        exported = sorted(
            file for file in folder.iterdir() if not is_left_out(file, None if file.is_file() else folder)
        )
        own_weights = next((file for file in exported if file.name == "model.safetensors"), None)
        if own_weights and weights:
            raise ArchiveError(
                f"Both {own_weights} and serialized_file={str(weights)!r} are weights. Leave one of them out."
            )
        weights = weights or own_weights
        extras = [*(file for file in exported if file not in (own_weights, weights)), *extras]
    inputs = Inputs(
        _check_handler(files.handler),
        folder,
        check_path("model_file", files.model_file),
        weights,
        tuple(file for file in extras if file is not None),
        check_path("config_file", files.config_file),
        check_path("requirements_file", files.requirements_file),
    )
    _check_files(inputs)
    return inputs


def edits_of(files: ModelFiles | None, keywords: FileKeywords) -> FileKeywords:
    """Returns the files that replace those of an earlier version; a file that is not there stays."""
    if files is None:
        if keywords.get("model_dir"):
            raise TypeError("model_dir names a whole model. Give it in a ModelFiles, with the handler.")
        return keywords
    inputs = gather(ModelFiles.of(files, keywords))
    return {
        "handler": inputs.handler,
        "model_file": inputs.model_file,
        "serialized_file": inputs.serialized_file,
        "extra_files": inputs.extra_files,
        "config_file": inputs.config_file,
        "requirements_file": inputs.requirements_file,
    }


def gather_version(source: Path, model: Mapping[str, Any], edits: FileKeywords) -> Inputs:
    """Gathers the files of a new version: those of an unpacked archive, and edited ones in place of the old.

    Weights take the place of the old weights, and their name too if both are of one format: a handler that
    loads model.safetensors loads the new weights.

    Args:
        source: the unpacked archive.
        model: the "model" of its manifest.
        edits: the edited files.

    Raises:
        ArchiveError: a file is missing, or a field is no path.
    """
    given = {key: edits.get(field) for field, key in _KEYS.items()}
    edited = {key: path for key, file in given.items() if (path := check_path(key, file)) is not None}
    extra_files = edits.get("extra_files", ())
    extras = [path for file in extra_files if (path := check_path("extra_files", file)) is not None]
    kept = {file.name: file for file in source.iterdir() if file.name not in ("MAR-INF", "__pycache__")}
    weights_name = None
    if weights := edited.get("serializedFile"):
        old = kept.pop(model.get("serializedFile", ""), None)
        shards = [name for name in kept if archive_weights.is_shard(name)]
        kept = {name: file for name, file in kept.items() if name not in shards}
        whole = old.name if old else "model.safetensors" if shards else weights.name
        weights_name = whole if weights.suffix == Path(whole).suffix else None
    handler = str(edited.get("handler") or kept.get(model["handler"], model["handler"]))
    single = {
        key: edited.get(key) or kept.get(model.get(key, "")) for key in _KEYS.values() if key != "handler"
    }
    new = {file.name for file in (*edited.values(), *extras)} | {weights_name}
    used = {Path(handler), *single.values()}
    extras += [file for name, file in kept.items() if name not in new and file not in used]
    inputs = Inputs(
        handler,
        None,
        single["modelFile"],
        single["serializedFile"],
        tuple(extras),
        single["configFile"],
        single["requirementsFile"],
        weights_name,
    )
    _check_files(inputs)
    if "handler" in edited:
        _check_handler(handler)
    return inputs


def check(inputs: Inputs) -> None:
    """Checks the files' content for what would make the server fail later, as far as it can be seen here.

    Raises:
        ArchiveError: a file is not what it should be, or does not fit another one.
    """
    if inputs.model_dir is not None:
        _check_model_dir(inputs, inputs.model_dir)
    for file in (inputs.serialized_file, *inputs.extra_files):
        if file is not None and file.suffix == ".safetensors":
            archive_weights.check_safetensors(file)
    archive_weights.check_fresh(inputs.files, inputs.serialized_file)
    if inputs.model_file is not None:
        archive_code.check_model_file(inputs.model_file)
    if inputs.handler.endswith(".py"):
        archive_code.check_handler_file(Path(inputs.handler))
    archive_code.check_imports(inputs.files)
    if inputs.config_file is not None:
        _check_yaml(inputs.config_file, inputs.code)
    labels = next((file for file in inputs.extra_files if file.name == "index_to_name.json"), None)
    classes = _check_labels(labels, _model_folder(inputs)) if labels is not None else None
    _check_weights_name(inputs)
    if inputs.handler in _BUILT_IN:
        _check_built_in(inputs, classes)


def check_loads(folder: Path, inputs: Inputs) -> None:
    """Loads an unpacked archive once, in a process of its own, if TorchServe's own code loads the model.

    A handler with its own `initialize` is not run here: `tutorial_lib.testing.check_handler` runs it.

    Args:
        folder: the unpacked archive.
        inputs: the files that it was made of.

    Raises:
        ArchiveError: the model does not load.
    """
    weights, model_file = inputs.serialized_file, inputs.model_file
    if weights is None or not loads_with_torchserve(inputs.handler):
        return
    name, built_in = model_file.name if model_file else None, inputs.handler in _BUILT_IN
    try:
        archive_loads.check_loads(folder, weights.name, name, "" if built_in else inputs.code)
    except ArchiveError:
        if not built_in and (weights.suffix != ".pt" or zipfile.is_zipfile(weights)):  # it is complete
            _check_weights_of_built_in("BaseHandler", weights, model_file)
        raise


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


def _check_files(inputs: Inputs) -> None:
    """Checks that files can be read, and that no name is taken: by another file, since the archiver packs one
    flat folder, or by a module that a worker imports, since it looks in that folder first.
    """
    first: dict[str, Path] = {}
    left_out = [*(inputs.model_dir.iterdir() if inputs.model_dir else ())]
    for file in inputs.files:
        name = inputs.name(file)
        for _ in files_below(file, name, left_out):
            pass  # raises an error for what can't be read
        if file.is_dir() and name.startswith("."):
            raise ArchiveError(f"torch-model-archiver packs no folder with a leading dot. Rename {file}.")
        if name in first:
            raise ArchiveError(
                f"{first[name]} and {file} have the same name, and an archive is one flat "
                "folder. Rename one of them."
            )
        first[name] = file
        archive_code.check_taken(file)
    named = [file.absolute() for file in inputs.files]
    warn_about_left_out(path for path in left_out if path.absolute() not in named)


def _check_no_adapter(folder: Path) -> None:
    file = folder / "adapter_config.json"
    if file.is_file():
        base = _read_json(file).get("base_model_name_or_path") or "its base model"
        raise ArchiveError(
            f"{folder} holds a LoRA adapter (adapter_config.json), not a whole model: it changes the weights "
            f"of {base}. Merge both: PeftModel.from_pretrained(base_model, adapter).merge_and_unload(); then "
            "save the result and its tokenizer with save_pretrained, and give the folder of the result."
        )


def _check_model_dir(inputs: Inputs, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ArchiveError(f"There is no config.json in {folder}. Name a folder that export_model wrote.")
    config = _read_json(folder / "config.json")
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and not _is_known_to_transformers(config.get("model_type")):
        modules = {str(name).partition(".")[0].rpartition("--")[2] for name in auto_map.values()}
        if inputs.model_file is None and not any(
            word in inputs.code for word in ("trust_remote_code", *modules)
        ):
            raise ArchiveError(
                f"{folder} holds a model with Python code of its own (auto_map in config.json), which "
                "transformers runs only with trust_remote_code=True; that is never done here. Read the code, "
                "and pack the file of its class as model_file=, with a handler that makes the class itself."
            )
    archive_weights.check_one_model(folder, inputs.serialized_file)


def _is_known_to_transformers(model_type: Any) -> bool:
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return False
    return model_type in CONFIG_MAPPING_NAMES


def _check_weights_name(inputs: Inputs) -> None:
    """Checks that transformers finds the weights, if the handler leaves it to transformers to find them."""
    weights, names = inputs.serialized_file, {inputs.name(file) for file in inputs.files}
    if weights is None or "config.json" not in names or inputs.name(weights) == "model.safetensors":
        return
    code = inputs.code
    left_to_transformers = re.search(r"AutoModel\w*\s*\.\s*from_pretrained\(", code)
    if (
        left_to_transformers
        and weights.suffix == ".safetensors"
        and not re.search(rf"serializedFile|load_file|load_model|{re.escape(weights.name)}", code)
    ):
        raise ArchiveError(
            f"The handler loads the model with from_pretrained, which looks for model.safetensors, not for "
            f"{weights.name}. Rename {weights}."
        )


def _model_folder(inputs: Inputs) -> Path | None:
    """Returns the folder with the config.json of transformers; None if there is none."""
    config = next((file for file in inputs.extra_files if file.name == "config.json"), None)
    if inputs.model_dir or (config and "model_type" in _read_json(config)):
        return inputs.model_dir or (config.parent if config else None)
    return None


def _read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if there is none: what reads the file reports that."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_yaml(file: Path, code: str) -> None:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{file} is not YAML: {error}. Fix it first.") from error
    if not isinstance(settings, dict):
        raise ArchiveError(f"{file} has no settings (key: value). Fix it, or leave it out.")
    check_settings(settings, str(file), code)


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
    if not archive_loads.is_torchscript(weights):
        raise ArchiveError(
            f"{weights.name} holds weights without their architecture. Give the model's class too, as "
            "model_file=, or save the model as TorchScript: torch.jit.script(model).save('model.pt')."
        )


def loads_with_torchserve(handler: str) -> bool:
    if handler in _BUILT_IN:
        return handler not in _FETCH_THEIR_MODEL
    source = Path(handler).read_text(encoding="utf-8", errors="replace")
    own = re.search(r"def (initialize|_load_\w+)\b|^(async )?def handle\b", source, re.MULTILINE)
    return "ts.torch_handler" in source and own is None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the module's package is not installed
        return False
