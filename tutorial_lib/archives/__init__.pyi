from .building import (
    build_archive as build_archive,
)
from .building import (
    lay_out as lay_out,
)
from .building import (
    new_version as new_version,
)
from .model_files import ModelFiles as ModelFiles
from .reading import (
    archive_sha256 as archive_sha256,
)
from .reading import (
    check_files as check_files,
)
from .reading import (
    check_sha256 as check_sha256,
)
from .reading import (
    copy_checked as copy_checked,
)
from .reading import (
    python_files as python_files,
)
from .reading import (
    read_code as read_code,
)
from .reading import (
    read_manifest as read_manifest,
)
from .reading import (
    read_settings as read_settings,
)
from .reading import (
    unpack as unpack,
)

__all__: list[str]
