from .client import (
    Answer as Answer,
)
from .client import (
    InferenceClient as InferenceClient,
)
from .client import (
    JobQueueStatus as JobQueueStatus,
)
from .client import (
    KeyFile as KeyFile,
)
from .client import (
    ManagementClient as ManagementClient,
)
from .client import (
    MetricsClient as MetricsClient,
)
from .client import (
    ModelDescription as ModelDescription,
)
from .client import (
    ModelEntry as ModelEntry,
)
from .client import (
    ModelPage as ModelPage,
)
from .client import (
    Sample as Sample,
)
from .client import (
    Status as Status,
)
from .client import (
    Worker as Worker,
)
from .connect import (
    ConnectedServer as ConnectedServer,
)
from .connect import (
    connect as connect,
)

__all__: list[str]
