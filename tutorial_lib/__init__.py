"""Takes a PyTorch model to production with TorchServe: export → archive → serve → predict.

>>> from tutorial_lib import TorchServe, build_archive, export_model

__init__.pyi lists the public names. A name's module is imported when the name is first used, so that
`from tutorial_lib import InferenceClient` does not import torch.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("torchserve-course")
    return _load(name)
