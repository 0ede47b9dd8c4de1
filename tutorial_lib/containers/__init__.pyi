from .container import (
    Container as Container,
)
from .container import (
    Engine as Engine,
)
from .container import (
    Health as Health,
)
from .container import (
    Image as Image,
)
from .container import (
    find_engine as find_engine,
)

__all__: list[str]
