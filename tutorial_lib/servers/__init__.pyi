from .base import ModelServer as ModelServer
from .java import (
    Java as Java,
)
from .java import (
    find_java as find_java,
)
from .logs import (
    first_traceback as first_traceback,
)
from .logs import (
    parse_context as parse_context,
)
from .this_server import client_of_this_server as client_of_this_server
from .torchserve import TorchServe as TorchServe

__all__: list[str]
