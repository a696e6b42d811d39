"""Generation speed: our engine against transformers and llama.cpp, one stream and many, in interleaved rounds.

The model is tinyllm-cli-67m's shape with Llama's blocks (66.7 million parameters), since llama.cpp has no parallel
ones; weights are drawn from a seed. 16 tokens in, 128 out, greedy. Each contestant is a process of its own that keeps
its model and waits; in every round each takes its turn. The limit is the time that the processor takes to read as many
bytes as the weights have, measured in the same rounds (small weights may stay in a large cache). The kernels are
compiled into an empty folder by the first contestant, which says how long that took.

Then 1 to 64 requests at once: all tokens a second, the median time to the first token, times between tokens.
On a GPU: gpt2-124m and l20-edu-135m against transformers, ours not compiled.

Run: python benchmarks/decode_speed.py [--quick] [--rounds 5] [--levels 1 2 4 8 16 32 64] [--device auto]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from decode_contestants import WAYS, Job, decoder, write_gguf

from leveret.hardware.device import environment, pick_device
from leveret.inference.quantize import quantise
from leveret.model.config import ModelConfig
from leveret.recipe import load_recipe

VOCABULARIES = {"tinyllm-cli-67m": 32_000, "gpt2-124m": 50_257, "l20-edu-135m": 49_152}
FORMS = {"leveret": ["fp32", "bf16", "int8", "int4"], "transformers": ["fp32", "bf16"],
         "llama.cpp": ["f32", "bf16", "q8_0", "q4_0"]}  # fmt: skip
TOGETHER = ["leveret bf16", "leveret int8", "llama.cpp bf16", "llama.cpp q8_0"]
"""Contestants that also answer many requests at once, on a CPU; on a GPU all do."""
GOALS = {"bf16_vs_llamacpp": ("leveret bf16", "llama.cpp bf16", 0.8),
         "int8_vs_llamacpp_q8": ("leveret int8", "llama.cpp q8_0", 1.0)}  # fmt: skip


class Process:
    """A contestant in a process of its own."""

    def __init__(self, job: Job, cache: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.job = job
        self._pipe, theirs = context.Pipe()
        os.environ |= {"OMP_NUM_THREADS": str(job.threads), "LEVERET_CACHE": str(cache)}
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self.build_s: float = self._pipe.recv()

    def ask(self, count: int) -> Any:
        """0: (seconds, tokens) of one answer; else the figures of so many at once."""
        self._pipe.send(count)
        return self._pipe.recv()

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def serve(pipe: Any, job: Job) -> None:
    torch.set_num_threads(job.threads)
    contestant = WAYS[job.way](job)
    contestant.alone()
    pipe.send(contestant.build_s)
    while True:
        if count := pipe.recv():
            pipe.send(contestant.many(count))
        else:
            start = time.perf_counter()
            tokens = contestant.alone()
            pipe.send((time.perf_counter() - start, tokens))


def weight_bytes(config: ModelConfig) -> dict[str, int]:
    """Of our forms, each matrix once (a tied table too)."""
    sizes = {}
    for form in FORMS["leveret"]:
        model = decoder(config)
        if form.startswith("int"):
            quantise(model, form)  # type: ignore[arg-type]
        tensors = {t.data_ptr(): t for t in model.state_dict().values()}.values()
        sizes[form] = sum(t.nbytes for t in tensors) // (2 if form == "bf16" else 1)
    return sizes


def read_rate(size: int) -> float:
    """Bytes a second at which so many are read."""
    data = torch.ones(size // 4)
    data.sum()
    start = time.perf_counter()
    data.sum()
    return size / (time.perf_counter() - start)


def one_stream(shape: str, processes: list[Process], sizes: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    speeds: dict[str, list[float]] = {process.job.name: [] for process in processes}
    limits: dict[str, list[float]] = {form: [] for form in sizes}
    said: dict[str, list[int]] = {}
    for _ in range(rounds):
        for process in processes:
            seconds, said[process.job.name] = process.ask(0)
            speeds[process.job.name].append(process.job.new / seconds)
        for form, size in sizes.items():
            limits[form].append(read_rate(size) / size)
    print(f"{shape}: one stream, tokens a second, median of {rounds} rounds")
    rows = []
    for process in processes:
        job, own = process.job, speeds[process.job.name]
        row = {"shape": shape, "contestant": job.name, "tokens_per_second": round(statistics.median(own), 1)}
        row |= {"lowest": round(min(own), 1), "highest": round(max(own), 1), "build_s": round(process.build_s, 1)}
        line = f"  {job.name:<20} {row['tokens_per_second']:>7.1f}  ({row['lowest']:.1f} to {row['highest']:.1f})"
        if job.way == "leveret" and job.form in limits:
            row["limit"] = round(statistics.median(limits[job.form]), 1)
            line += (
                f"  {row['tokens_per_second'] / row['limit']:>5.0%} of the {row['limit']:.0f} of reading the weights"
            )
        print(line + (f"  compiled in {process.build_s:.1f} s" if process.build_s > 0.5 else ""))
        rows.append(row)
    exact = {name: tokens for name, tokens in said.items() if name.endswith(("fp32", " f32"))}
    alike = min(sum(a == b for a, b in zip(tokens, exact["leveret fp32"], strict=True)) for tokens in exact.values())
    print(f"  in float32 the contestants agree on at least {alike} of {processes[0].job.new} tokens")
    return rows


def many_streams(shape: str, processes: list[Process], levels: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for level in levels:
        asked = [process for process in processes if process.job.device != "cpu" or process.job.name in TOGETHER]
        taken: dict[str, list[dict[str, float]]] = {process.job.name: [] for process in asked}
        for _ in range(rounds):
            for process in asked:
                taken[process.job.name].append(process.ask(level))
        for name, figures in taken.items():
            middle = {key: round(statistics.median(each[key] for each in figures), 1) for key in figures[0]}
            rows.append({"shape": shape, "contestant": name, "requests": level, **middle})
            waits = [f"{middle[key]:>8.1f}" for key in middle if key != "tokens_per_second"]
            print(
                f"  {level:>3} at once  {name:<20} {middle['tokens_per_second']:>8.1f} tokens/s {' '.join(waits)}",
                flush=True,
            )
    return rows


def goals_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    alone = {row["contestant"]: row["tokens_per_second"] for row in rows if "requests" not in row}
    goals = {
        key: {"value": round(alone[ours] / alone[theirs], 3), "goal": goal}
        for key, (ours, theirs, goal) in GOALS.items()
        if ours in alone and theirs in alone
    }
    at_16 = {row["contestant"]: row["tokens_per_second"] for row in rows if row.get("requests") == 16}
    pairs = [(at_16[ours], at_16[theirs]) for ours, theirs, _ in GOALS.values() if ours in at_16 and theirs in at_16]
    if pairs:  # like against like, and the worse of the two counts
        goals["batch16_vs_llamacpp"] = {"value": round(min(a / b for a, b in pairs), 3), "goal": 1.0}
    return goals


def contestants(shape: str, config: ModelConfig, quick: bool, device: str, threads: int, folder: Path) -> list[Job]:
    jobs = []
    for way, forms in FORMS.items():
        if way == "transformers" and find_spec("transformers") is None:
            continue
        if way == "llama.cpp" and (device != "cpu" or not (find_spec("xllamacpp") and find_spec("gguf"))):
            continue
        for form in forms:
            if way == "llama.cpp":
                write_gguf(folder / f"{form}.gguf", config, form)
            jobs.append(Job(way, form, config, 16, 8 if quick else 128, threads, device, folder))
    print(f"{shape}: {', '.join(job.name for job in jobs)}", flush=True)
    return jobs


def shape_of(name: str, quick: bool) -> ModelConfig:
    config = load_recipe(name)[0].model.with_vocabulary(VOCABULARIES[name])
    changes: dict[str, Any] = {"residual": "sequential", "rope_layout": "half"} if name == "tinyllm-cli-67m" else {}
    if quick:
        changes |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
        changes |= {"vocab_size": 512, "num_key_value_heads": None, "head_dim": None}
    return config.model_copy(update=changes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few tokens: to see that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], help="requests at once")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rounds, levels = (1, [1, 2]) if arguments.quick else (arguments.rounds, arguments.levels)
    rows: list[dict[str, Any]] = []
    for shape in ["tinyllm-cli-67m"] if device.type == "cpu" else ["gpt2-124m", "l20-edu-135m"]:
        config = shape_of(shape, arguments.quick)
        sizes = weight_bytes(config) if device.type == "cpu" else {}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            jobs = contestants(shape, config, arguments.quick, str(device), torch.get_num_threads(), Path(folder))
            processes = []
            for job in jobs:
                processes.append(Process(job, Path(folder) / "cache"))
                stack.callback(processes[-1].end)
            rows += one_stream(shape, processes, sizes, rounds)
            rows += many_streams(shape, processes, levels, min(rounds, 2))
    machine = environment(device)
    print(json.dumps({"benchmark": "decode_speed", "machine": machine, "rows": rows, "goals": goals_of(rows)}))


if __name__ == "__main__":
    main()
