from .contract import (
    Headers as Headers,
)
from .contract import (
    Metric as Metric,
)
from .contract import (
    Reply as Reply,
)
from .contract import (
    in_model_folder as in_model_folder,
)
from .contract import (
    load_service as load_service,
)
from .contract import (
    on_metric as on_metric,
)
from .contract import (
    parameter as parameter,
)
from .contract import (
    predict as predict,
)
from .contract import (
    request as request,
)
from .process import (
    LoadFailed as LoadFailed,
)
from .process import (
    WorkerDied as WorkerDied,
)
from .process import (
    WorkerProcess as WorkerProcess,
)

__all__: list[str]
