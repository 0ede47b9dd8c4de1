"""TorchServe's worker without its sockets: a handler is loaded, and answers batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
