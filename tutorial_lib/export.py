"""Exports a model and its tokenizer as one folder that `from_pretrained` loads, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutorial_lib.course_files import EMBEDDED as EMBEDDED
from tutorial_lib.course_files import IN_A_ZIP
from tutorial_lib.errors import ExportError
from tutorial_lib.extras import extra

with extra("export", "export_model"):
    import torch


# The files of a hub repository that a sentiment model is made of. Others (TensorFlow weights,
# training logs) are not fetched.
_CONFIG_FILES = ("*.json", "*.txt", "bpe.codes", "*.model")

_ATTEMPTS = 20  # to replace a folder that other processes replace at the same time

# Real texts for the round trip: emoji, a mention, a link, contractions, a word in no vocabulary.
PROBES = (
    "I love this phone, best purchase of the year! 😍",
    "@airline my flight is delayed AGAIN and nobody can't tell me why... http://example.com",
    "The meeting is at 10 tomorrow.",
    "don't waste your money, it's terrible 👎",
    "not bad at all, could've been worse :)",
    "Zażółć gęślą jaźń, Straße, 漢字, zzzyxqv",
)


def export_model(model_id: str | Path, out: str | Path, *, revision: str | None = None) -> Path:
    """Writes the model and its tokenizer into the folder `out`, and checks that saving did not change them.

    The folder looks like an export of the article "Serving PyTorch Models Using TorchServe" (config.json,
    vocab.txt, bpe.codes, …), with the weights as float32 in model.safetensors. It appears only when it is
    complete: the export is written beside `out`, loaded again, and must give the same token ids and the same
    logits on real texts.

    Args:
        model_id: "embedded" (the small model that comes with this package), a local folder, or a
            model on the Hugging Face hub, as "finiteautomata/bertweet-base-sentiment-analysis", or
            with its revision: "owner/name@revision".
        out: the folder to write. An earlier export there is replaced.
        revision: another way to name the revision on the hub: a commit, tag or branch. Give a commit to
            get the same weights tomorrow.

    Returns:
        `out`, as a Path.

    Raises:
        ExportError: the model can't be reached, is not complete, or was changed by saving; `out` stays as
            it was before.

    >>> import tempfile
    >>> folder = export_model("embedded", tempfile.mkdtemp() + "/my_model")
    >>> sorted(file.name for file in folder.glob("*.json"))
    ['added_tokens.json', 'config.json', 'tokenizer_config.json']
    """
    out = Path(out)
    _check_target(out)
    source = _find_source(str(model_id), revision)
    model, tokenizer = load_model(source)
    _check_tokenizer(model, tokenizer, source)
    before = _answers(model, tokenizer)

    # A container's volume is a mount point, which no rename can replace: its content is replaced instead.
    mounted = out.is_mount()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}-", dir=out if mounted else out.parent
        ) as scratch:
            whole = Path(scratch) / "model"
            save_model(model, tokenizer, whole)
            _check_round_trip(before, _answers(*load_model(whole)))
            (_replace_content if mounted else _replace)(out, whole)
    except OSError as error:
        raise ExportError(
            f"The model can't be written to {out}: {error.strerror or error}. Is it a folder that you may "
            "write to, with room for the model?"
        ) from error
    return out


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Calls `save_pretrained` for both, and fixes what it writes wrongly.

    With transformers 5, `BertweetTokenizer.save_pretrained` writes bpe.codes with two columns, and
    its own loader drops the last column of each line (the original files have a count there). The
    reloaded tokenizer splits words differently, with no error. Copying the original file fixes that.
    """
    with _no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    original = getattr(tokenizer, "merges_file", None)
    if original and Path(original).name == "bpe.codes":
        shutil.copyfile(original, folder / "bpe.codes")
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written as 0600, which a container's other user can't read


def _check_target(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ExportError(
            f"The folder {out} holds files that are not a model export (no config.json). "
            "Choose another folder, or empty this one."
        )
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file. Choose the name of a folder.")


def _find_source(model_id: str, revision: str | None) -> Path:
    """Returns the local folder that holds the model's files, fetched from the hub if necessary."""
    if model_id == "embedded":
        if not EMBEDDED.is_dir():
            raise ExportError(IN_A_ZIP)
        return EMBEDDED
    if Path(model_id).is_dir():
        return Path(model_id)
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
    """Fetches a hub model into the hub's cache, with a progress bar; an interrupted one resumes."""
    with extra("export", "export_model"):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.errors import LocalEntryNotFoundError as NotInCache

    pinned, why = f" at revision {revision}" if revision else "", ""
    try:
        info = HfApi().model_info(model_id, revision=revision, timeout=10)
        files = [file.rfilename for file in info.siblings or []]
        # Fetches safetensors if there are any: the older format is a pickle, which can run code.
        safe = any(name.endswith(".safetensors") for name in files)
        weights = "*.safetensors" if safe else "pytorch_model*.bin"
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ExportError(
            f"The hub has no model {model_id!r} that this account may read. Check the name (and "
            "`hf auth login` for a private one), or use 'embedded', which needs no hub."
        ) from error
    except RevisionNotFoundError as error:
        raise ExportError(
            f"The model {model_id!r} has no revision {revision!r}. Give a commit, tag or branch "
            "of that repository."
        ) from error
    except Exception as error:  # the hub is unreachable for some reason; the cache may have the model
        weights, files, why = "*.safetensors", [], type(error).__name__

    try:
        folder = snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=[*_CONFIG_FILES, weights, *([] if files else ["pytorch_model*.bin"])],
            local_files_only=not files,
        )
    except NotInCache as error:
        raise ExportError(
            f"The hub can't be reached ({why}), and {model_id!r}{pinned} is not in this machine's cache. "
            "Try again when online (complete files are kept), or use 'embedded', the model that "
            "comes with the package and needs no network."
        ) from error
    except Exception as error:
        raise ExportError(
            f"The download of {model_id!r}{pinned} broke off: {error}. Run it again: complete "
            "files are kept. Or use 'embedded', which needs no network."
        ) from error
    return Path(folder)


def load_model(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Loads a folder's model (float32, in eval mode) and tokenizer; `options` go to `from_pretrained`."""
    with extra("export", "export_model"):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _check_files(folder)
    try:
        with _no_progress_bars():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"The model in {folder} does not load: {error}. Is each of its files complete?"
        ) from error
    if report["missing_keys"]:
        raise ExportError(
            f"The weights in {folder} lack {len(report['missing_keys'])} of the model's tensors "
            f"({sorted(report['missing_keys'])[0]}, …), which would be random. Is it a fine-tuned "
            "classifier, and is the file complete?"
        )
    return model.eval(), tokenizer


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides the bars that transformers draws for a read or write of a second; the download's bar stays.

    The switch of transformers turns the hub's bars on and off too, so their state is restored separately.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    shown, hub_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        (enable_progress_bars if hub_shown else disable_progress_bars)()


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ExportError(f"There is no config.json in {folder}. Name the folder that save_pretrained wrote.")
    if not any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
        raise ExportError(
            f"There are no weights in {folder} (model.safetensors). Name the folder that "
            "model.save_pretrained wrote, or export the model again."
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

    Some tokenizers claim to take 1e30, and models with relative positions (T5) set no limit: the limit is
    then 512. RoBERTa's positions start at 2, so 2 are subtracted.
    """
    positions = getattr(config, "max_position_embeddings", None) or 0  # XLNet's is -1
    limit = min(tokenizer.model_max_length, positions - 2 if positions > 2 else 1_000_000)
    return limit if limit < 1_000_000 else 512


def _answers(model: Any, tokenizer: Any) -> tuple[list[list[int]], torch.Tensor]:
    """Computes token ids and logits for the probes: lists of ints, and a tensor [probes, labels].

    Raises:
        ExportError: the model can't compute one of the probes.
    """
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


def _check_round_trip(
    before: tuple[list[list[int]], torch.Tensor], after: tuple[list[list[int]], torch.Tensor]
) -> None:
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


def _replace_content(out: Path, whole: Path) -> None:
    """Replaces the files of `out` by the files of `whole`, which lies in a folder of `out`."""
    old = whole.with_name("old")
    old.mkdir()
    kept = [file for file in out.iterdir() if file != whole.parent]
    try:
        for file in kept:
            file.rename(old / file.name)
        for file in [*whole.iterdir()]:
            file.rename(out / file.name)
    except OSError:
        for file in old.iterdir():
            file.replace(out / file.name)
        raise


def _replace(out: Path, whole: Path) -> None:
    """Replaces `out` by `whole`. A rename can't replace a folder with files, so the old one moves first.

    Other processes may export to `out` at the same time; the last one wins.
    """
    for attempt in range(_ATTEMPTS):
        old = whole.with_name(f"old-{attempt}")
        with contextlib.suppress(FileNotFoundError):  # there is none, or another process has just moved it
            out.replace(old)
        try:
            whole.replace(out)
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and attempt < _ATTEMPTS - 1:
                continue  # another process has just written its own
            if old.exists():
                old.replace(out)
            raise
