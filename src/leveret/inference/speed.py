"""How fast a model generates."""

from __future__ import annotations

import statistics
import time
from typing import Any

from leveret.errors import UserError
from leveret.hardware.device import device_name
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Answers


def generation_speed(engine: Answers, prompt_tokens: int, new_tokens: int, repeat: int) -> dict[str, Any]:
    """Tokens a second of one greedy stream, the median over `repeat` rounds after one that warms up.

    Raises:
        UserError: the model ended each answer before there was a token to time.
    """
    prompt = [1 + i % (engine.tokenizer.vocab_size - 1) for i in range(prompt_tokens)]
    config = SamplingConfig(max_new_tokens=new_tokens)
    rates, generated = [], 0
    for _ in range(repeat + 1):
        start = time.perf_counter()
        generated = len(engine.generate([prompt], config, ignore_end=True)[0].tokens)
        rates.append(generated / (time.perf_counter() - start))
    if not generated:
        raise UserError("nothing was generated")
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": generated,
        "tokens_per_second": round(statistics.median(rates[1:]), 1),
        "lowest": round(min(rates[1:]), 1),
        "highest": round(max(rates[1:]), 1),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": device_name(engine.device),
    }
