from .archives import (
    ModelFiles as ModelFiles,
)
from .archives import (
    archive_sha256 as archive_sha256,
)
from .archives import (
    build_archive as build_archive,
)
from .archives import (
    read_manifest as read_manifest,
)
from .clients import (
    Answer as Answer,
)
from .clients import (
    ConnectedServer as ConnectedServer,
)
from .clients import (
    InferenceClient as InferenceClient,
)
from .clients import (
    JobQueueStatus as JobQueueStatus,
)
from .clients import (
    KeyFile as KeyFile,
)
from .clients import (
    ManagementClient as ManagementClient,
)
from .clients import (
    MetricsClient as MetricsClient,
)
from .clients import (
    ModelDescription as ModelDescription,
)
from .clients import (
    ModelEntry as ModelEntry,
)
from .clients import (
    ModelPage as ModelPage,
)
from .clients import (
    Sample as Sample,
)
from .clients import (
    Status as Status,
)
from .clients import (
    Worker as Worker,
)
from .clients import (
    connect as connect,
)
from .containers import (
    Container as Container,
)
from .containers import (
    Engine as Engine,
)
from .containers import (
    Health as Health,
)
from .containers import (
    Image as Image,
)
from .containers import (
    find_engine as find_engine,
)
from .course_files import course_file as course_file
from .errors import (
    AnswerBrokeOff as AnswerBrokeOff,
)
from .errors import (
    ApiError as ApiError,
)
from .errors import (
    ArchiveError as ArchiveError,
)
from .errors import (
    ConnectionFailed as ConnectionFailed,
)
from .errors import (
    ContainerExited as ContainerExited,
)
from .errors import (
    EngineError as EngineError,
)
from .errors import (
    EngineNotFound as EngineNotFound,
)
from .errors import (
    ExportError as ExportError,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    JavaNotFound as JavaNotFound,
)
from .errors import (
    NoAnswer as NoAnswer,
)
from .errors import (
    NoKeyFile as NoKeyFile,
)
from .errors import (
    OutOfMemory as OutOfMemory,
)
from .errors import (
    PackageMissing as PackageMissing,
)
from .errors import (
    PortInUse as PortInUse,
)
from .errors import (
    ServerExited as ServerExited,
)
from .errors import (
    StartTimeout as StartTimeout,
)
from .errors import (
    TimedOut as TimedOut,
)
from .errors import (
    TlsError as TlsError,
)
from .errors import (
    TutorialError as TutorialError,
)
from .errors import (
    WorkerFailed as WorkerFailed,
)
from .export import (
    export_model as export_model,
)
from .export import (
    export_onnx as export_onnx,
)
from .load import load_test as load_test
from .machine import (
    EnvironmentReport as EnvironmentReport,
)
from .machine import (
    GpuInfo as GpuInfo,
)
from .machine import (
    check_environment as check_environment,
)
from .machine import (
    detect_gpu as detect_gpu,
)
from .preload import preloaded as preloaded
from .servers import (
    Java as Java,
)
from .servers import (
    ModelServer as ModelServer,
)
from .servers import (
    TorchServe as TorchServe,
)
from .servers import (
    client_of_this_server as client_of_this_server,
)
from .servers import (
    find_java as find_java,
)
from .servers import (
    first_traceback as first_traceback,
)
from .servers import (
    parse_context as parse_context,
)

__all__: list[str]
__version__: str
