"""Exports a model and its tokenizer into one folder that `from_pretrained` loads."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutorial_lib.course_files import EMBEDDED as EMBEDDED
from tutorial_lib.errors import ExportError
from tutorial_lib.extras import need

if TYPE_CHECKING:
    import torch

    Answers = tuple[list[list[int]], torch.Tensor]  # token ids of each probe; logits [probes, labels]

# torch and transformers are imported inside the functions, so that importing this module stays cheap.
need("export", "export_model", "torch", "transformers", "huggingface_hub", "safetensors")

# What is fetched of a hub repository beside the weights; TensorFlow weights and training logs are not.
_CONFIG_FILES = ("*.json", "*.txt", "bpe.codes", "*.model")

# Real texts for the round trip: emoji, a mention, a link, contractions, a word in no vocabulary.
PROBES = (
    "I love this phone, best purchase of the year! 😍",
    "@airline my flight is delayed AGAIN and nobody can't tell me why... http://example.com",
    "The meeting is at 10 tomorrow.",
    "don't waste your money, it's terrible 👎",
    "not bad at all, could've been worse :)",
    "Zażółć gęślą jaźń, Straße, 漢字, zzzyxqv",
)

# How to get a text classifier from a folder with such a file; the first pattern that matches counts.
_ADAPTER, _PIPELINE, _EMBEDDINGS = "adapter_config.json", "model_index.json", "modules.json"
_ONNX = "ONNX is a graph without its model: take the folder that the graph was exported from."
_OTHER_FOLDERS = {
    _ADAPTER: "It holds an adapter (LoRA), which is only a part of a model. Load it with peft's "
    "AutoPeftModelForSequenceClassification, save what merge_and_unload() returns into a new folder with "
    "save_pretrained, and the tokenizer too. Then export that folder.",
    _PIPELINE: "It holds a pipeline of diffusers, and no text classifier.",
    _EMBEDDINGS: "It holds a model of sentence-transformers, which gives embeddings: fine-tune its "
    "transformer as a classifier, or serve it with a handler of your own.",
    "*.gguf": "GGUF is llama.cpp's format: take the safetensors version of the model.",
    "*.onnx": _ONNX,
    "onnx/*.onnx": _ONNX,
    "tf_model.h5": "TensorFlow's weights are read by transformers 4, which saves them for PyTorch: "
    "from_pretrained(folder, from_tf=True).save_pretrained(…).",
    "flax_model.msgpack": "Flax's weights are read by transformers 4, which saves them for PyTorch: "
    "from_pretrained(folder, from_flax=True).save_pretrained(…).",
    "tokenizer*": "It holds a tokenizer: save the model into the same folder.",
}

# Tensors that older versions of transformers saved, and that are computed now: masks and positions.
_COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|attn(\.attention)?\.(masked_)?bias)$")


def export_model(model_id: str | Path, out: str | Path, *, revision: str | None = None) -> Path:
    """Writes a text classifier and its tokenizer into the folder `out`, with float32 weights in safetensors.

    The export is written beside `out`, loaded again, and must give the same token ids and logits on real
    texts. Only then it replaces what `out` held. Several processes may export to one folder.

    Args:
        model_id: "embedded" (the small model that comes with this package), a local folder, or a model on
            the Hugging Face hub: "owner/name" or "owner/name@revision".
        out: the folder to write. An earlier export there is replaced.
        revision: another way to name the revision on the hub: a commit, tag or branch. Only a commit gives
            the same weights tomorrow.

    Raises:
        ExportError: the model can't be reached, is not complete, or was changed by saving; `out` stays as
            it was before.

    >>> import tempfile
    >>> folder = export_model("embedded", tempfile.mkdtemp() + "/my_model")
    >>> sorted(file.name for file in folder.glob("*.json"))
    ['added_tokens.json', 'config.json', 'tokenizer_config.json']
    """
    from safetensors import SafetensorError

    out = Path(out)
    try:
        _check_target(out)
        source = _find_source(str(model_id), revision)
        model, tokenizer = load_model(source)
        _check_tokenizer(model, tokenizer, source)
        before = _compute_answers(model, tokenizer)

        # A container's volume is a mount point, which no rename can replace: its files are replaced instead.
        mounted = out.is_mount()
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out if mounted else out.parent
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=beside) as scratch:
            export = Path(scratch) / "model"
            save_model(model, tokenizer, export)
            _check_round_trip(before, _compute_answers(*load_model(export)))
            (_replace_files if mounted else _replace)(out, export)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        full = "No space left" in cause or "quota" in cause
        advice = " Free space on that disk, or choose a folder on another one." if full else ""
        raise ExportError(f"The model can't be written to {out}: {cause}.{advice}") from error
    return out


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Saves both, and restores the tokenizer's bpe.codes.

    transformers 5 writes bpe.codes without the counts in its last column, and drops the last column again
    when it reads the file. Without an error, the reloaded tokenizer would split words differently.
    """
    with _no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    original = getattr(tokenizer, "merges_file", None)
    if original and Path(original).name == "bpe.codes":
        shutil.copyfile(original, folder / "bpe.codes")
    for file in folder.iterdir():
        file.chmod(0o644)  # transformers writes weights as 0600, which another user in a container can't read


def _check_target(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file. Choose the name of a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ExportError(
            f"The folder {out} holds files that are not a model export (no config.json). "
            "Choose another folder, or empty this one."
        )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns a failed read into an ExportError that names the file."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{error.filename} can't be read: {error.strerror}.") from error


@_reading()
def _find_source(model_id: str, revision: str | None) -> Path:
    """Returns the local folder that holds the model's files, fetched from the hub if necessary."""
    if model_id == "embedded":
        return EMBEDDED
    if Path(model_id).is_dir():
        return Path(model_id)
    if Path(model_id).is_file():
        raise ExportError(f"{model_id} is a file. Name the folder that save_pretrained wrote.")
    name, at, pin = model_id.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or bool(at) != bool(pin):
        raise ExportError(
            f"There is no folder {model_id!r}, and it is not the name of a model on the hub (owner/name "
            "or owner/name@revision). Check the path, or use 'embedded', the model that comes with the "
            "package."
        )
    if pin and revision and pin != revision:
        raise ExportError(
            f"{model_id!r} names one revision, and revision={revision!r} another. Leave one of them out."
        )
    return _download(name, pin or revision)


def _download(model_id: str, revision: str | None) -> Path:
    """Fetches a hub model into the hub's cache, with a progress bar. An interrupted download resumes."""
    from huggingface_hub import HfApi, errors, snapshot_download

    pinned, unreachable = f" at revision {revision}" if revision else "", ""
    patterns = list(_CONFIG_FILES)
    try:
        files = HfApi().model_info(model_id, revision=revision, timeout=10).siblings or []
        # Prefers safetensors: the older format is a pickle, which can run code.
        safe = any(file.rfilename.endswith(".safetensors") for file in files)
        patterns.append("*.safetensors" if safe else "pytorch_model*.bin")
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ExportError(
            f"The hub has no model {model_id!r} that this account may read. Check the name (and "
            "`hf auth login` for a private one), or use 'embedded', which needs no hub."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ExportError(
            f"The model {model_id!r} has no revision {revision!r}. Give a commit, tag or branch "
            "of that repository."
        ) from error
    except Exception as error:  # the hub can't be reached; the cache may have the model
        unreachable = type(error).__name__

    try:
        offline = bool(unreachable)
        folder = snapshot_download(
            model_id, revision=revision, allow_patterns=patterns, local_files_only=offline
        )
    except errors.LocalEntryNotFoundError as error:
        raise ExportError(
            f"The hub can't be reached ({unreachable}), and {model_id!r}{pinned} is not in this machine's "
            "cache. Try again when online (complete files are kept), or use 'embedded', the model that comes "
            "with the package and needs no network."
        ) from error
    except Exception as error:
        raise ExportError(
            f"The download of {model_id!r}{pinned} broke off: {error}. Run it again: complete "
            "files are kept. Or use 'embedded', which needs no network."
        ) from error
    return Path(folder)


def load_model(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Loads a folder's model (float32, in eval mode) and tokenizer; `options` go to `from_pretrained`.

    Raises:
        ExportError: the folder holds something else, or a tensor would be random or left out.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _check_files(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _no_progress_bars():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **local,
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:
        raise ExportError(f"The model in {folder} does not load: {error}") from error
    _check_tensors(model, report, folder)
    return model.eval(), tokenizer


def _check_tensors(model: Any, report: dict[str, Any], folder: Path) -> None:
    """Checks that each tensor of the classifier was in the weights, and that no other tensor was dropped."""
    if missing := report["missing_keys"]:
        raise ExportError(
            f"The weights in {folder} lack {len(missing)} of the model's tensors ({_first(missing)}), which "
            "would be random. Is it a fine-tuned classifier, and is the file complete?"
        )
    if report["mismatched_keys"]:
        shapes = [f"{name} {[*found]} for {[*wanted]}" for name, found, wanted in report["mismatched_keys"]]
        raise ExportError(
            f"The weights in {folder} have other shapes than config.json says: {_first(shapes)}. Save "
            "weights and config together; the number of labels is that of id2label."
        )
    left_out = {name for name in report["unexpected_keys"] if not _COMPUTED.search(name)}
    if left_out:
        left_out -= _pretrained_tensors(model.config, model.base_model_prefix)
    if left_out:
        raise ExportError(
            f"{type(model).__name__} has no place for {len(left_out)} tensors in {folder} "
            f"({_first(left_out)}), and would give other answers without them. Serve a model with layers of "
            "its own with a handler of your own."
        )


def _first(names: Iterable[str]) -> str:
    found = sorted(names)  # three are enough for a message
    return ", ".join([*found[:3], *(["…"] if len(found) > 3 else [])])


def _pretrained_tensors(config: Any, prefix: str) -> set[str]:
    """Returns the names of tensors that pretraining leaves behind: other heads, a pooler."""
    import torch
    import transformers

    names: set[str] = set()
    for head in ("AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM"):
        with contextlib.suppress(ValueError), torch.device("meta"):  # ValueError: it has no such head
            names |= getattr(transformers, head).from_config(config).state_dict().keys()
    return names | {f"{prefix}.{name}" for name in names}


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides transformers' bars, which last a second; its switch hides the hub's too, which are restored."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    shown, hub_hidden = logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        (hub.disable_progress_bars if hub_hidden else hub.enable_progress_bars)()


@_reading()
def _check_files(folder: Path) -> None:
    """Checks that the folder holds a text classifier of transformers, by its files' names and its config."""
    found = next((name for name in _OTHER_FOLDERS if any(folder.glob(name))), "")
    advice = _OTHER_FOLDERS.get(found, "Name the folder that model.save_pretrained wrote.")
    if found in (_ADAPTER, _PIPELINE):
        raise ExportError(f"There is no whole model in {folder}. {advice}")
    if not (folder / "config.json").is_file():
        raise ExportError(f"There is no config.json in {folder}. {advice}")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights:
        raise ExportError(f"There are no weights in {folder} (model.safetensors). {advice}")
    for file in weights:
        file.open("rb").close()  # reading is tried here, since transformers would not name the file
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        try:
            values = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError as error:
            raise ExportError(f"{file} can't be read: {error}. Save the model again.") from error
        if not isinstance(values, dict):
            raise ExportError(f"{file} is no JSON object. Save the model again.")
        _check_settings(file, values)


def _check_settings(file: Path, values: dict[str, Any]) -> None:
    """Checks that a config brings no code, and that a class that it names classifies texts."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if values.get("auto_map"):
        raise ExportError(
            f"The model brings code of its own (auto_map in {file}), which is not run here. Read that code, "
            "and serve the model with a handler of your own. If transformers has this architecture itself, "
            "remove auto_map."
        )
    named = values.get("architectures") or []
    if named and not {*named} & {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()}:
        advice = "Fine-tune it as one, or serve it with a handler of your own."
        if file.with_name(_EMBEDDINGS).is_file():
            advice = _OTHER_FOLDERS[_EMBEDDINGS]
        elif not hasattr(transformers, named[0]):
            advice = (
                "If that class of yours computes what a class of transformers computes, name the class of "
                "transformers there; else serve the model with a handler of your own."
            )
        raise ExportError(
            f"The model is a {named[0]} (architectures in {file}), which is no text classifier of "
            f"transformers. {advice}"
        )


def _check_tokenizer(model: Any, tokenizer: Any, source: Path) -> None:
    """Checks that the tokenizer belongs to the model, which a round trip does not show."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    pieces = [id for text in PROBES for id in tokenizer(text)["input_ids"] if id not in special]
    if set(pieces) <= {tokenizer.unk_token_id}:
        raise ExportError(
            f"The tokenizer in {source} knows no word of the texts that were tried, so its vocabulary is "
            "missing (vocab.txt or tokenizer.json). Save it too, with tokenizer.save_pretrained(folder)."
        )
    size = getattr(model.config, "vocab_size", None)
    if size is not None and max(pieces) >= size:
        raise ExportError(
            f"The tokenizer in {source} gives the word piece {max(pieces)}, and the model has embeddings for "
            f"{size}: they do not belong together. Save the tokenizer that the model was trained with."
        )


def max_tokens(tokenizer: Any, config: Any) -> int:
    """Returns how many word pieces a text may have, by the tokenizer's limit and the model's positions.

    The limit is 512 where neither has one: some tokenizers claim 1e30, and T5 has relative positions.
    RoBERTa's positions start at 2, so 2 are subtracted.
    """
    positions = getattr(config, "max_position_embeddings", None) or 0  # XLNet's is -1
    limit = min(tokenizer.model_max_length, positions - 2 if positions > 2 else 1_000_000)
    return limit if limit < 1_000_000 else 512


def _compute_answers(model: Any, tokenizer: Any) -> Answers:
    import torch

    longest = max_tokens(tokenizer, model.config)
    ids = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in PROBES]
    try:
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([row])).logits[0] for row in ids]
    except Exception as error:
        raise ExportError(
            f"The model loads, and can't compute a text: {error}. Is its config complete?"
        ) from error
    return ids, torch.stack(logits)


def _check_round_trip(before: Answers, after: Answers) -> None:
    for text, ids_before, ids_after in zip(PROBES, before[0], after[0], strict=True):
        if ids_before != ids_after:
            raise ExportError(
                f"The tokenizer did not survive saving: {text!r} was {len(ids_before)} tokens before, and is "
                f"{len(ids_after)} others now. Nothing was exported; please report this with the name of "
                "the model and the version of transformers."
            )
    worst = (before[1] - after[1]).abs().max().item()
    if not worst < 1e-5:  # not exactly 0: two runs may add up in another order; NaN fails too
        raise ExportError(
            f"The weights did not survive saving: logits differ by up to {worst:.2g}. Nothing was "
            "exported; please report this with the name of the model."
        )


def _replace_files(out: Path, export: Path) -> None:
    """Replaces the files of `out` by those of `export`, which lies in a folder of `out`."""
    old = export.with_name("old")
    old.mkdir()
    try:
        for file in [file for file in out.iterdir() if file != export.parent]:
            file.rename(old / file.name)
        for file in [*export.iterdir()]:
            file.rename(out / file.name)
    except OSError:
        for file in old.iterdir():
            file.replace(out / file.name)
        raise


def _replace(out: Path, export: Path) -> None:
    """Replaces `out` by `export`. The old folder moves away first: no rename replaces a folder with files.

    Other processes may export to `out` at the same time; the last one wins.
    """
    for number in itertools.count():
        old = export.with_name(f"old-{number}")
        with contextlib.suppress(
            FileNotFoundError
        ):  # no earlier export, or another process has just moved it
            out.replace(old)
        try:
            export.replace(out)
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # another process has just written its export
            if old.exists():
                old.replace(out)
            raise
