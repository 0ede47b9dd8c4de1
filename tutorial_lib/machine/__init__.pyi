from .environment import (
    EnvironmentReport as EnvironmentReport,
)
from .environment import (
    check_environment as check_environment,
)
from .gpu import (
    GpuInfo as GpuInfo,
)
from .gpu import (
    detect_gpu as detect_gpu,
)

__all__: list[str]
