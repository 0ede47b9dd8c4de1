"""64 clients with good and bad bodies at once, and a worker killed on the way.

SOAK_SECONDS=120 makes it the long run; 20 is enough to see each thing happen.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tutorial_lib import ApiError, InferenceClient, TorchServe

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
CLIENTS = 64
LONGEST_WAIT = 90.0  # seconds; a worker that comes back loads its model first

SUBJECTS = ("My flight", "The new album", "This phone", "The meeting", "Their support", "Our garden")
OPINIONS = ("is wonderful!", "is awful.", "is at ten tomorrow.", "made my day 😀", "broke again...")
TEXTS = [f"{subject} {opinion}" for subject in SUBJECTS for opinion in OPINIONS]
TEXTS += ["", "a" * 20_000, "great " * 500, "\ud800 is half a character"]

BAD = (
    b"{",
    b"\xff\xfe",
    b"",
    json.dumps({"inputs": ["a"]}).encode(),
    json.dumps({"input": "one text"}).encode(),
    json.dumps({"input": ["a", None]}).encode(),
    json.dumps({"input": ["a"], "scores": 1}).encode(),
    json.dumps({"input": ["a"] * 1001}).encode(),
    json.dumps([["deep"]]).encode(),
)


@dataclass
class Soak:
    """What the clients saw; anything that is not as it should be goes into `wrong`."""

    server: TorchServe
    expected: dict[str, str]
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest: float = 0

    def client(self, seed: int, end: float) -> None:
        chance = random.Random(seed)
        one = InferenceClient(self.server.inference_address, token=self.server.token("inference"))
        while time.monotonic() < end:
            started = time.monotonic()
            (self.bad if chance.random() < 0.25 else self.good)(one, chance)
            self.longest = max(self.longest, time.monotonic() - started)
        one.close()

    def good(self, client: InferenceClient, chance: random.Random) -> None:
        texts = chance.sample(TEXTS, chance.choice((1, 1, 1, 3)))
        try:
            labels = client.predict("my_model", {"input": texts}, timeout=LONGEST_WAIT, retries=3)
        except ApiError as error:
            self.wrong.append(f"{texts}: {error}")
            return
        self.seen["good"] += 1
        if labels != [self.expected[text] for text in texts]:
            self.wrong.append(f"{texts}: {labels}")

    def bad(self, client: InferenceClient, chance: random.Random) -> None:
        body = chance.choice(BAD)
        try:
            answer = client.predict("my_model", body, timeout=LONGEST_WAIT, retries=3)
            self.wrong.append(f"{body!r} got {answer}")
        except ApiError as error:
            self.seen["bad"] += 1
            if error.status != 400 or error.kind != "BadRequest":
                self.wrong.append(f"{body!r}: {error}")


def ready(server: TorchServe) -> set[int]:
    return {w["pid"] for w in server.management.describe("my_model")["workers"] if w["status"] == "READY"}


def test_64_clients_and_a_killed_worker(mar: Path) -> None:
    with TorchServe(models={"my_model": mar}) as server:
        server.management.scale("my_model", min_worker=2)
        expected = {text: server.inference.predict("my_model", {"input": [text]})[0] for text in TEXTS}
        assert set(expected.values()) == {"Positive", "Neutral", "Negative"}

        soak = Soak(server, expected)
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(soak.client, seed, end) for seed in range(CLIENTS)]
            time.sleep(SECONDS / 3)
            victim = min(ready(server))
            psutil.Process(victim).kill()
            for client in clients:
                client.result(timeout=SECONDS + LONGEST_WAIT)  # nothing hangs

        assert not soak.wrong, soak.wrong[:5]
        assert soak.seen["good"] > CLIENTS and soak.seen["bad"] > CLIENTS / 4
        deadline = time.monotonic() + LONGEST_WAIT
        while len(ready(server) - {victim}) < 2:
            assert time.monotonic() < deadline, "the killed worker did not come back"
            time.sleep(0.2)
        assert server.management.describe("my_model")["jobQueueStatus"]["pendingRequests"] == 0
        print(f"{soak.seen['good']} good, {soak.seen['bad']} bad, the longest took {soak.longest:.1f} s")
