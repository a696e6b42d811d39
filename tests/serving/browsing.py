"""A Chromium without a window, and what tests do with the chat page in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Route, sync_playwright
from tiny_server import tiny_model

from leveret.api import LoadedModel
from leveret.inference.engine import Engine
from leveret.tokenizer.template import template_text
from leveret.tokenizer.tokenizer import Tokenizer

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
VIOLATIONS = """addEventListener('securitypolicyviolation', (event) => {
  (window.violations ??= []).push(`${event.violatedDirective}: ${event.blockedURI}`); });"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser that LEVERET_CHROMIUM names, that is installed, or that playwright has fetched."""
    path = os.environ.get("LEVERET_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as player:
        try:
            browser = player.chromium.launch(executable_path=path, args=ARGUMENTS)
        except Error as error:
            pytest.fail(
                "the pages are tested in Chromium, and none starts here: `apt-get install chromium` or `python -m "
                f"playwright install --with-deps chromium` gets one, LEVERET_CHROMIUM names one ({error})",
                pytrace=False,
            )
        yield browser
        browser.close()


class Visit:
    """One page in a fresh browser, and everything it asked for, threw, and was refused."""

    def __init__(self, browser: Browser, url: str, path: str = "/", **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"reduced_motion": "reduce"} | context)
        self.context.set_default_timeout(15_000)
        self.context.add_init_script(VIOLATIONS)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url + path)

    @property
    def elsewhere(self) -> list[str]:
        """Addresses of others that were asked for."""
        return [url for url in self.asked if not url.startswith((self.url + "/", "blob:" + self.url))]

    @property
    def violations(self) -> list[str]:
        """What the Content-Security-Policy refused."""
        return list(self.page.evaluate("() => window.violations ?? []"))

    def ask(self, text: str) -> None:
        """Types, sends, and waits for the end of the answer."""
        before = self.page.locator(".turn.assistant").count()
        self.page.locator("#ask").fill(text)
        self.page.locator("#ask").press("Enter")
        self.answered(before + 1)

    def answered(self, turns: int) -> None:
        """Waits until so many answers are there, and the last has ended."""
        self.page.wait_for_function(
            "(n) => document.querySelectorAll('.turn.assistant').length === n && !document.querySelector('.busy')",
            arg=turns,
        )

    def texts(self, who: str) -> list[str]:
        """What the turns of "user" or "assistant" say."""
        return self.page.locator(f".turn.{who} .text, .turn.{who} .tokens, .turn.{who} .command pre").all_inner_texts()


def says(page: Page, text: str) -> list[Any]:
    """Has the model say this text, in pieces, whatever it is asked. Returns a list that fills with what it is asked."""
    asked: list[Any] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "{}"))
        pieces = [text[start : start + 4] for start in range(0, len(text), 4)]
        events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer)
    return asked


def refuses(page: Page, status: int, message: str, code: str | None = None, **headers: str) -> None:
    """Has the server refuse every question."""
    body = json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": code}})
    page.unroute("**/v1/**")
    page.route(
        "**/v1/**",
        lambda route: route.fulfill(status=status, content_type="application/json", body=body, headers=headers),
    )


def talkative(template: str = "chatml", stage: str = "finetune", context: int = 256, **generation: Any) -> LoadedModel:
    """A tiny model under a template, or a base model, that never ends by itself: its special tokens weigh nothing, and
    of hundreds of others there is always one that weighs more."""
    model = tiny_model(context)
    engine = model.engine
    assert isinstance(engine, Engine)
    engine.model.lm_head.weight.data[:3] = 0
    tokenizer = Tokenizer(model.tokenizer.definition, model.tokenizer.roles, template_text(template))
    recipe = model.recipe.model_copy(update={"generation": model.recipe.generation.changed(**generation)})
    return LoadedModel(recipe, Engine(engine.model, tokenizer), None, stage, 7, model.weights_sha256)
