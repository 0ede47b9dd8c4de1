"""128 clients who leave and come back, with good and bad bodies, and a worker killed on the way.

Clients that leave fill the queue with requests that nobody waits for, so others are refused (503). Whoever
asks again, as `predict(…, retries=)` does, gets the right answer. SOAK_SECONDS=120 makes it the long run.
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
import pytest

from tests.conftest import eventually
from tutorial_lib import ApiError, InferenceClient, NoAnswer, TimedOut, TorchServe

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
CLIENTS = 128
RETRIES = 12  # together half a minute to a minute
LONGEST_WAIT = 90.0  # seconds; a worker that comes back loads its model first

SUBJECTS = ("My flight", "The new album", "This phone", "The meeting", "Their support", "Our garden")
OPINIONS = ("is wonderful!", "is awful.", "is at ten tomorrow.", "made my day 😀", "broke again...")
TEXTS = [f"{subject} {opinion}" for subject in SUBJECTS for opinion in OPINIONS]
TEXTS += ["", "a" * 20_000, "great " * 500]

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
    json.dumps({"input": ["\ud800 is half a character"]}).encode(),
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
        while time.monotonic() < end:
            with InferenceClient(self.server.inference_address, token=self.server.token("inference")) as one:
                for _ in range(chance.randrange(1, 8)):
                    started = time.monotonic()
                    ask = chance.choices((self.good, self.bad, self.leave), (6, 2, 2))[0]
                    ask(one, chance)
                    self.longest = max(self.longest, time.monotonic() - started)

    def leave(self, client: InferenceClient, chance: random.Random) -> None:
        """Closes its connection before the answer comes."""
        try:
            client.predict("my_model", {"input": chance.sample(TEXTS, 3)}, timeout=0.02)
        except TimedOut:
            self.seen["left"] += 1
        except ApiError as error:
            self.seen[str(error.status)] += 1

    def good(self, client: InferenceClient, chance: random.Random) -> None:
        texts = chance.sample(TEXTS, chance.choice((1, 1, 1, 3)))
        try:
            labels = client.predict("my_model", {"input": texts}, timeout=LONGEST_WAIT, retries=RETRIES)
        except (ApiError, NoAnswer) as error:
            self.wrong.append(f"{texts}: {error}")
            return
        self.seen["good"] += 1
        if labels != [self.expected[text] for text in texts]:
            self.wrong.append(f"{texts}: {labels}")

    def bad(self, client: InferenceClient, chance: random.Random) -> None:
        body = chance.choice(BAD)
        try:
            answer = client.predict("my_model", body, timeout=LONGEST_WAIT, retries=RETRIES)
            self.wrong.append(f"{body!r} got {answer}")
        except ApiError as error:
            self.seen["bad"] += 1
            if error.status != 400 or error.kind != "BadRequest":
                self.wrong.append(f"{body!r}: {error}")


def ready(server: TorchServe) -> set[int]:
    return {w["pid"] for w in server.management.describe("my_model")["workers"] if w["status"] == "READY"}


@pytest.mark.timeout(int(SECONDS + 4 * LONGEST_WAIT))
def test_128_clients_who_leave_and_come_back_and_a_killed_worker(mar: Path) -> None:
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
                client.result(timeout=SECONDS + 2 * LONGEST_WAIT)  # nothing hangs

        assert not soak.wrong, soak.wrong[:5]
        assert soak.seen["good"] > CLIENTS and min(soak.seen["bad"], soak.seen["left"]) > CLIENTS / 4
        deadline = time.monotonic() + LONGEST_WAIT
        while len(ready(server) - {victim}) < 2:
            assert time.monotonic() < deadline, "the killed worker did not come back"
            time.sleep(0.2)
        eventually(lambda: not server.management.describe("my_model")["jobQueueStatus"]["pendingRequests"])
        print(f"{dict(soak.seen)}, the longest took {soak.longest:.1f} s")
