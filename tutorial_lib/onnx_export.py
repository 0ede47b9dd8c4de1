"""Writes an exported model as ONNX too, with int8 weights, for handler.py's `backend: onnx`."""

from __future__ import annotations

import contextlib
import itertools
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
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401
    import torch


def export_onnx(model_dir: str | Path, *, int8: bool = True, keep_float32: str | Path | None = None) -> Path:
    """Writes model.onnx into a folder from `export_model`, beside the weights that it is made of.

    The graph takes `input_ids` and `attention_mask`, both int64 [rows, tokens], and gives `logits`,
    float32 [rows, classes]. Before the graph is quantized, it must give the model's own logits on real texts.

    Args:
        model_dir: the exported model; an earlier model.onnx in it is replaced.
        int8: multiply matrices in 8-bit integers. Weights are quantized now, with one scale for each
            column. Activations are quantized at run time, with one scale for each token, so that an answer
            does not depend on the other texts of its pass. The graph is faster, and what is quantized takes
            a quarter of the space. Not all answers equal those of float32: chapter 09 counts them.
        keep_float32: a file for the graph before it is quantized, to compare the two.

    Returns:
        the file.

    Raises:
        ExportError: there is no model in the folder, the model has no token to pad with (GPT-2), or its ONNX
            form gives other logits. An earlier model.onnx stays as it was.
        PackageMissing: when this module is imported, if onnx, onnxruntime or onnxscript is missing.

    >>> export_onnx("no/such/model")
    Traceback (most recent call last):
    tutorial_lib.errors.ExportError: There is no config.json in no/such/model. Export a model there first.
    """
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise ExportError(f"There is no config.json in {folder}. Export a model there first.")
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
        _check(model, probes, file)
        if keep_float32 is not None:
            shutil.copyfile(file, keep_float32)
        if int8:
            file = _quantized(file)
        return file.replace(folder / "model.onnx")


def _probes(model: Any, tokenizer: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns ids and masks: of three texts together, padded, for tracing; then of each text alone."""
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
    """Writes the graph, with its products with weights in 8-bit integers, into a new file beside `file`.

    ONNX Runtime's `quantize_dynamic` has one scale for a whole pass: the largest number in the pass decides
    how coarsely all the others are rounded, so a text's answer depends on its neighbours. Here each row of a
    product, which is one token, has its own scale.
    """
    model = onnx.load(file)
    graph, nodes = model.graph, _Int8Nodes(model.graph)
    found = [new for node in graph.node for new in nodes.instead_of(node)]
    del graph.node[:]
    graph.node.extend(found)
    unused = {one.name for one in graph.initializer} - {name for node in found for name in node.input}
    for one in [one for one in graph.initializer if one.name in unused]:
        graph.initializer.remove(one)
    model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    target = file.with_name("int8.onnx")
    onnx.save(model, target)
    return target


MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
# Weights go to ±64 only, activations to 128 ± 127: without VNNI, a processor adds two 8-bit products in
# 16 bits, and a larger sum would be cut off.
WEIGHT_STEPS, STEPS, ZERO = 64, 127, 128


class _Int8Nodes:
    """Makes the nodes that replace a product with a weight. What several products share is made once."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._values = {one.name: one for one in graph.initializer}
        self._rows: set[str] = set()
        self._weights: dict[tuple[str, bool], tuple[str, str]] = {}
        self._numbers = itertools.count()
        self._step = self._constant(np.float32(1 / STEPS), "step")
        self._zero = self._constant(np.uint8(ZERO), "zero")
        self._tiny = self._constant(np.float32(1e-12), "tiny")  # so that a row of zeros can be divided
        self._last = self._constant(np.array([-1]), "last_axis")

    def instead_of(self, node: Any) -> Iterator[Any]:
        """Yields int8 nodes for a MatMul or Gemm with a weight of two dimensions, else the node itself."""
        options = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        weight = self._values.get(node.input[1]) if len(node.input) > 1 else None
        plain = options.get("alpha", 1) == options.get("beta", 1) == 1 and not options.get("transA", 0)
        if node.op_type not in ("MatMul", "Gemm") or weight is None or len(weight.dims) != 2 or not plain:
            yield node
            return
        rows, output = node.input[0], node.output[0]
        if rows not in self._rows:
            self._rows.add(rows)
            yield from self._quantize(rows)
        values, scales = self._weight(weight, transposed=bool(options.get("transB", 0)))
        bias = node.input[2] if len(node.input) > 2 else None
        product = f"{output}_scaled" if bias else output
        integers = [f"{rows}_int8", values, self._step, scales, self._zero]
        make = onnx.helper.make_node
        yield make("MatMulIntegerToFloat", integers, [f"{output}_product"], domain=MICROSOFT)
        yield make("Mul", [f"{output}_product", f"{rows}_largest"], [product])
        if bias:
            yield make("Add", [product, bias], [output])

    def _quantize(self, rows: str) -> Iterator[Any]:
        """Yields nodes that divide each row by its largest number, and round it to 127 steps up and down."""
        make = onnx.helper.make_node
        yield make("Abs", [rows], [f"{rows}_abs"])
        yield make("ReduceMax", [f"{rows}_abs", self._last], [f"{rows}_max"], keepdims=1)
        yield make("Max", [f"{rows}_max", self._tiny], [f"{rows}_largest"])
        yield make("Div", [rows, f"{rows}_largest"], [f"{rows}_part"])
        yield make("QuantizeLinear", [f"{rows}_part", self._step, self._zero], [f"{rows}_int8"])

    def _weight(self, weight: Any, *, transposed: bool) -> tuple[str, str]:
        """Returns the names of a weight's integers, int8 [in, out], and of its scales, float32 [out]."""
        key = (weight.name, transposed)
        if key not in self._weights:
            values = onnx.numpy_helper.to_array(weight)
            values = values.T if transposed else values
            scales = np.maximum(np.abs(values).max(axis=0), 1e-12) / WEIGHT_STEPS
            integers = np.rint(values / scales).astype(np.int8)
            names = self._constant(integers, "weight"), self._constant(scales.astype(np.float32), "scales")
            self._weights[key] = names
        return self._weights[key]

    def _constant(self, value: Any, name: str) -> str:
        name = f"int8_{name}_{next(self._numbers)}"
        self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name


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
