from .container import Container as Container
from .container import Health as Health
from .engine import Engine as Engine
from .engine import find_engine as find_engine
from .image import Image as Image

__all__: list[str]
