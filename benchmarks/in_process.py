"""Measures the limit: the archive's handler on the same cores, with no server around it.

python in_process.py UNPACKED_ARCHIVE prints "ready". Then, for each line [seconds, batch size] on stdin, it
prints one line: the texts per second, and how long a batch took. `run.py` starts one for each core.
"""

import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path

from handler_model import HandlerModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))
from course.texts import sample_tweets


def main() -> None:
    model = HandlerModel(sys.argv[1])
    requests = [{"input": [tweet.text]} for tweet in sample_tweets(500)]
    stream = cycle(requests)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, size = json.loads(line)
        times = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            model(list(islice(stream, size)))
            times.append(time.perf_counter() - began)
        found = {
            "texts_per_s": size * len(times) / sum(times),
            "p50_ms": 1000 * sorted(times)[len(times) // 2],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
