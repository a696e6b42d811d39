"""The server under load and malice, all on the loopback, with a model of drawn weights.

64 clients for a minute: no error, memory flat. 500 sockets that trickle headers: what honest clients notice. Clients
that leave or are killed in mid-stream: when their slot is free. 100,000 requests that are wrong in some way: no 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from serve_fuzz import wrong_requests

from leveret.hardware.device import environment, pick_device
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.recipe import Recipe, to_yaml
from leveret.rundir import RunDir
from leveret.tokenizer import TokenizerConfig, train_tokenizer
from leveret.training.checkpoint import Snapshot, write_checkpoint

SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
NO_END = {"logit_bias": {"0": -100, "1": -100, "2": -100}}


def draw_run(folder: Path) -> Path:
    """A finished run whose weights are drawn: it answers bytes at random, at the speed of any other of its shape."""
    special = ["<eos>", "<|im_start|>", "<|im_end|>"]
    wanted = TokenizerConfig(kind="bpe", vocab_size=259, special_tokens=special, eos_token="<eos>", template="chatml")
    tokenizer = train_tokenizer(wanted, ["a"])
    config = ModelConfig.model_validate(SHAPE | {"vocab_size": tokenizer.vocab_size})
    stage = {"steps": 1, "examples": [{"paths": ["none.jsonl"]}]}
    recipe = Recipe.model_validate(
        {"name": "drawn", "tokenizer": wanted, "data": {"sources": []}, "model": config, "finetune": stage}
    )
    torch.manual_seed(0)
    run, random_state = RunDir(folder), {"cpu": torch.get_rng_state()}
    folder.mkdir(parents=True)
    tokenizer.save(run / "tokenizer")
    (run / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    weights = dict(Decoder(config).state_dict())
    snapshot = Snapshot(config, weights, {}, random_state, {"step": 1}, to_yaml(recipe))
    write_checkpoint(run / "finetune" / "checkpoints", snapshot)
    run.begin("finetune", {})
    run.finish("finetune", {}, 0.0)
    return folder


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def memory(self) -> int:
        """Bytes resident."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024


@contextmanager
def serving(run: Path, *limits: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "leveret", "serve", str(run), *limits, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        port = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert port, "the server did not start"
        yield Server(process, int(port[1]))
        assert process.poll() is None, "the server ended"
    finally:
        process.terminate()
        process.wait(60)


def message(body: bytes, path: str = "/v1/completions", method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


async def read_answer(reader: asyncio.StreamReader, bodiless: bool = False) -> tuple[int, bytes, bool]:
    """(status, body, whether the connection stays)."""
    head = b" 100 "
    while (status := int(head.split(b" ", 2)[1])) == 100:  # which announces the answer
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = b""
    if bodiless:
        pass
    elif found := re.search(rb"content-length: (\d+)", head):
        body = await reader.readexactly(int(found[1]))
    elif b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return status, body, b"connection: close" not in head


@dataclass
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    tokens: int = 0

    def p(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else float("nan")


async def client(server: Server, until: float, tally: Tally, draw: random.Random) -> None:
    """Asks one thing after the other, streamed or whole, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    while time.monotonic() < until:
        prompt = "".join(draw.choices("abcdefgh ", k=draw.randrange(4, 60)))
        tokens, stream = draw.randrange(4, 24), draw.random() < 0.5
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": draw.random(), "stream": stream, **NO_END}
        begun = time.monotonic()
        writer.write(message(json.dumps(asked).encode()))
        status, body, _ = await read_answer(reader)
        tally.seconds.append(time.monotonic() - begun)
        tally.statuses[status] += 1
        whole = body.endswith(b"data: [DONE]\n\n") if stream else b'"finish_reason":"length"' in body
        tally.broken += not whole
        tally.tokens += tokens
    writer.close()


async def load(server: Server, clients: int, seconds: float, memories: list[int] | None = None) -> Tally:
    tally, until = Tally(), time.monotonic() + seconds
    asking = [client(server, until, tally, random.Random(number)) for number in range(clients)]
    work = asyncio.gather(*asking)
    while not work.done():
        await asyncio.wait([work], timeout=1.0)
        if memories is not None:
            memories.append(server.memory())
    await work
    return tally


async def crowd(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Many clients for a while; memory over it, as the median of its last fifth over that of its second."""
    await load(server, clients, min(5.0, seconds / 2))  # buffers, caches and threads come with the first requests
    memories: list[int] = []
    tally = await load(server, clients, seconds, memories)
    fifth = max(1, len(memories) // 5)
    early, late = statistics.median(memories[fifth : 2 * fifth]), statistics.median(memories[-fifth:])
    return {
        "trial": f"{clients} clients for {seconds:g} s",
        "requests": len(tally.seconds),
        "errors": tally.broken + sum(n for status, n in tally.statuses.items() if status != 200),
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "p50_seconds": tally.p(0.5),
        "p95_seconds": tally.p(0.95),
        "memory_mib": round(late / 2**20, 1),
        "memory_growth": round(late / early - 1, 4),
    }


async def trickle(server: Server, until: float) -> None:
    """A byte of a header each second, and a new connection whenever the server has had enough."""
    while time.monotonic() < until:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ")
            while time.monotonic() < until and not writer.is_closing():
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(1.0)
            writer.close()


async def loris(server: Server, sockets: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Honest clients alone and beside the slow ones, in turn."""
    alone, beside = Tally(), Tally()
    for _ in range(rounds):
        alone.seconds += (await load(server, 8, seconds)).seconds
        until = time.monotonic() + seconds + 2
        slow = asyncio.gather(*(trickle(server, until) for _ in range(sockets)))
        await asyncio.sleep(2)
        tally = await load(server, 8, seconds)
        beside.seconds += tally.seconds
        beside.broken += tally.broken
        await slow
    return {
        "trial": f"{sockets} slow-loris sockets, 8 honest clients",
        "requests": len(beside.seconds),
        "errors": beside.broken,
        "p95_alone_seconds": alone.p(0.95),
        "p95_beside_seconds": beside.p(0.95),
        "p95_ratio": round(beside.p(0.95) / alone.p(0.95), 2),
    }


async def running(server: Server) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(message(b"", "/metrics", "GET"))
    _, body, _ = await read_answer(reader)
    writer.close()
    found = re.search(rb"leveret_answers_running (\d+)", body)
    assert found
    return int(found[1])


async def until_free(server: Server, begun: float) -> float:
    while await running(server):
        assert time.monotonic() - begun < 30, "a slot stays taken"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


LONG = message(json.dumps({"prompt": "a", "max_tokens": 2000, "stream": True, **NO_END}).encode())
KILLED = """
import socket, sys
connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(4)]
request = sys.stdin.buffer.read()
for connection in connections:
    connection.sendall(request)
for connection in connections:
    while b"data: " not in connection.recv(1000):
        pass
print("streaming", flush=True)
while True:
    connections[0].recv(1000)
"""


async def leaving(server: Server, times: int) -> dict[str, Any]:
    """A client closes its connection in mid-stream."""
    waits = []
    for _ in range(times):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(LONG)
        await reader.readuntil(b"data: ")
        begun = time.monotonic()
        writer.close()
        waits.append(await until_free(server, begun))
    return {"trial": f"{times} clients leave in mid-stream", "slot_free_seconds": round(max(waits), 3)}


async def killing(server: Server, times: int) -> dict[str, Any]:
    """kill -9 of a process with four streams."""
    waits = []
    for _ in range(times):
        command = [sys.executable, "-I", "-c", KILLED, str(server.port)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(LONG)
        process.stdin.close()
        assert await asyncio.to_thread(process.stdout.readline) == b"streaming\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGKILL)
        waits.append(await until_free(server, begun))
        process.wait()
        process.stdout.close()
    return {"trial": f"kill -9 of {times} processes with 4 streams each", "slot_free_seconds": round(max(waits), 3)}


async def fuzz(server: Server, requests: int) -> dict[str, Any]:
    """Wrong requests, over 8 connections that are opened again where the server has closed them."""
    statuses: Counter[int] = Counter()
    unanswered: list[bytes] = []
    source = wrong_requests(requests, seed=1)

    async def ask() -> None:
        reader = writer = None
        for request in source:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                assert reader is not None
                writer.write(request)
                status, _, stays = await asyncio.wait_for(read_answer(reader, request[:4] == b"HEAD"), 60)
            except (asyncio.IncompleteReadError, ConnectionError):
                status, stays = 0, False
                unanswered.append(request[:300])
            statuses[status] += 1
            if not stays and writer is not None:
                writer.close()
                writer = None

    begun = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(8)))
    for request in unanswered[:5]:
        print("no answer to", request, file=sys.stderr)
    failed = sum(count for status, count in statuses.items() if status >= 500 or status == 0)
    return {
        "trial": f"{requests} wrong requests",
        "requests": sum(statuses.values()),
        "errors": failed,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "seconds": round(time.monotonic() - begun, 1),
    }


async def trials(run: Path, quick: bool, count: int) -> list[dict[str, Any]]:
    rows = []
    with serving(run, "slots=16", "queue=64") as server:
        rows.append(await crowd(server, 16 if quick else 64, 1.5 if quick else 60))
        rows.append(await loris(server, 100 if quick else 500, 1 if quick else 10, 1 if quick else 3))
        rows.append(await leaving(server, 3 if quick else 20))
        rows.append(await killing(server, 1 if quick else 10))
    with serving(run, "slots=16", "queue=64", "max_new_tokens=4") as server:
        rows.append(await fuzz(server, count))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few seconds of each; the figures mean little")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = draw_run(Path(scratch) / "drawn")
        rows = asyncio.run(trials(run, arguments.quick, 300 if arguments.quick else 100_000))
    for row in rows:
        print(f"{row['trial']:<48} " + "  ".join(f"{key} {value}" for key, value in row.items() if key != "trial"))
    many, slow, left, killed, wrong = rows
    goals = {
        "errors_under_load": {"value": many["errors"], "goal": 0},
        "memory_growth": {"value": many["memory_growth"], "goal": 0.05},
        "slow_loris_p95_ratio": {"value": slow["p95_ratio"], "goal": 2.0},
        "left_slot_free_seconds": {"value": left["slot_free_seconds"], "goal": 1.0},
        "killed_slot_free_seconds": {"value": killed["slot_free_seconds"], "goal": 1.0},
        "wrong_requests_5xx": {"value": wrong["errors"], "goal": 0},
    }
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "serve_load", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
