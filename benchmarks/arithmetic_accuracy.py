"""How much arithmetic a small model learns from nothing: held-out problems, by operation and digits.

    leveret-math --leveret run--> model --greedy answers to held-out problems--> the last number of each --> accuracy

Held out are pairs of operands, whatever their order and the operation (leveret/tasks/arithmetic.py). What is typed
is `2790 + 6698 =`; of an answer that shows its working the last word counts. The problems that the
published ParchmentLM was shown with stand beside.
Run: python benchmarks/arithmetic_accuracy.py [--run RUN] [--work DIR] [--examples 500] [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import leveret
from leveret.api import LoadedModel
from leveret.evaluation.exact_match import wilson_interval
from leveret.hardware.device import environment, pick_device
from leveret.model.counts import count_parameters
from leveret.tasks.arithmetic import ArithmeticOptions, problems

RECIPE = "leveret-math"
CELLS = [("+", n) for n in (1, 2, 3, 4)] + [("-", n) for n in (1, 2, 3, 4)] + [("*", n) for n in (1, 2)]
PUBLISHED = {"12 + 5 =": "17", "900 - 345 =": "555", "2790 + 6698 =": "9488"}
GOALS = {
    "one_to_three_digits": ([(sign, n) for sign in "+-" for n in (1, 2, 3)], 0.99),
    "four_digits": ([(sign, 4) for sign in "+-"], 0.95),
    "two_digit_products": ([("*", 2)], 0.90),
}
QUICK = [
    "model.num_hidden_layers=1", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64",
    "finetune.epochs=null", "finetune.steps=20", "finetune.compile=false", "evaluate.limit=8",
    "finetune.examples=[{kind: generated, generator: arithmetic, options: {count: 400, max_digits: 2}}]",
]  # fmt: skip


def right_of(model: LoadedModel, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Of each prompt, whether the greedy answer ends by itself in the right number."""
    found = model.complete(prompts, temperature=0.0, max_new_tokens=32)
    return [
        each.finish == "stop" and each.text.split()[-1:] == [right] for each, right in zip(found, answers, strict=True)
    ]


def measured(model: LoadedModel, most: int) -> list[dict[str, Any]]:
    rows = []
    for operation, digits in CELLS:
        options = ArithmeticOptions.model_validate({
            "operations": [operation], "forms": ["symbolic"], "min_digits": digits, "max_digits": digits,
            "split": "heldout", "count": most, "seed": 1,
        })  # fmt: skip
        asked = list(problems(options))
        right = right_of(model, [each.prompt for each in asked], [each.answer for each in asked])
        interval = [round(bound, 4) for bound in wilson_interval(sum(right), len(right))]
        of_cell = {"operation": operation, "digits": digits, "examples": len(asked), "correct": sum(right)}
        rows.append(of_cell | {"interval_95": interval})
        print(f"{digits}-digit {operation}  {sum(right):5} of {len(asked):5}  {sum(right) / len(asked):7.2%}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", help="a run that is there already")
    parser.add_argument("--work", type=Path, help="a folder that keeps the run; a stopped benchmark goes on there")
    parser.add_argument("--examples", type=int, default=500, help="of each operation and number of digits")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a tiny model for seconds; its figures mean nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.run or (arguments.work or Path(scratch)).absolute() / RECIPE)
        if arguments.run is None:
            command = ["run", RECIPE, *QUICK * arguments.quick, "--run-dir", str(folder), "--device", arguments.device]
            subprocess.run([sys.executable, "-m", "leveret", *command], check=True)
        model = leveret.load(str(folder), device=arguments.device)
        rows = measured(model, 20 if arguments.quick else arguments.examples)
        shown = [each.text for each in model.complete(list(PUBLISHED), temperature=0.0, max_new_tokens=32)]
        for prompt, answer in zip(PUBLISHED, shown, strict=True):
            print(f"{prompt} {answer}")
        summary = json.loads((folder / model.stage / "summary.json").read_text())
    counts = {(row["operation"], row["digits"]): row for row in rows}
    goals = {
        name: {
            "value": round(min(counts[cell]["correct"] / counts[cell]["examples"] for cell in cells), 4),
            "goal": goal,
        }
        for name, (cells, goal) in GOALS.items()
    }
    facts = {
        "parameters": count_parameters(model.engine.model.config).total,
        "train_seconds": summary["train_seconds"],
        "published": dict(zip(PUBLISHED, shown, strict=True)),
    }
    machine = environment(pick_device(arguments.device))
    print(json.dumps({"benchmark": "arithmetic_accuracy", "machine": machine, "rows": [facts, *rows], "goals": goals}))


if __name__ == "__main__":
    main()
