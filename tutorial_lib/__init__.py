"""Takes a PyTorch model to production with TorchServe: export → archive → serve → ask.

>>> from tutorial_lib import TorchServe, build_archive, export_model
"""

from tutorial_lib.archive import archive_sha256, build_archive, read_manifest
from tutorial_lib.client import InferenceClient, KeyFile, ManagementClient, MetricsClient
from tutorial_lib.container import Container, Engine, Health, Image, find_engine
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
from tutorial_lib.onnx_export import export_onnx
from tutorial_lib.server import TorchServe
from tutorial_lib.texts import sample_tweets

__all__ = [
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
    "KeyFile",
    "ManagementClient",
    "MetricsClient",
    "OutOfMemory",
    "PortInUse",
    "ServerExited",
    "StartTimeout",
    "TorchServe",
    "TutorialError",
    "WorkerFailed",
    "archive_sha256",
    "build_archive",
    "check_environment",
    "detect_gpu",
    "export_model",
    "export_onnx",
    "find_engine",
    "find_java",
    "first_traceback",
    "load_test",
    "parse_context",
    "read_manifest",
    "sample_tweets",
]
