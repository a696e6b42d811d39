"""Whether a small model that was fine-tuned on instructions ends its answers, and does not end them too soon.

    $LEVERET_DATA/text --pretraining--> leveret-15m --its finetune stage on $LEVERET_DATA/instruct--> answers to 200
      held-out prompts of all kinds, at most 256 tokens each --> how many ended by themselves, and how long they are

The prompts are drawn by a hash from all sources as they are mixed: questions, tasks, stories and lists to write,
arithmetic in words. Examples that would give a held-out one away are dropped from training (and counted).
Run: LEVERET_DATA=... python benchmarks/stopping.py [--work DIR] [--pretrain-tokens 6e6] [--epochs 1] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import leveret
from leveret.hardware.device import environment, pick_device

PROMPTS, MOST = 200, 256
SOURCES = ("dolly_open_qa_chinkara.jsonl", "dolly_hhrlhf_train_small.jsonl", "rasbt_instruction-data.json")
TASKS, PROBLEMS = "alpaca_libre_tasks_v1.jsonl", "gsm8k_train.jsonl"
QUICK = [
    "tokenizer.vocab_size=400", "model.depth=1", "model.hidden_size=32", "model.num_attention_heads=2",
    "pretrain.compile=false", "pretrain.batch_size=4", "finetune.compile=false", "finetune.batch_size=4",
    "finetune.epochs=null", "finetune.steps=8",
]  # fmt: skip


def convert(folder: Path, work: Path) -> list[dict[str, Any]]:
    """The sources' examples as one list of {"instruction", "output"}, each instruction once."""
    for name in SOURCES:
        command = [sys.executable, "-m", "leveret", "data", "convert", str(folder / name), str(work / f"{name}.jsonl")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [*(row for name in SOURCES for row in read(work / f"{name}.jsonl")), *others(folder)]
    return list({row["instruction"]: row for row in rows}.values())


def read(path: Path) -> Iterator[dict[str, Any]]:
    for row in map(json.loads, path.open(encoding="utf-8")):
        yield {"instruction": row["instruction"], "output": row.get("command") or row["output"], "from": path.stem}


def others(folder: Path) -> Iterator[dict[str, Any]]:
    """Tasks that their author marked as good, and problems without the calculator's marks."""
    for row in map(json.loads, (folder / TASKS).open(encoding="utf-8")):
        if row["status"] == "ok" and row["output"].strip():
            asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
            yield {"instruction": asked, "output": row["output"], "from": "alpaca_libre"}
    for row in map(json.loads, (folder / PROBLEMS).open(encoding="utf-8")):
        text = row["answer"].replace("####", "The answer is")
        while "<<" in text and ">>" in text:
            text = text[: text.index("<<")] + text[text.index(">>") + 2 :]
        yield {"instruction": row["question"], "output": text, "from": "gsm8k"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def trained(work: Path, arguments: argparse.Namespace) -> Path:
    """The run of a small model, pretrained and fine-tuned."""
    text = Path(os.environ["LEVERET_DATA"]) / "text"
    sources = [{"paths": [str(text / "openstax.parquet")]}, {"paths": [str(text / "wikipedia_2015.parquet")]}]
    sources[1]["max_documents"] = 20 if arguments.quick else 2000
    if arguments.quick:
        sources = sources[1:]
    tuning = {
        "examples": [{"paths": ["train.jsonl"]}],
        "epochs": arguments.epochs,
        "batch_size": 8,
        "drop_leaks": True,
        "optimizer": {"kind": "muon", "lr": 1e-3, "muon_lr": 3e-3, "weight_decay": 0.1, "muon_iterations": 3},
        "schedule": {"kind": "cosine", "warmup_steps": 20},
    }
    settings = [
        f"data.sources={json.dumps(sources)}", f"finetune={json.dumps(tuning)}", "tokenizer.template=parchment",
        "model.max_position_embeddings=512", "data.sequence_length=256", 'evaluate.sets={held: {paths: [held.jsonl]}}',
        "evaluate.limit=8", f"pretrain.tokens={8000 if arguments.quick else int(arguments.pretrain_tokens)}",
        *QUICK * arguments.quick,
    ]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "leveret",
        "run",
        "leveret-15m",
        *settings,
        "--run-dir",
        "run",
        "--device",
        arguments.device,
    ]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    return work / "run"


def measured(model: leveret.LoadedModel, held: list[dict[str, Any]], **sampling: Any) -> dict[str, Any]:
    """How the answers to the held-out prompts end, and how long they are, in tokens."""
    answers = []
    for begin in range(0, len(held), 50):
        prompts = [row["instruction"] for row in held[begin : begin + 50]]
        answers += model.complete(prompts, max_new_tokens=MOST, seed=begin, **sampling)
    references = [len(model.tokenizer.encode(row["output"])) for row in held]
    lengths, ended = [len(each.tokens) for each in answers], [each.finish == "stop" for each in answers]
    return {
        "sampling": sampling,
        "prompts": len(held),
        "ended": round(sum(ended) / len(ended), 4),
        "median_length": statistics.median(lengths),
        "median_reference": statistics.median(references),
        "empty": sum(not each.text.strip() for each in answers),
        "examples": [
            [row["instruction"][:80], each.text[:120]] for row, each in zip(held[:5], answers[:5], strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="a folder that keeps the run; a stopped benchmark goes on there")
    parser.add_argument("--pretrain-tokens", type=float, default=6e6)
    parser.add_argument("--epochs", type=float, default=1.0, help="of fine-tuning")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a tiny model for seconds; its figures mean nothing")
    arguments = parser.parse_args()
    if "LEVERET_DATA" not in os.environ:
        sys.exit("set LEVERET_DATA to the folder that holds text/ and instruct/")
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        rows = convert(Path(os.environ["LEVERET_DATA"]) / "instruct", work)
        rows.sort(key=lambda row: sha256(row["instruction"].encode()).hexdigest())
        held, train = rows[:PROMPTS], rows[PROMPTS:]
        if arguments.quick:
            held, train = held[:8], train[:300]
        write(work / "held.jsonl", held)
        write(work / "train.jsonl", train)
        model = leveret.load(str(trained(work, arguments)), device=arguments.device)
        found = [
            measured(model, held, temperature=0.7, top_k=40, repetition_penalty=1.1),
            measured(model, held, temperature=1.0),
            measured(model, held, temperature=0.0, repetition_penalty=1.1),
        ]
    for each in found:
        print(f"{each['sampling']}: {each['ended']:.1%} ended, median {each['median_length']} tokens, "
              f"references' {each['median_reference']}, {each['empty']} empty")  # fmt: skip
    first = found[0]
    goals = {
        "ended": {"value": first["ended"], "goal": 0.99},
        "length_ratio": {"value": round(first["median_length"] / first["median_reference"], 4), "goal": 0.5},
    }
    machine = environment(pick_device(arguments.device))
    print(json.dumps({"benchmark": "stopping", "machine": machine, "rows": found, "goals": goals}))


if __name__ == "__main__":
    main()
