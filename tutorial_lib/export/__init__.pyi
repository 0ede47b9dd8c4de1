from .model import (
    EMBEDDED as EMBEDDED,
)
from .model import (
    export_model as export_model,
)
from .model import (
    max_tokens as max_tokens,
)
from .onnx import export_onnx as export_onnx

__all__: list[str]
