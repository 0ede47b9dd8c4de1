"""Writes an exported model as ONNX too, with int8 weights: what handler.py's `backend: onnx` runs."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutorial_lib.errors import ExportError
from tutorial_lib.export import PROBES, load_model, max_tokens
from tutorial_lib.extras import extra

with extra("onnx", "export_onnx"):
    import numpy as np
    import onnx  # noqa: F401  torch.onnx.export imports it, and onnxscript
    import onnxruntime
    import onnxscript  # noqa: F401
    import torch


def export_onnx(model_dir: str | Path, *, int8: bool = True, keep_float32: str | Path | None = None) -> Path:
    """Writes model.onnx into a folder from `export_model`, beside the weights that it is made of.

    The graph takes `input_ids` and `attention_mask`, both int64 [rows, tokens], and gives `logits`,
    float32 [rows, classes]. It must give the model's own logits on real texts before it is quantized.

    Args:
        model_dir: the exported model; an earlier model.onnx in it is replaced.
        int8: multiply matrices in 8-bit integers: weights are quantized now, one scale for each
            column, activations as they come (ONNX Runtime's dynamic quantization). Faster, a quarter
            of the size of what is quantized, and not quite the same answers: chapter 09 counts them.
        keep_float32: a file for the graph as it is before it is quantized, to compare the two.

    Returns:
        the file.

    Raises:
        ExportError: there is no model in the folder, it has no token to pad with (GPT-2), or its ONNX form
            gives other logits. An earlier model.onnx is as it was.
        PackageMissing: when this module is imported, where onnx, onnxruntime or onnxscript is missing.

    >>> export_onnx("no/such/model")
    Traceback (most recent call last):
    tutorial_lib.errors.ExportError: There is no config.json in no/such/model. Export a model there first.
    """
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise ExportError(f"There is no config.json in {folder}. Export a model there first.")
    # "eager": attention as plain matrix products, which ONNX Runtime fuses better than torch's own kernel.
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
        _check(model, probes, file)
        if keep_float32 is not None:
            shutil.copyfile(file, keep_float32)
        if int8:
            file = _quantized(file)
        return file.replace(folder / "model.onnx")


def _probes(model: Any, tokenizer: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and mask: of three texts, padded, to trace with; then of each text alone."""
    longest = max_tokens(tokenizer, model.config)
    batches = [list(PROBES[:3]), *([text] for text in PROBES)]
    encoded = [
        tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        for texts in batches
    ]
    return [(batch["input_ids"], batch["attention_mask"]) for batch in encoded]


def _write(model: Any, example: tuple[torch.Tensor, torch.Tensor], file: Path) -> None:
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


def _quantized(file: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = file.with_name("int8.onnx")
    quantize_dynamic(
        file, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
    )
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Their warnings are of torchvision, of names given anew, and of shapes that are inferred anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
