"""Takes a PyTorch model to production with TorchServe: export → archive → serve → ask.

>>> from tutorial_lib import TorchServe, build_archive, export_model
"""

from tutorial_lib.archive import build_archive, read_manifest
from tutorial_lib.client import InferenceClient, KeyFile, ManagementClient, MetricsClient
from tutorial_lib.environment import EnvironmentReport, check_environment
from tutorial_lib.errors import (
    ApiError,
    ArchiveError,
    ExportError,
    JavaNotFound,
    PortInUse,
    ServerExited,
    StartTimeout,
    TutorialError,
    WorkerFailed,
)
from tutorial_lib.export import export_model
from tutorial_lib.gpu import GpuInfo, detect_gpu
from tutorial_lib.java import Java, find_java
from tutorial_lib.logs import first_traceback, parse_context
from tutorial_lib.server import TorchServe

__all__ = [
    "ApiError",
    "ArchiveError",
    "EnvironmentReport",
    "ExportError",
    "GpuInfo",
    "InferenceClient",
    "Java",
    "JavaNotFound",
    "KeyFile",
    "ManagementClient",
    "MetricsClient",
    "PortInUse",
    "ServerExited",
    "StartTimeout",
    "TorchServe",
    "TutorialError",
    "WorkerFailed",
    "build_archive",
    "check_environment",
    "detect_gpu",
    "export_model",
    "find_java",
    "first_traceback",
    "parse_context",
    "read_manifest",
]
