"""From a client's request to its answer: admission, the worker, and the response whole or piece by piece."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi.responses import JSONResponse, Response

from leveret.errors import UserError
from leveret.inference.request import Delta
from leveret.serving.config import ServeConfig
from leveret.serving.errors import INTERNAL, ApiError, full, out_of_time
from leveret.serving.formats import check_schema
from leveret.serving.forms import DONE, Answer, Form, event, usage
from leveret.serving.gate import Receive, Scope, Send
from leveret.serving.metrics import Figures
from leveret.serving.schemas import ChatRequest, CompletionRequest
from leveret.serving.wishes import answers_of, prompts_of, requests_of, sampling_of
from leveret.serving.worker import Failed, Job, Worker

if TYPE_CHECKING:
    from leveret.api import LoadedModel

ENCODERS = 2
"""Prompts that are turned into tokens at once."""


class Service:
    """The model of a server and all that is under way."""

    def __init__(self, model: LoadedModel | None, config: ServeConfig) -> None:
        self.model, self.config = model, config
        self.worker = None
        if model is not None:
            self.worker = Worker(partial(model.engine.scheduler, config.slots), config.tracebacks)
        self.figures = Figures(self.worker)
        self.draining = False
        self.created = int(time.time())
        self._arriving = 0  # answers whose prompts are being encoded
        self._encoders, self._trials = CapacityLimiter(ENCODERS), CapacityLimiter(1)
        self._mean_seconds = 1.0

    @property
    def healthy(self) -> bool:
        return not self.draining and (self.worker is None or self.worker.alive)

    def loaded(self) -> tuple[LoadedModel, Worker]:
        """Raises ApiError where there is no model yet."""
        if self.model is None or self.worker is None:
            raise ApiError(503, "This run has no checkpoint yet. Start the server again once it has.", code="no_model")
        return self.model, self.worker

    async def answer(self, body: CompletionRequest | ChatRequest) -> Response:
        """Everything that can be refused is refused here; the response that is returned generates."""
        begun = time.monotonic()
        model, worker = self.loaded()
        if body.model is not None and body.model != model.recipe.name:
            raise ApiError(
                404, "There is no model of that name; /v1/models tells this one's.", "model", "model_not_found"
            )
        wanted = answers_of(body, self.config)
        if worker.answers + self._arriving + wanted > self.config.slots + self.config.queue:
            raise full(self._retry_after())
        sampling = sampling_of(model, body, self.config)
        self._arriving += wanted
        try:
            await self._check_schema(body)
            prompts = await anyio.to_thread.run_sync(
                prompts_of, model, body, self.config, limiter=self._encoders, abandon_on_cancel=True
            )
        finally:
            self._arriving -= wanted
        try:
            job = await worker.submit(requests_of(prompts, body, sampling))
        except Failed:
            raise ApiError(500, INTERNAL) from None
        except UserError as error:
            raise ApiError(400, str(error)) from None
        opening = [
            model.tokenizer.decode(prompt) if isinstance(body, CompletionRequest) and body.echo else ""
            for prompt in prompts
            for _ in range(body.n)
        ]
        fingerprint = f"fp_{model.weights_sha256[:12]}"
        form = Form(
            isinstance(body, ChatRequest), model.recipe.name, fingerprint, sampling.logprobs is not None, opening
        )
        return Generated(self, worker, job, form, prompts, body, begun)

    async def _check_schema(self, body: CompletionRequest | ChatRequest) -> None:
        """One after the other, so that many bad ones take no more than a core, and no other request waits for them."""
        form = body.response_format
        if form is not None and form.json_schema is not None:
            schema = form.json_schema.json_schema
            await anyio.to_thread.run_sync(
                check_schema, schema, self.config, limiter=self._trials, abandon_on_cancel=True
            )

    def took(self, seconds: float) -> None:
        self.figures.seconds.observe(seconds)
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def _retry_after(self) -> int:
        """Seconds until about a slot's worth of the queue is gone."""
        return min(60, max(1, round(self._mean_seconds)))


class Generated(Response):
    """The response to a request whose answers are under way. Ends them when the client leaves or the time is up."""

    def __init__(
        self,
        service: Service,
        worker: Worker,
        job: Job,
        form: Form,
        prompts: list[list[int]],
        body: CompletionRequest | ChatRequest,
        begun: float,
    ) -> None:
        self.service, self.worker, self.job, self.form = service, worker, job, form
        self.prompts, self.asked, self.begun = prompts, body, begun
        self.answers = [Answer() for _ in job.requests]
        self._index = {request: index for index, request in enumerate(job.requests)}
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        speaking = asyncio.create_task(self._speak(scope, receive, send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((speaking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                speaking.result()
            else:
                self.service.figures.cancelled.inc()
        finally:
            self.worker.cancel(self.job)
            self._account()
            for task in (speaking, leaving):
                task.cancel()
            await asyncio.gather(speaking, leaving, return_exceptions=True)

    async def _speak(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.asked.stream:
            await self._stream(send)
            return
        try:
            while any(answer.finish is None for answer in self.answers):
                await self._next()
        except (TimeoutError, Failed) as error:
            raise self._refusal(error) from None
        await JSONResponse(self.form.whole(self.answers, self._usage()))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        pieces = b"".join(map(event, self.form.begins()))
        options = self.asked.stream_options
        try:
            while any(answer.finish is None for answer in self.answers):
                if pieces:
                    await send({"type": "http.response.body", "body": pieces, "more_body": True})
                deltas = await self._next()
                worth = [delta for delta in deltas if delta.text or delta.infos or delta.finish]
                pieces = b"".join(event(self.form.piece(self._index[delta.request], delta)) for delta in worth)
        except (TimeoutError, Failed) as error:
            pieces = event(self._refusal(error).body)
        else:
            pieces += event(self.form.ends(self._usage())) if options and options.include_usage else b""
            pieces += DONE
        await send({"type": "http.response.body", "body": pieces, "more_body": False})

    async def _next(self) -> list[Delta]:
        """What came since it was last asked, at least one delta.

        Raises:
            TimeoutError: the request's time is up.
            Failed: the model failed.
        """
        left = self.begun + self.service.config.request_seconds - time.monotonic()
        came = [await asyncio.wait_for(self.job.deltas.get(), max(left, 0.0))]
        while not self.job.deltas.empty():
            came.append(self.job.deltas.get_nowait())
        deltas = []
        for delta in came:
            if isinstance(delta, Failed):
                raise delta
            if not any(answer.tokens for answer in self.answers) and delta.tokens:
                self.service.figures.first_token.observe(time.monotonic() - self.begun)
            self.answers[self._index[delta.request]].add(delta)
            deltas.append(delta)
        return deltas

    def _refusal(self, error: Exception) -> ApiError:
        if isinstance(error, Failed):
            return ApiError(500, INTERNAL)
        self.service.figures.cancelled.inc()
        return out_of_time(self.service.config.request_seconds)

    def _usage(self) -> dict[str, Any]:
        lengths = [len(prompt) for prompt in self.prompts]
        model, _ = self.service.loaded()
        return usage(sum(lengths), max(lengths), self.answers, model.engine.context)

    def _account(self) -> None:
        figures = self.service.figures
        figures.prompt_tokens.inc(sum(map(len, self.prompts)))
        figures.completion_tokens.inc(sum(answer.tokens for answer in self.answers))
        self.service.took(time.monotonic() - self.begun)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
