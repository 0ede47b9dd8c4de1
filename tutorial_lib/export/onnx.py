"""Writes an exported model as an ONNX graph, for handler.py's `backend: onnx`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutorial_lib.errors import ExportError
from tutorial_lib.extras import extra

# Imported inside the functions: a process that has loaded ONNX Runtime can't fork safely.
with extra("onnx", "export_onnx", "torch", "transformers", "onnx", "onnxruntime", "onnxscript"):
    from tutorial_lib.export.model import PROBES, load_model, max_tokens

if TYPE_CHECKING:
    import torch


def export_onnx(model_dir: str | Path, *, int8: bool = True, keep_float32: str | Path | None = None) -> Path:
    """Writes model.onnx into a folder from `export_model`, beside the weights that it is made of.

    The graph takes `input_ids` and `attention_mask`, int64 [rows, tokens], and gives `logits`, float32
    [rows, classes]. Before it is quantized, it must give the model's own logits on real texts. Its metadata
    has the SHA-256 of the weights as `weights_sha256`: handler.py refuses a graph of other weights.

    Args:
        model_dir: the exported model; an earlier model.onnx in it is replaced.
        int8: multiply matrices in 8-bit integers: faster, and the weights take a quarter of the space. Some
            answers differ from those of float32: chapter 09 counts them.
        keep_float32: a file for the graph before it is quantized, to compare the two.

    Raises:
        ExportError: there is no model in the folder, the model has no token to pad with (GPT-2), or the graph
            gives other logits. An earlier model.onnx stays as it was.

    >>> import tempfile
    >>> from tutorial_lib.export import export_model
    >>> export_onnx(export_model("embedded", tempfile.mkdtemp() + "/my_model"), int8=False).name
    'model.onnx'
    """
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise ExportError(f"There is no config.json in {folder}. Export a model there first.")
    digest = _weights_sha256(folder)
    # "eager" is attention as plain matrix products; ONNX Runtime fuses them better than torch's own kernel.
    model, tokenizer = load_model(folder, attn_implementation="eager", use_safetensors=True)
    if model.config.pad_token_id is None or tokenizer.pad_token is None:
        raise ExportError(
            f"The model in {folder} has no token to pad with, so it takes one text at a time, and a "
            "graph for several texts can't be made. Serve it with handler.py's backend: torch."
        )
    probes = _probes(model, tokenizer)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder.parent) as scratch, _quiet():
        file = Path(scratch) / "model.onnx"
        _write(model, probes[0], file)
        _add_digest(file, digest)
        _check(model, probes, file)
        if keep_float32 is not None:
            shutil.copyfile(file, keep_float32)
        if int8:
            from tutorial_lib.export.int8 import quantize

            file = quantize(file)
        return file.replace(folder / "model.onnx")


def _probes(model: Any, tokenizer: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns ids and masks: of three texts together, padded; then of each text alone."""
    longest = max_tokens(tokenizer, model.config)
    batches = [list(PROBES[:3]), *([text] for text in PROBES)]
    encoded = [
        tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        for texts in batches
    ]
    return [(batch["input_ids"], batch["attention_mask"]) for batch in encoded]


def _weights_sha256(folder: Path) -> str:
    whole = folder / "model.safetensors"
    digest = hashlib.sha256()
    for part in [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors")):
        with part.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def _add_digest(file: Path, digest: str) -> None:
    """Appends the digest to the graph's metadata: readers merge protocol buffers that are joined."""
    import onnx

    entry = onnx.StringStringEntryProto(key="weights_sha256", value=digest)
    with file.open("ab") as content:
        content.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def _write(model: Any, example: tuple[torch.Tensor, torch.Tensor], file: Path) -> None:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    size = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        Logits(),
        example,
        file,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": size, "attention_mask": size},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _check(model: Any, probes: list[tuple[torch.Tensor, torch.Tensor]], file: Path) -> None:
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for ids, mask in probes:
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        found = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        worst = float(np.abs(found - expected).max())
        if not worst < 1e-3:  # NaN fails too
            raise ExportError(
                f"The model's ONNX form gives other logits, by up to {worst:.2g}. No model.onnx was written; "
                "please report this with the name of the model."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings about torchvision, about changed names, and about shapes that are inferred anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
