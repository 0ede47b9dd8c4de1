from .bodies import (
    Body as Body,
)
from .bodies import (
    encode as encode,
)
from .connect import (
    ConnectedServer as ConnectedServer,
)
from .connect import (
    connect as connect,
)
from .inference import (
    Answer as Answer,
)
from .inference import (
    InferenceClient as InferenceClient,
)
from .management import (
    ManagementClient as ManagementClient,
)
from .metrics import (
    MetricsClient as MetricsClient,
)
from .metrics import (
    Sample as Sample,
)
from .shapes import (
    JobQueueStatus as JobQueueStatus,
)
from .shapes import (
    ModelDescription as ModelDescription,
)
from .shapes import (
    ModelEntry as ModelEntry,
)
from .shapes import (
    ModelPage as ModelPage,
)
from .shapes import (
    Status as Status,
)
from .shapes import (
    Worker as Worker,
)
from .tokens import (
    KeyFile as KeyFile,
)

__all__: list[str]
