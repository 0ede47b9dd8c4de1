"""Measures the course's way of serving against others, on this machine, in one run: `make bench`.

python benchmarks/run.py                       both models, three rounds: about 25 minutes on 2 cores
python benchmarks/run.py --models embedded     the small one alone

All contenders of a model are there at once, suspended but for the one that is asked. They are asked in turn,
and again (A B C A B C …), so that a slow minute of the machine hits them all; what is compared are ratios
within a round. Results: results.md and results.json here, and the plot notebooks/benchmark.svg.
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
from functools import partial
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
    ROOT,
    InProcess,
    Ours,
    Running,
    article,
    bentoml,
    free_port,
    litserve,
    ours,
    ray_serve,
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
SETTINGS = {
    "ours, float32": Ours({}),
    "ours, bfloat16": Ours({"dtype": "bfloat16"}),
    "ours, ONNX int8": Ours({"backend": "onnx"}),
}
BEST = "ours, ONNX int8"
ARTICLE = {
    "article, as it stands": (None, None),
    "article, 1 worker": (1, None),
    "article, a 1-thread worker a core": (CORES, 1),
}
OTHERS = {"LitServe": litserve, "Ray Serve": ray_serve, "BentoML": bentoml}
TITLES = {
    "embedded": "The embedded model (3 layers of 384)",
    "bertweet": "BERTweet's size (12 layers of 768, random weights)",
}
# How many texts, seconds of each measurement, and of the load before the first: Java compiles what it runs
# often, and a request costs TorchServe five times as much in its first seconds as after twenty.
MODELS = {"embedded": (500, 4.0, 12.0), "bertweet": (64, 6.0, 8.0)}


def make_model(name: str, folder: Path) -> Path:
    """The embedded model, or one of BERTweet's architecture and size with random weights."""
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


def throughput(name: str, model_dir: Path, work: Path, rounds: int) -> dict[str, pd.DataFrame]:
    """One row for each round and contender; and what the best of ours costs."""
    count, seconds, first = MODELS[name]
    texts = [tweet.text for tweet in sample_tweets(count)]
    labels = PlainModel(model_dir, CORES)(texts)
    rows = []
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        for contender, context in contenders().items():
            folder = fresh(work / re.sub(r"\W+", "_", contender))
            one = running[contender] = stack.enter_context(context(model_dir, folder))
            stack.callback(resume, one.pid)
            suspend(one.pid)
            say(f"{contender} is there")
        limits = {
            setting.replace("ours", "in process"): stack.enter_context(
                InProcess(model_dir, fresh(work / f"in_process_{number}"), SETTINGS[setting])
            )
            for number, setting in enumerate(("ours, float32", BEST))
        }
        for number in range(rounds):
            for contender, one in running.items():
                resume(one.pid)
                found = load_test(
                    one.url, texts, labels=labels, headers=one.headers, body=one.body, concurrency=CLIENTS,
                    duration=seconds, warmup=seconds / 4 if number else first, timeout=120,
                ).iloc[0]  # fmt: skip
                row = {
                    key: found[key]
                    for key in ("requests_per_s", "p50_ms", "p99_ms", "errors", "wrong", "requests")
                }
                rows.append({"round": number, "contender": contender, **row})
                say(
                    f"round {number + 1}: {contender:34} {found['requests_per_s']:8.1f}/s {found['outcomes']}"
                )
            for contender, process in limits.items():
                rate = process.measure(seconds, batch_size=32)["texts_per_s"]
                rows.append({"round": number, "contender": contender, "requests_per_s": rate})
                say(f"round {number + 1}: {contender:34} {rate:8.1f}/s")
        resume(running[BEST].pid)
        spent = costs(running[BEST], texts, seconds)
    return {"throughput": pd.DataFrame(rows), "costs": spent}


def costs(one: Running, texts: list[str], seconds: float) -> pd.DataFrame:
    """Milliseconds of CPU for a request under full load: in the workers, the JVM, and the clients here."""
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
    """Stops a contender's processes: even an idle one costs others time."""
    for process in family(pid):
        process.suspend()


def resume(pid: int) -> None:
    for process in family(pid):
        process.resume()


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def contenders() -> dict[str, Callable[[Path, Path], Any]]:
    return {
        **{name: partial(article, workers=w, threads=t) for name, (w, t) in ARTICLE.items()},
        **{name: partial(ours, setting=setting) for name, setting in SETTINGS.items()},
        **OTHERS,
    }


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# One client, a start, an edit


def one_client(model_dir: Path, work: Path, rounds: int) -> pd.DataFrame:
    """Median milliseconds of one request at a time, through the server and in process, in turn.

    A server that gathers batches waits for a second request, a millisecond at least; with batchSize 1 it
    does not.
    """
    texts = [tweet.text for tweet in sample_tweets(60)]
    batches = SETTINGS[BEST]._replace(workers=1)
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
    """Seconds from nothing to a READY worker: `TorchServe(…)`, and the bare launcher, in turn."""
    mar = build_archive(
        "starts", handler=ROOT / "handler.py", model_dir=model_dir, export_path=fresh(work / "starts"),
        config_file=SETTINGS["ours, float32"]._replace(workers=1).config(work),
    )  # fmt: skip
    rows = []
    for _ in range(rounds):
        began = time.perf_counter()
        with bare_launcher(mar):
            bare = time.perf_counter() - began
        began = time.perf_counter()
        with TorchServe(models={"my_model": mar}):
            library = time.perf_counter() - began
        rows.append({"TorchServe(…)": library, "bare launcher": bare})
    return pd.DataFrame(rows)


@contextlib.contextmanager
def bare_launcher(mar: Path) -> Iterator[str]:
    """`torchserve --start`, and a look every 0.1 s for a READY worker; gives its address."""
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
    """Seconds from an edit of the handler to the next answer: the article's loop, and `redeploy`, in turn."""
    store, body = fresh(work / "edits"), {"input": ["great day"]}
    # The folder as the article has it: without the ONNX file, which would be packed too.
    lean = work / "lean"
    shutil.copytree(model_dir, lean, ignore=shutil.ignore_patterns("*.onnx"))
    parts: dict[str, Any] = {"handler": ROOT / "handler.py", "model_dir": lean, "export_path": store}
    first = build_archive("first", **parts, archive_format="no-archive")
    rows = []
    with TorchServe(models={"my_model": first}, model_api=True, startup_timeout=300) as server:
        for _ in range(rounds):
            began = time.perf_counter()
            mar = build_archive("again", **parts, archive_format="default")
            with bare_launcher(mar) as address:
                requests.post(f"{address}/predictions/my_model", json=body, timeout=120).raise_for_status()
                loop = time.perf_counter() - began
            began = time.perf_counter()
            server.redeploy("my_model", handler=ROOT / "handler.py", timeout=300)
            server.inference.predict("my_model", body)
            rows.append({"article's loop": loop, "redeploy": time.perf_counter() - began})
    return pd.DataFrame(rows)


# Results


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds, and how many times as many answers the best of ours gives, within a round."""
    rates = found.pivot(index="round", columns="contender", values="requests_per_s")
    result = found.groupby("contender", sort=False)[["requests_per_s", "p50_ms", "p99_ms"]].median()
    result["ours is"] = rates.rdiv(rates[BEST], axis=0).median()
    totals = found.groupby("contender", sort=False)[["wrong", "errors", "requests"]].sum()
    result["not as float32, %"] = 100 * totals["wrong"] / totals["requests"]
    result["errors"] = totals["errors"]
    return result


def ratios(found: pd.DataFrame) -> dict[str, float]:
    """The targets that are ratios of throughput: medians of ratios within a round."""
    rates = found.pivot(index="round", columns="contender", values="requests_per_s")
    best_article = rates[list(ARTICLE)].median().idxmax()
    against = {
        f"the article's handler at its best ({best_article.removeprefix('article, ')})": best_article,
        "the article's handler as it stands": "article, as it stands",
        **{name: name for name in OTHERS},
        "the same code in process": BEST.replace("ours", "in process"),
    }
    return {text: float((rates[BEST] / rates[name]).median()) for text, name in against.items()}


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
    bento = subprocess.run([BENTOML, "--version"], capture_output=True, text=True)
    number = bento.stdout.strip().rpartition(" ")[2]
    return f"{CORES} cores of {cpu}, no GPU; Python {platform.python_version()}, {versions}, bentoml {number}"


def markdown(results: dict[str, dict[str, Any]], rounds: int) -> str:
    parts = [
        "# What was measured",
        f"`make bench` wrote this: {machine()}. {CLIENTS} clients, one text a request, {rounds} rounds in "
        "turn; medians. Every label is compared with what plain float32 torch says, and only equal ones "
        'count. "ours is" says how many times as many answers the best of ours gives in the same round.',
    ]
    for name, one in results.items():
        parts += [f"## {TITLES[name]}", to_markdown(table(one["throughput"]))]
        parts.append("Ours, ONNX int8, in the same round, is:")
        parts.append(
            "\n".join(f"- {value:.2f} × {text}" for text, value in ratios(one["throughput"]).items())
        )
        workers, jvm, clients = one["costs"].iloc[0]
        parts.append(
            f"Of a request's CPU, {workers:.2f} ms are the workers', {jvm:.2f} the JVM's and {clients:.2f} "
            "the clients', which share the cores; the last two are what being a server costs."
        )
        alone, gathered, single = one["one client"].median()[
            ["in process", "served in batches", "served one by one"]
        ]
        parts.append(
            f"One client waits {single:.1f} ms (median) with batchSize 1, and {gathered:.1f} ms where the "
            f"server looks for more requests for a millisecond; in process it takes {alone:.1f} ms."
        )
        if "starts" in one:
            library, bare, ratio = both(one["starts"])
            parts.append(
                f"From nothing to a READY worker: `TorchServe(…)` {library:.2f} s, the bare launcher "
                f"{bare:.2f} s ({ratio:.2f} ×)."
            )
        if "edits" in one:
            loop, redeploy, ratio = both(one["edits"])
            parts.append(
                f"From an edit of the handler to the next answer: the article's loop {loop:.1f} s, "
                f"`redeploy` {redeploy:.1f} s (1/{ratio:.1f})."
            )
    return "\n\n".join(parts) + "\n"


def both(frame: pd.DataFrame) -> tuple[float, float, float]:
    """Medians of the two columns, and of their ratio within a round."""
    first, second = frame.iloc[:, 0], frame.iloc[:, 1]
    return first.median(), second.median(), (first / second).median()


def to_markdown(frame: pd.DataFrame) -> str:
    header = ["", "requests/s", "p50 ms", "p99 ms", "ours is", "not as float32, %", "errors"]
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
        1, len(results), figsize=(5.5 * len(results), 4.2), layout="constrained", squeeze=False
    )
    for axis, (name, one) in zip(axes[0], results.items(), strict=True):
        rates = table(one["throughput"])["requests_per_s"].iloc[::-1]
        kinds = {"article": "tab:gray", "ours": "tab:blue", "in process": "black"}
        colours = [
            next((c for kind, c in kinds.items() if label.startswith(kind)), "tab:orange")
            for label in rates.index
        ]
        bars = axis.barh(rates.index, rates, color=colours)
        axis.bar_label(bars, fmt="%.0f" if rates.min() > 20 else "%.1f", padding=3, fontsize=8)
        axis.set(
            title={"embedded": "embedded model", "bertweet": "BERTweet's size"}[name],
            xlabel="answers a second",
        )
        axis.margins(x=0.15)
    figure.savefig(file, metadata={"Date": None})


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures ways to serve a model.")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for results.md, .json and .svg")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        for name in args.models:
            work = fresh(Path(scratch) / name)
            say(f"model {name}")
            model_dir = make_model(name, work / "my_model")
            one: dict[str, Any] = throughput(name, model_dir, work, args.rounds)
            one["one client"] = one_client(model_dir, work, args.rounds)
            say("one client: done")
            if name == "embedded":
                one["starts"] = starts(model_dir, work, args.rounds)
            else:
                one["edits"] = edits(model_dir, work, max(1, args.rounds - 1))
            results[name] = one
            shutil.rmtree(work)
    frames = {
        name: {what: json.loads(f.to_json(orient="records")) for what, f in one.items()}
        for name, one in results.items()
    }
    (args.out / "results.json").write_text(json.dumps({"machine": machine(), **frames}, indent=1) + "\n")
    (args.out / "results.md").write_text(markdown(results, args.rounds))
    plot(results, args.out / "results.svg" if args.out != HERE else ROOT / "notebooks" / "benchmark.svg")
    print(markdown(results, args.rounds))


if __name__ == "__main__":
    main()
