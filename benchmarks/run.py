"""Measures the course's way of serving against others, on this machine, in one run: `make bench`.

python benchmarks/run.py                       both models, three rounds: about half an hour on 2 cores
python benchmarks/run.py --models embedded     only the small model
python benchmarks/run.py --only starts edits   these parts again; the rest stays as an earlier run found it

Two tables answer two questions: what the handler brings (the course's against the article's, both on
TorchServe; README.md names the article), and what the server brings (the course's handler, with the same
settings, on several servers).

All contenders of a model run at once, but all except the measured one are suspended. They are measured in
turn, several times (A B C A B C …), so that a slow minute of the machine affects them all; the tables compare
ratios within a round. The results go into results.md, results.json and the plot notebooks/benchmark.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import psutil
import requests
import torch
from contenders import (
    BENTOML,
    CORES,
    HERE,
    MLSERVER,
    ROOT,
    InProcess,
    Ours,
    Running,
    article,
    bentoml,
    free_port,
    litserve,
    mlserver,
    ours,
    plain_ray_serve,
    ray_serve,
    shipped,
)
from plain_model import PlainModel
from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.utils import logging

from tutorial_lib import (
    TorchServe,
    build_archive,
    export_model,
    export_onnx,
    find_java,
    load_test,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))
from course.texts import sample_tweets

matplotlib.use("agg")
logging.disable_progress_bar()

CLIENTS = 64
CROWDS = (1, 64, 128, 256)  # a replica has 64 places: twice its batch
INT8 = Ours({"backend": "onnx"})
FLOAT32 = Ours({"backend": "torch"})
HANDLERS: dict[str, Callable[[Path, Path], Any]] = {
    "article, as it stands": partial(article, workers=None, threads=None),
    "article, 1 worker": partial(article, workers=1, threads=None),
    "article, a 1-thread worker a core": partial(article, workers=CORES, threads=1),
    "ours, as shipped (1 worker)": shipped,
    "ours, float32": partial(ours, setting=FLOAT32),
    "ours, bfloat16": partial(ours, setting=Ours({"backend": "torch", "dtype": "bfloat16"})),
    "ours, ONNX int8": partial(ours, setting=INT8),
}
SERVERS: dict[str, Callable[[Path, Path], Any]] = {
    "TorchServe": partial(ours, setting=INT8),
    "Ray Serve, HAProxy": partial(ray_serve, setting=INT8),
    "Ray Serve, its proxy": partial(plain_ray_serve, setting=INT8),
    "LitServe": partial(litserve, setting=INT8),
    "BentoML": partial(bentoml, setting=INT8),
    "MLServer": partial(mlserver, setting=INT8),
}
FAST = ("avx512_vnni", "avx512_bf16", "amx_bf16")  # for int8 and bfloat16
BEST, LIMIT = "ours, ONNX int8", "in process"
TITLES = {
    "embedded": "The embedded model (3 layers of 384)",
    "bertweet": "BERTweet's size (12 layers of 768, random weights)",
}
# How many texts, the seconds of each measurement, and the seconds of load before the first one. Java compiles
# the code that runs often: a request costs TorchServe five times as much at first as after twenty seconds.
MODELS = {"embedded": (500, 4.0, 12.0), "bertweet": (64, 6.0, 8.0)}
# What is measured, and for which models.
PARTS = {
    "handlers": ("embedded", "bertweet"),
    "servers": ("embedded", "bertweet"),
    "limit": ("embedded", "bertweet"),
    "one client": ("embedded", "bertweet"),
    "crowds": ("embedded",),
    "starts": ("embedded",),
    "edits": ("bertweet",),
}


def make_model(name: str, folder: Path) -> Path:
    """Makes the embedded model, or one of BERTweet's architecture and size with random weights."""
    export_model("embedded", folder)
    if name == "bertweet":
        torch.manual_seed(0)
        labels = {0: "NEG", 1: "NEU", 2: "POS"}
        config = RobertaConfig(
            vocab_size=64_001, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
            intermediate_size=3072, max_position_embeddings=130, type_vocab_size=1, id2label=labels,
            label2id={label: i for i, label in labels.items()},
        )  # fmt: skip
        model = RobertaForSequenceClassification(config)
        with torch.no_grad():
            model.classifier.out_proj.weight.mul_(20)  # so that texts differ by more than rounding
        model.save_pretrained(folder)
    shutil.copy(ROOT / "index_to_name.json", folder)
    export_onnx(folder)
    return folder


# Throughput


@cache
def labelled(name: str, model_dir: Path) -> tuple[list[str], list[str]]:
    """Returns a model's texts, and the labels that plain float32 torch gives them."""
    texts = [tweet.text for tweet in sample_tweets(MODELS[name][0])]
    return texts, PlainModel(model_dir, CORES)(texts)


def handlers(name: str, model_dir: Path, work: Path, rounds: int) -> dict[str, pd.DataFrame]:
    """Measures the handlers, a row for each round and contender, and what our best one costs."""
    spent: list[pd.DataFrame] = []

    def last(running: dict[str, Running]) -> None:
        spent.append(costs(running[BEST], labelled(name, model_dir)[0], MODELS[name][1]))

    rows = in_turns(HANDLERS, name, model_dir, fresh(work / "handlers"), rounds, last)
    return {"handlers": rows, "costs": spent[0]}


def in_turns(
    contenders: dict[str, Callable[[Path, Path], Any]],
    name: str,
    model_dir: Path,
    work: Path,
    rounds: int,
    last: Callable[[dict[str, Running]], object] = lambda running: None,
) -> pd.DataFrame:
    """Measures contenders in turn: a row for each round and contender, and for the same code in process.

    `last` is called at the end, with the running contenders.
    """
    _, seconds, first = MODELS[name]
    texts, labels = labelled(name, model_dir)
    rows = []
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        for contender, context in contenders.items():
            folder = fresh(work / re.sub(r"\W+", "_", contender))
            one = running[contender] = stack.enter_context(context(model_dir, folder))
            stack.callback(resume, one.pid)
            suspend(one.pid)
            say(f"{contender} is there")
        limit = stack.enter_context(InProcess(model_dir, fresh(work / "in_process"), INT8))
        for number in range(rounds):
            for contender, one in running.items():
                wake(one)
                found = load_test(
                    one.url, texts, labels=labels, headers=one.headers, body=one.body, answer=one.answer,
                    concurrency=CLIENTS, duration=seconds, timeout=120,
                    warmup=seconds / 4 if number else first,
                ).iloc[0]  # fmt: skip
                suspend(one.pid)
                row = {
                    key: found[key]
                    for key in ("requests_per_s", "p50_ms", "p99_ms", "errors", "wrong", "requests")
                }
                rows.append({"round": number, "contender": contender, **row})
                say(
                    f"round {number + 1}: {contender:34} {found['requests_per_s']:8.1f}/s {found['outcomes']}"
                )
            rate = limit.measure(seconds, batch_size=32)["texts_per_s"]
            rows.append({"round": number, "contender": LIMIT, "requests_per_s": rate})
            say(f"round {number + 1}: {LIMIT:34} {rate:8.1f}/s")
        last(running)
    return pd.DataFrame(rows)


def crowds(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Measures TorchServe with one worker and Ray Serve with one replica, per round and number of clients."""
    texts = [tweet.text for tweet in sample_tweets(500)]
    alone, rows = INT8._replace(workers=1), []
    ways = {"TorchServe": ours, "Ray Serve, HAProxy": ray_serve}
    with contextlib.ExitStack() as stack:
        running = {}
        for name, context in ways.items():
            folder = fresh(work / re.sub(r"\W+", "_", f"crowd {name}"))
            running[name] = stack.enter_context(context(model_dir, folder, alone))
            stack.callback(resume, running[name].pid)
            suspend(running[name].pid)
        for number in range(rounds):
            for name, one in running.items():
                wake(one)
                load = partial(load_test, one.url, texts, headers=one.headers, timeout=60)
                load(concurrency=CLIENTS, duration=1, warmup=1 if number else 12)
                for clients in CROWDS:
                    found = load(concurrency=clients, duration=4, warmup=1).iloc[0]
                    row = {key: found[key] for key in ("requests_per_s", "p50_ms", "errors", "requests")}
                    rows.append({"round": number, "server": name, "clients": clients, **row})
                    say(f"round {number + 1}: {name:22} {clients:4} clients {found['requests_per_s']:8.1f}/s")
                suspend(one.pid)
    return pd.DataFrame(rows)


def limit(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Measures the handler in TorchServe and in process, in turn.

    The clients share the cores with the server, or have a core of their own. 64 clients are two full batches,
    but a worker rarely gets one: it takes what has come, while clients with new answers only begin to send.
    Twice as many clients keep some requests in line.
    """
    texts, cores = [tweet.text for tweet in sample_tweets(500)], sorted(os.sched_getaffinity(0))
    ways = {
        "shared": (cores, cores, INT8),
        "apart": (cores[:-1], cores[-1:], INT8._replace(workers=CORES - 1)),
    }
    rows = []
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        running = {}
        for way, (own, _, setting) in ways.items():
            os.sched_setaffinity(0, own)  # for all that is started now
            alone = stack.enter_context(InProcess(model_dir, fresh(work / f"{way}_in_process"), setting))
            one = stack.enter_context(ours(model_dir, fresh(work / way), setting))
            running[way] = alone, one
            stack.callback(resume, one.pid)
            suspend(one.pid)
        for number in range(rounds):
            for way, (_, others, setting) in ways.items():
                alone, one = running[way]
                os.sched_setaffinity(0, others)
                wake(one)
                load = partial(load_test, one.url, texts, headers=one.headers, timeout=60)
                if not number:  # on fewer cores Java takes longer to compile what runs often
                    load(concurrency=CLIENTS, duration=1, warmup=40)
                for clients in (CLIENTS, 2 * CLIENTS):
                    in_process = alone.measure(4, batch_size=32, processes=setting.workers)["texts_per_s"]
                    served = load(concurrency=clients, duration=4, warmup=1).iloc[0]["requests_per_s"]
                    rows.append({"cores": way, "clients": clients, "TorchServe": served, LIMIT: in_process})
                    say(f"limit: {rows[-1]}")
                suspend(one.pid)
    return pd.DataFrame(rows)


def costs(one: Running, texts: list[str], seconds: float) -> pd.DataFrame:
    """Measures the CPU milliseconds of a request under full load: in the workers, the JVM and the clients."""
    wake(one)
    served = family(one.pid)
    jvm = [process for process in served if process.name().startswith("java")]
    workers = [process for process in served if process not in jvm]
    processes = {"workers": workers, "JVM": jvm, "clients": [psutil.Process()]}

    def used() -> dict[str, float]:
        return {who: sum(sum(p.cpu_times()[:2]) for p in them) for who, them in processes.items()}

    before = used()
    found = load_test(
        one.url, texts, headers=one.headers, body=one.body, concurrency=CLIENTS, duration=seconds, warmup=0
    )
    asked = found.iloc[0]["requests"]
    return pd.DataFrame([{who: 1000 * (now - before[who]) / asked for who, now in used().items()}])


def suspend(pid: int) -> None:
    """Suspends a contender's processes, because even an idle contender costs the others time."""
    for process in family(pid):
        process.suspend()


def resume(pid: int) -> None:
    for process in family(pid):
        process.resume()


def wake(one: Running) -> None:
    """Resumes a contender, and waits until all its processes answer.

    After minutes of pause, the first batch that a worker gets may be lost. So as many requests as clients
    ask at once: enough for a batch in each worker.
    """
    resume(one.pid)
    until = time.monotonic() + 120
    with ThreadPoolExecutor(CLIENTS) as pool:
        while not all(pool.map(lambda _: one.is_there(), range(CLIENTS))):
            if time.monotonic() > until:
                raise RuntimeError(f"{one.url} does not answer after its pause")


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# One client, a start, an edit


def one_client(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Measures median milliseconds of one request at a time, through the server and in process, in turn.

    A server that gathers batches waits for a second request, at least a millisecond; with batchSize 1 it
    does not wait.
    """
    texts = [tweet.text for tweet in sample_tweets(60)]
    batches = INT8._replace(workers=1)
    settings = {"served in batches": batches, "served one by one": batches._replace(batch_size=1)}
    rows = []
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(InProcess(model_dir, fresh(work / "latency_in_process"), batches))
        running = {}
        for name, setting in settings.items():
            folder = fresh(work / name.replace(" ", "_"))
            running[name] = stack.enter_context(ours(model_dir, folder, setting))
        for number in range(rounds):
            row = {"in process": alone.measure(3, batch_size=1, processes=1)["p50_ms"]}
            for name, one in running.items():
                found = load_test(
                    one.url, texts, headers=one.headers, concurrency=1, duration=3, warmup=1 if number else 10
                )
                row[name] = found.iloc[0]["p50_ms"]
            rows.append(row)
    return pd.DataFrame(rows)


def starts(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Measures the seconds from nothing to a READY worker, in turn: ours with `TorchServe(…)`, preloaded too,
    and ours and the article's handler by the bare launcher."""
    alone = FLOAT32._replace(workers=1)
    own = build_archive(
        "starts", handler=ROOT / "handler.py", model_dir=model_dir, export_path=fresh(work / "starts"),
        config_file=alone.config(work),
    )  # fmt: skip
    theirs = build_archive(
        "article", handler=HERE / "article_handler.py", model_dir=model_dir, export_path=work / "starts"
    )

    ways: dict[str, Callable[[], Any]] = {
        "TorchServe(…)": lambda: TorchServe(models={"my_model": own}),
        "TorchServe(…, preload=True)": lambda: TorchServe(models={"my_model": own}, preload=True),
        "bare launcher": lambda: bare_launcher(own),
        "article's handler, bare launcher": lambda: bare_launcher(theirs),
    }
    rows = []
    for _ in range(rounds):
        row = {}
        for name, start in ways.items():
            began = time.perf_counter()
            with start():
                row[name] = time.perf_counter() - began
        say(f"starts: {row}")
        rows.append(row)
    return pd.DataFrame(rows)


@contextlib.contextmanager
def bare_launcher(mar: Path) -> Iterator[str]:
    """Runs `torchserve --start`, looks every 0.1 s for a READY worker, and yields the inference address."""
    with tempfile.TemporaryDirectory(prefix="bare-", ignore_cleanup_errors=True) as folder:
        ports = [free_port() for _ in range(6)]
        names = ("inference", "management", "metrics")
        addresses = [f"http://127.0.0.1:{port}" for port in ports]
        lines = [f"{name}_address={address}" for name, address in zip(names, addresses, strict=False)]
        lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
        lines += [f"initial_worker_port={ports[5]}", "default_workers_per_model=1"]
        (Path(folder) / "config.properties").write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--disable-token-auth", "--ts-config", "config.properties"]
        command += ["--model-store", str(mar.parent.absolute()), "--models", f"my_model={mar.name}"]
        variables = {**os.environ, "JAVA_HOME": str(find_java().home), "TMPDIR": folder, "TEMP": folder}
        with (Path(folder) / "log").open("wb") as log:
            launcher = psutil.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            while not ready(addresses[1]):
                if launcher.poll() is not None:
                    raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
                time.sleep(0.1)
            yield addresses[0]
        finally:
            everything = launcher.children(recursive=True)
            for process in everything:
                if process.name().startswith("java"):
                    process.terminate()
            psutil.wait_procs([launcher, *everything], timeout=20)


def ready(management: str) -> bool:
    try:
        described = requests.get(f"{management}/models/my_model", timeout=5).json()
        return any(one["status"] == "READY" for one in described[0]["workers"])
    except (requests.RequestException, ValueError, LookupError):
        return False


def edits(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Measures the seconds from an edit of the handler to the next answer, in turn: the article's loop, and
    `redeploy` with and without preloading."""
    store, body = fresh(work / "edits"), {"input": ["great day"]}
    # The folder as the article has it: without the ONNX file, which would be packed too.
    lean = work / "lean"
    shutil.copytree(model_dir, lean, ignore=shutil.ignore_patterns("*.onnx"))
    parts: dict[str, Any] = {"handler": ROOT / "handler.py", "model_dir": lean, "export_path": store}
    first = build_archive("first", **parts, archive_format="no-archive")
    rows = []
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(
                TorchServe(models={"my_model": first}, model_api=True, preload=preload, startup_timeout=300)
            )
            for name, preload in (("redeploy", False), ("redeploy, preloaded", True))
        }
        for _ in range(rounds):
            began = time.perf_counter()
            mar = build_archive("again", **parts, archive_format="default")
            with bare_launcher(mar) as address:
                requests.post(f"{address}/predictions/my_model", json=body, timeout=120).raise_for_status()
                row = {"article's loop": time.perf_counter() - began}
            for name, server in running.items():
                began = time.perf_counter()
                server.redeploy("my_model", handler=ROOT / "handler.py", timeout=300)
                server.inference.predict("my_model", body)
                row[name] = time.perf_counter() - began
            say(f"edits: {row}")
            rows.append(row)
    return pd.DataFrame(rows)


# Results


def table(found: pd.DataFrame, best: str) -> pd.DataFrame:
    """Returns medians over the rounds, and how many times as many answers `best` gives within a round."""
    rates = found.pivot(index="round", columns="contender", values="requests_per_s")
    result = found.groupby("contender", sort=False)[["requests_per_s", "p50_ms", "p99_ms"]].median()
    result["times"] = rates.where(rates > 0).rdiv(rates[best], axis=0).median()
    totals = found.groupby("contender", sort=False)[["wrong", "errors", "requests"]].sum()
    result["not as float32, %"] = 100 * totals["wrong"] / totals["requests"]
    result["errors"] = totals["errors"]
    return result


def machine() -> str:
    packages = ("torch", "transformers", "torchserve", "onnxruntime", "litserve", "ray")
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    for name, program in (("bentoml", BENTOML), ("mlserver", MLSERVER)):
        found = subprocess.run([program, "--version"], capture_output=True, text=True)
        versions += f", {name} {found.stdout.strip().rpartition(' ')[2]}"
    able = [name for name in FAST if torch.cpu.get_capabilities().get(name)]
    cpu += f" (with {' and '.join(able)})" if able else f" (with none of {', '.join(FAST)})"
    return f"{CORES} cores of {cpu}, no GPU; Python {platform.python_version()}, {versions}"


def markdown(results: dict[str, dict[str, Any]]) -> str:
    fewest = min(one["handlers"]["round"].max() + 1 for one in results.values())
    parts = [
        "# What was measured",
        f"`make bench` wrote this: {machine()}. {CLIENTS} clients, one text a request, {fewest} rounds or "
        "more in turn; medians. Every label is compared with what plain float32 torch says, and only equal "
        "ones count as answers. Each table is of one run, each ratio of one round.",
        "Two questions, two tables. *What does the handler bring?* The course's handler and the article's, "
        "both on TorchServe. *What does the server bring?* The very same handler, with `backend: onnx` in "
        f"int8, on several servers, each with {CORES} processes for the model and batches of 32 at most, set "
        'up as its own documentation says. "In process" is that handler with no server around it.',
    ]
    for name, one in results.items():
        parts.append(f"## {TITLES[name]}")
        parts += ["### What the handler brings", to_markdown(table(one["handlers"], BEST), BEST)]
        parts += [
            "### What the server brings",
            to_markdown(table(one["servers"], "TorchServe"), "TorchServe"),
        ]
        parts.append("### What a request costs")
        workers, jvm, clients = one["costs"].iloc[0]
        parts.append(
            f"Ours with ONNX int8: of a request's CPU, {workers:.2f} ms are the workers', {jvm:.2f} the "
            f"JVM's and {clients:.2f} the clients', which share the cores; the last two are what being a "
            "server costs."
        )
        parts += ["### Against the limit", limit_table(one["limit"])]
        alone, gathered, single = one["one client"].median()[
            ["in process", "served in batches", "served one by one"]
        ]
        parts.append(
            f"One client waits {single:.1f} ms (median) with batchSize 1, and {gathered:.1f} ms where the "
            f"server looks for more requests for a millisecond; in process it takes {alone:.1f} ms."
        )
        if "crowds" in one:
            parts += ["### More clients than places", crowd_table(one["crowds"])]
        if "starts" in one:
            library, preloaded, bare, article_bare = one["starts"].median()
            parts.append(
                f"From nothing to a READY worker: `TorchServe(…)` {library:.2f} s, with `preload=True` "
                f"{preloaded:.2f} s, the bare launcher {bare:.2f} s; with the article's handler the bare "
                f"launcher takes {article_bare:.2f} s."
            )
        if "edits" in one:
            loop, redeploy, preloaded = one["edits"].median()
            parts.append(
                f"From an edit of the handler to the next answer: the article's loop {loop:.1f} s, "
                f"`redeploy` {redeploy:.1f} s, and {preloaded:.1f} s on a server with `preload=True`."
            )
    return "\n\n".join(parts) + "\n"


def limit_table(found: pd.DataFrame) -> str:
    """Makes a table of requests per second and of the part of what is possible in process, as medians."""
    found = found.assign(part=found["TorchServe"] / found[LIMIT])
    lines = [
        "Served and in process, in turn. Clients cost CPU too: they share the cores with the server, or have "
        "one of their own, and the rest is for TorchServe, or for the handler in process. "
        f"{CLIENTS} clients are as many as fit into the batches, {2 * CLIENTS} keep some in line. "
        "Of one value, a tenth is noise.",
        "| clients' cores | clients | TorchServe, requests/s | in process | served is |\n" + "|---" * 5 + "|",
    ]
    for key, row in found.groupby(["cores", "clients"], sort=False).median().iterrows():
        cells = *key, f"{row['TorchServe']:.0f}", f"{row[LIMIT]:.0f}", f"{row['part']:.2f} ×"
        lines[1] += "\n| " + " | ".join(map(str, cells)) + " |"
    return "\n\n".join(lines)


def crowd_table(found: pd.DataFrame) -> str:
    """Makes a table of answers per second and a client's median wait, by server and number of clients."""
    shape = partial(found.pivot_table, index="server", columns="clients", aggfunc="median", sort=False)
    rates, waits, refused = (shape(values=key) for key in ("requests_per_s", "p50_ms", "errors"))
    lines = [
        "One worker or one replica each, which has 64 places; a client waits in line for one. Answers a "
        "second, and the median wait:",
        "| clients | " + " | ".join(map(str, CROWDS)) + " |\n|---" + "|---" * len(CROWDS) + "|",
    ]
    for name in rates.index:
        cells = [
            f"{rates.loc[name, clients]:.0f} ({waits.loc[name, clients]:.0f} ms"
            + (f", {refused.loc[name, clients]:.0f} refused)" if refused.loc[name, clients] else ")")
            for clients in CROWDS
        ]
        lines[1] += f"\n| {name} | " + " | ".join(cells) + " |"
    return "\n\n".join(lines)


def to_markdown(frame: pd.DataFrame, best: str) -> str:
    header = ["", "requests/s", "p50 ms", "p99 ms", f"{best} is", "not as float32, %", "errors"]
    formats = ("{:.0f}", "{:.0f}", "{:.0f}", "{:.2f} ×", "{:.1f}", "{:.0f}")
    if frame["requests_per_s"].min() < 100:
        formats = ("{:.1f}", *formats[1:])
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, row in frame.iterrows():
        cells = ["" if pd.isna(v) else form.format(v) for v, form in zip(row, formats, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], file: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "bench"
    figure, axes = plt.subplots(
        2, len(results), figsize=(5.5 * len(results), 6.4), layout="constrained", squeeze=False
    )
    questions = {"handlers": ("the handler, on TorchServe", BEST), "servers": ("the server", "TorchServe")}
    for row, (kind, (question, best)) in zip(axes, questions.items(), strict=True):
        for axis, (name, one) in zip(row, results.items(), strict=True):
            rates = table(one[kind], best)["requests_per_s"].iloc[::-1]
            kinds = {"article": "tab:gray", "ours": "tab:blue", "TorchServe": "tab:blue", LIMIT: "black"}
            colours = [
                next((c for start, c in kinds.items() if label.startswith(start)), "tab:orange")
                for label in rates.index
            ]
            bars = axis.barh(rates.index, rates, color=colours)
            axis.bar_label(bars, fmt="%.0f" if rates.min() > 20 else "%.1f", padding=3, fontsize=8)
            model = {"embedded": "embedded model", "bertweet": "BERTweet's size"}[name]
            axis.set(title=f"{question}: {model}", xlabel="answers a second")
            axis.margins(x=0.15)
    figure.savefig(file, metadata={"Date": None})


def earlier(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what an earlier run measured."""
    found = json.loads((folder / "results.json").read_text())
    return {
        name: {what: pd.DataFrame(rows) for what, rows in one.items()}
        for name, one in found.items()
        if name in MODELS
    }


def measure(part: str, name: str, model_dir: Path, work: Path, rounds: int) -> dict[str, pd.DataFrame]:
    """Measures one part of `PARTS` for a model."""
    if part == "handlers":
        return handlers(name, model_dir, work, rounds)
    if part == "servers":
        return {part: in_turns(SERVERS, name, model_dir, fresh(work / part), rounds)}
    one: dict[str, Callable[[Path, Path, int], pd.DataFrame]]
    one = {"limit": limit, "one client": one_client, "crowds": crowds, "starts": starts, "edits": edits}
    return {part: one[part](model_dir, work, rounds)}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures ways to serve a model.")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these again, keep the rest")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for results.md, .json and .svg")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = earlier(args.out) if args.only else {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        for name in args.models:
            work = fresh(Path(scratch) / name)
            say(f"model {name}")
            model_dir = make_model(name, work / "my_model")
            for part, models in PARTS.items():
                if name in models and part in (args.only or PARTS):
                    results.setdefault(name, {}).update(measure(part, name, model_dir, work, args.rounds))
                    say(f"{part}: done")
            shutil.rmtree(work)
    frames = {
        name: {what: json.loads(f.to_json(orient="records")) for what, f in one.items()}
        for name, one in results.items()
    }
    (args.out / "results.json").write_text(json.dumps({"machine": machine(), **frames}, indent=1) + "\n")
    (args.out / "results.md").write_text(markdown(results))
    plot(results, args.out / "results.svg" if args.out != HERE else ROOT / "notebooks" / "benchmark.svg")
    print(markdown(results))


if __name__ == "__main__":
    main()
