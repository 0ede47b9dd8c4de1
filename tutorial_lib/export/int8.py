"""Rewrites an ONNX graph so that it multiplies weights in 8-bit integers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
# Weights go to ±64 only, activations to 128 ± 127: without VNNI, a processor adds two 8-bit products in
# 16 bits, and a larger sum would be cut off.
WEIGHT_STEPS, STEPS, ZERO = 64, 127, 128


def quantize(file: Path) -> Path:
    """Writes the graph with int8 weights into a new file beside `file`.

    Each token has its own scale. ONNX Runtime's `quantize_dynamic` has one scale for a whole pass, so that a
    text's answer depends on the other texts of the pass.
    """
    model = onnx.load(file)
    graph, nodes = model.graph, _Int8Nodes(model.graph)
    found = [new for node in graph.node for new in nodes.replace(node)]
    used = {name for node in found for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(found)
    graph.initializer.extend(kept)
    model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    target = file.with_name("int8.onnx")
    onnx.save(model, target)
    return target


class _Int8Nodes:
    """Makes the nodes that replace a product with a weight, once for all products that share them."""

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

    def replace(self, node: Any) -> Iterator[Any]:
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
