from .owner import preloaded as preloaded

__all__: list[str]
