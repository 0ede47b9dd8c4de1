"""Takes a PyTorch model to production with TorchServe: export → archive → serve → predict.

>>> from tutorial_lib import TorchServe, build_archive, export_model

A name's module is imported when the name is first used (PEP 562), so that
`from tutorial_lib import InferenceClient` does not import torch. Type checkers read the imports below, which
never run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutorial_lib.archive import archive_sha256, build_archive, read_manifest
    from tutorial_lib.client import (
        Answer,
        InferenceClient,
        JobQueueStatus,
        KeyFile,
        ManagementClient,
        MetricsClient,
        ModelDescription,
        ModelEntry,
        ModelPage,
        Sample,
        Status,
        Worker,
    )
    from tutorial_lib.container import Container, Engine, Health, Image, find_engine
    from tutorial_lib.course_files import course_file
    from tutorial_lib.environment import EnvironmentReport, check_environment
    from tutorial_lib.errors import (
        ApiError,
        ArchiveError,
        ContainerExited,
        EngineError,
        EngineNotFound,
        ExportError,
        ImageError,
        JavaNotFound,
        OutOfMemory,
        PackageMissing,
        PortInUse,
        ServerExited,
        StartTimeout,
        TutorialError,
        WorkerFailed,
    )
    from tutorial_lib.export import export_model
    from tutorial_lib.gpu import GpuInfo, detect_gpu
    from tutorial_lib.java import Java, find_java
    from tutorial_lib.load import load_test
    from tutorial_lib.logs import first_traceback, parse_context
    from tutorial_lib.model_server import ModelServer
    from tutorial_lib.onnx_export import export_onnx
    from tutorial_lib.preload import preloaded
    from tutorial_lib.server import TorchServe
    from tutorial_lib.this_server import client_of_this_server

_MODULE_OF = {
    "Answer": "client",
    "ApiError": "errors",
    "ArchiveError": "errors",
    "Container": "container",
    "ContainerExited": "errors",
    "Engine": "container",
    "EngineError": "errors",
    "EngineNotFound": "errors",
    "EnvironmentReport": "environment",
    "ExportError": "errors",
    "GpuInfo": "gpu",
    "Health": "container",
    "Image": "container",
    "ImageError": "errors",
    "InferenceClient": "client",
    "Java": "java",
    "JavaNotFound": "errors",
    "JobQueueStatus": "client",
    "KeyFile": "client",
    "ManagementClient": "client",
    "MetricsClient": "client",
    "ModelDescription": "client",
    "ModelEntry": "client",
    "ModelPage": "client",
    "ModelServer": "model_server",
    "OutOfMemory": "errors",
    "PackageMissing": "errors",
    "PortInUse": "errors",
    "Sample": "client",
    "ServerExited": "errors",
    "StartTimeout": "errors",
    "Status": "client",
    "TorchServe": "server",
    "TutorialError": "errors",
    "Worker": "client",
    "WorkerFailed": "errors",
    "archive_sha256": "archive",
    "build_archive": "archive",
    "check_environment": "environment",
    "client_of_this_server": "this_server",
    "course_file": "course_files",
    "detect_gpu": "gpu",
    "export_model": "export",
    "export_onnx": "onnx_export",
    "find_engine": "container",
    "find_java": "java",
    "first_traceback": "logs",
    "load_test": "load",
    "parse_context": "logs",
    "preloaded": "preload",
    "read_manifest": "archive",
}

__all__ = [
    "Answer",
    "ApiError",
    "ArchiveError",
    "Container",
    "ContainerExited",
    "Engine",
    "EngineError",
    "EngineNotFound",
    "EnvironmentReport",
    "ExportError",
    "GpuInfo",
    "Health",
    "Image",
    "ImageError",
    "InferenceClient",
    "Java",
    "JavaNotFound",
    "JobQueueStatus",
    "KeyFile",
    "ManagementClient",
    "MetricsClient",
    "ModelDescription",
    "ModelEntry",
    "ModelPage",
    "ModelServer",
    "OutOfMemory",
    "PackageMissing",
    "PortInUse",
    "Sample",
    "ServerExited",
    "StartTimeout",
    "Status",
    "TorchServe",
    "TutorialError",
    "Worker",
    "WorkerFailed",
    "archive_sha256",
    "build_archive",
    "check_environment",
    "client_of_this_server",
    "course_file",
    "detect_gpu",
    "export_model",
    "export_onnx",
    "find_engine",
    "find_java",
    "first_traceback",
    "load_test",
    "parse_context",
    "preloaded",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("torchserve-course")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
