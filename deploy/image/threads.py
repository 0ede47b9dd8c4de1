"""Prints how many threads torch gets in each worker: the container's cores divided by the model's workers."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import yaml

CGROUP, ARCHIVE = Path("/sys/fs/cgroup"), Path("/srv/model_store/model.mar")
# Files with a CPU limit, microseconds of each period: cgroup v2's, then v1's. "max" and -1 are no limit.
LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


def threads(cgroup: Path = CGROUP, archive: Path = ARCHIVE) -> int:
    return max(1, cores(cgroup) // workers(archive))


def cores(cgroup: Path) -> int:
    """Returns the whole cores that this container may use; nproc and torch don't see a CPU limit."""
    allowed = len(os.sched_getaffinity(0))
    for names in LIMITS:
        files = [cgroup / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            if quota not in ("max", "-1"):
                return max(1, min(allowed, int(quota) // int(period)))
    return allowed


def workers(archive: Path) -> int:
    """Returns how many workers the archive's model config asks for: TorchServe starts minWorkers."""
    with zipfile.ZipFile(archive) as mar:
        config = json.loads(mar.read("MAR-INF/MANIFEST.json"))["model"].get("configFile")
        settings = config and yaml.safe_load(mar.read(config))
    return max(1, int((settings or {}).get("minWorkers", 1)))


if __name__ == "__main__":
    print(threads())
