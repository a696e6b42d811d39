"""Who takes part in decode_speed.py: our engine, transformers' generate, and llama.cpp through xllamacpp.

Each is made from a Job in a process of its own, and says how long one answer takes, and how many at once go.
All have the same weights, drawn from one seed, and answer greedily past any end.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leveret.export.gguf import add_shape
from leveret.export.shapes import facts_of
from leveret.hardware.native import compiled
from leveret.inference import kernels
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.inference.quantize import quantise
from leveret.inference.request import Request
from leveret.inference.scheduler import Scheduler
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.weights import to_disk, to_interleaved

Figures = dict[str, float]


@dataclass(frozen=True)
class Job:
    """A contestant: which, with which weights ("fp32", "bf16", "int8", "int4"; of llama.cpp its own names)."""

    way: str
    form: str
    config: ModelConfig
    prompt: int
    new: int
    threads: int
    device: str
    folder: Path
    """Where GGUF files are."""

    @property
    def name(self) -> str:
        return f"{self.way} {self.form}"

    @property
    def room(self) -> int:
        return self.prompt + self.new

    def prompt_of(self, number: int) -> list[int]:
        return [3 + (97 * number + 31 * i) % (self.config.vocabulary - 3) for i in range(self.prompt)]


def decoder(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config).eval()


def together(tokens: int, start: float, times: list[list[float]]) -> Figures:
    """Of answers whose tokens came at these times: all tokens a second, and what their readers waited for."""
    firsts = [own[0] - start for own in times]
    gaps = sorted(b - a for own in times for a, b in pairwise(own)) or [0.0]
    return {
        "tokens_per_second": tokens / (max(own[-1] for own in times) - start),
        "first_token_ms": statistics.median(firsts) * 1e3,
        "between_p50_ms": gaps[len(gaps) // 2] * 1e3,
        "between_p99_ms": gaps[int(len(gaps) * 0.99)] * 1e3,
    }


class Words:
    """In place of a tokenizer, as far as the engine needs one: every id is a word."""

    eos_id = None
    _special_ids: frozenset[int] = frozenset()
    _drops_first_space = False

    def __init__(self, size: int) -> None:
        self.vocab_size = size

    def token_bytes(self, index: int) -> bytes:
        return b" %d" % index


class Leveret:
    def __init__(self, job: Job) -> None:
        self.job, self.build_s = job, 0.0
        if job.device == "cpu":
            start = time.perf_counter()
            assert compiled(Path(kernels.__file__).with_name("kernels.c"))  # in an empty cache, so that it is timed
            self.build_s = time.perf_counter() - start
        model = decoder(job.config).to(job.device, torch.bfloat16 if job.form == "bf16" else None)
        if job.form in ("int8", "int4"):
            quantise(model, job.form)  # type: ignore[arg-type]
        self.engine = Engine(model, Words(job.config.vocabulary))  # type: ignore[arg-type]
        self.sampling = SamplingConfig(max_new_tokens=job.new)

    def alone(self) -> list[int]:
        return self.engine.generate([self.job.prompt_of(0)], self.sampling, ignore_end=True)[0].tokens

    def many(self, count: int) -> Figures:
        scheduler = Scheduler(self.engine, count, self.job.room)
        requests = [Request(self.job.prompt_of(i), self.sampling, ignore_end=True) for i in range(count)]
        times: dict[Request, list[float]] = {request: [] for request in requests}
        start = time.perf_counter()
        for request in requests:
            scheduler.submit(request)
        while scheduler.running or scheduler.waiting:
            for delta in scheduler.step():
                times[delta.request] += [time.perf_counter()] * len(delta.tokens)
        return together(count * self.job.new, start, list(times.values()))


class Transformers:
    """generate() as its users call it; many at once are one batch, which begins and ends together."""

    build_s = 0.0

    def __init__(self, job: Job) -> None:
        import transformers

        self.job = job
        facts = facts_of(job.config)
        kind = getattr(transformers, facts["architectures"][0])
        self.model = kind(kind.config_class(**facts)).eval()
        own = to_disk(decoder(job.config).state_dict(), job.config)
        missing, unexpected = self.model.load_state_dict(own, strict=False)
        assert not unexpected
        assert missing in ([], ["lm_head.weight"])
        self.model.to(job.device, torch.bfloat16 if job.form == "bf16" else torch.float32)

    def _generate(self, count: int) -> Tensor:
        ids = torch.tensor([self.job.prompt_of(i) for i in range(count)], device=self.job.device)
        length = {"max_new_tokens": self.job.new, "min_new_tokens": self.job.new}
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **length
            )
        return out[:, self.job.prompt :].cpu()

    def alone(self) -> list[int]:
        return self._generate(1)[0].tolist()

    def many(self, count: int) -> Figures:
        start = time.perf_counter()
        self._generate(count)
        return {"tokens_per_second": count * self.job.new / (time.perf_counter() - start)}


class LlamaCpp:
    build_s = 0.0

    def __init__(self, job: Job) -> None:
        self.job, self.server, self.slots = job, None, 0

    def _serve(self, slots: int) -> Any:
        import xllamacpp

        if slots != self.slots:
            self.server = None  # the one before goes first
            params = xllamacpp.CommonParams()
            params.model.path = str(self.job.folder / f"{self.job.form}.gguf")
            params.n_parallel, params.n_ctx = slots, slots * 64 * -(-self.job.room // 64)
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.job.threads
            params.cache_prompt = params.fit_params = False
            params.verbosity = -1
            self.server, self.slots = xllamacpp.Server(params), slots
        return self.server

    def _ask(self, number: int) -> tuple[list[float], str]:
        """When each token came, and the text."""
        times: list[float] = []
        pieces: list[str] = []

        def take(piece: dict[str, Any]) -> bool:
            if text := piece["choices"][0]["text"]:
                times.append(time.perf_counter())
                pieces.append(text)
            return False

        body = {"n_predict": self.job.new, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True}
        self.server.handle_completions({**body, "prompt": self.job.prompt_of(number)}, take)  # type: ignore[union-attr]
        return times, "".join(pieces)

    def alone(self) -> list[int]:
        self._serve(1)
        return [int(word) for word in self._ask(0)[1].split()]

    def many(self, count: int) -> Figures:
        self._serve(count)
        with ThreadPoolExecutor(count) as readers:
            start = time.perf_counter()
            times = [times for times, _ in readers.map(self._ask, range(count))]
        return together(count * self.job.new, start, times)


WAYS = {"leveret": Leveret, "transformers": Transformers, "llama.cpp": LlamaCpp}


def write_gguf(path: Path, config: ModelConfig, form: str) -> None:
    """The decoder of the seed as a file for llama.cpp, whose words are numbers; under q4_0 the table is q8_0."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer, facts_of(config), config, config.vocabulary)
    writer.add_tokenizer_model("llama")
    words = [b"<unk>", b"<s>", b"</s>", *(b"\xe2\x96\x81%d" % i for i in range(3, config.vocabulary))]
    writer.add_token_list(words)
    writer.add_token_scores([-float(i) for i in range(config.vocabulary)])
    writer.add_token_types([2, 3, 3] + [1] * (config.vocabulary - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in to_disk(decoder(config).state_dict(), config).items():
        if "q_proj" in name or "k_proj" in name:
            tensor = to_interleaved(tensor, config.head_width)
        wide = "Q8_0" if form == "q4_0" and "embed_tokens" in name else form.upper()
        kind = gguf.GGMLQuantizationType["F32" if tensor.dim() == 1 else wide]
        rows = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(table.get_name(name, try_suffixes=(".weight",)), rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
