"""A tiny model with random weights, and a real server for it on a free port of the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from leveret.api import LoadedModel
from leveret.inference.engine import Engine
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.recipe import Recipe, to_yaml
from leveret.rundir import RunDir
from leveret.serving.config import ServeConfig
from leveret.serving.server import Server, make_server, open_socket
from leveret.serving.service import Service
from leveret.tokenizer import TokenizerConfig, train_tokenizer
from leveret.training.checkpoint import Snapshot, write_checkpoint

KEY = "a-key-of-some-length-0123456789"


def tiny_model(context: int = 256) -> LoadedModel:
    """Says bytes at random; whether it ends by itself is chance."""
    special = ["<eos>", "<|im_start|>", "<|im_end|>"]
    wanted = TokenizerConfig(kind="bpe", vocab_size=259, special_tokens=special, eos_token="<eos>", template="chatml")
    tokenizer = train_tokenizer(wanted, ["a"])
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }
    decoder = Decoder(ModelConfig.model_validate(shape)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            level = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + level)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "tokenizer": wanted,
            "data": {"sources": []},
            "model": shape,
            "finetune": {"steps": 1, "examples": [{"paths": ["nothing.jsonl"]}]},
            "generation": {"max_new_tokens": 8},
        }
    )
    return LoadedModel(recipe, Engine(decoder, tokenizer), None, "finetune", 1, "0" * 64)


def write_run(folder: Path, model: LoadedModel) -> Path:
    """The model as a finished run."""
    run, engine = RunDir(folder), model.engine
    assert isinstance(engine, Engine)
    folder.mkdir(parents=True)
    model.tokenizer.save(run / "tokenizer")
    (run / "recipe.yaml").write_text(to_yaml(model.recipe), encoding="utf-8")
    weights = dict(engine.model.state_dict())
    random = {"cpu": torch.get_rng_state()}
    snapshot = Snapshot(engine.model.config, weights, {}, random, {"step": 1}, to_yaml(model.recipe))
    write_checkpoint(run / "finetune" / "checkpoints", snapshot)
    run.begin("finetune", {})
    run.finish("finetune", {}, 0.0)
    return folder


NEVER_ENDS = {"logit_bias": {"0": -100.0, "1": -100.0, "2": -100.0}}
"""No special token comes, so that a length is certain."""


class Running:
    """A server in a thread of its own."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def service(self) -> Service:
        return self.server.config.app.state.service  # type: ignore[union-attr, no-any-return]

    @property
    def slots_taken(self) -> int:
        assert self.service.worker is not None
        return self.service.worker.scheduler.running

    def wait(self, condition: Any, seconds: float = 10.0) -> float:
        """Waits until the condition holds; returns how long that took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, "it never came"
            time.sleep(0.005)
        return time.monotonic() - begun

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=30)


@contextmanager
def running(model: LoadedModel | None = None, run: Any = None, **limits: Any) -> Iterator[Running]:
    """A server that is up; it has ended when the block is left."""
    config = ServeConfig.model_validate({"port": 0, "drain_seconds": 1} | limits)
    with open_socket(config) as sock:
        server = make_server(model, run, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            begun = time.monotonic()
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() - begun < 30
                time.sleep(0.01)
            yield Running(server, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()
