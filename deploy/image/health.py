"""Checks for a READY worker: exit status 0 and a line on how many, or 1 and a line on what is wrong."""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Files with the number of processes that the kernel killed for memory: cgroup v2's, then v1's.
OOM_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main() -> int:
    if "--memory" in sys.argv:
        print(memory())
        return 0
    model = os.environ["MODEL_NAME"]
    try:
        get("http://127.0.0.1:8080/ping")
        workers = get(f"http://127.0.0.1:9081/models/{model}")[0]["workers"]
    except (OSError, ValueError, LookupError) as error:  # URLError is an OSError
        said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else error
        print(f"The server has no answer for {model}: {said}. {memory()}")
        return 1
    ready = sum(worker["status"] == "READY" for worker in workers)
    print(f"{ready} of {len(workers)} workers of {model} are READY." + ("" if ready else f" {memory()}"))
    return 0 if ready else 1


def get(url: str):
    with urllib.request.urlopen(url, timeout=4) as answer:
        return json.load(answer)


def memory() -> str:
    """Says how often the memory limit was hit, which no log tells."""
    for file in map(Path, OOM_COUNTS):
        if file.is_file():
            counts = dict(line.split() for line in file.read_text().splitlines() if len(line.split()) == 2)
            kills = int(counts.get("oom_kill", 0))
            return (
                f"The memory limit was hit: {kills} processes were killed." if kills else "Memory was enough."
            )
    return "Whether memory was enough is not known."


if __name__ == "__main__":
    sys.exit(main())
