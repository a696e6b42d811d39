"""Takes the pictures of docs/pictures: python tests/serving/pictures.py RUN [FOLDER]

RUN is a finished run of the recipe quickstart. Its server runs in this process; the browser is that of the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

from browsing import Visit, chromium
from PIL import Image
from playwright.sync_api import Browser
from tiny_server import running

import leveret

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
WIDE, PHONE = {"width": 1280, "height": 760}, {"width": 360, "height": 700}
COLOURS = 256
"""Of a picture: it is text on a plain ground."""


def take(run: str, folder: Path) -> None:
    """Writes chat.png, chat-dark.png, chat-phone.png, probabilities.png, run.png and run-phone.png."""
    folder.mkdir(parents=True, exist_ok=True)
    model = leveret.load(run)
    with running(model, model.run) as up, chromium() as browser:
        _chat(browser, up.url, folder / "chat.png", viewport=WIDE)
        _chat(browser, up.url, folder / "chat-dark.png", viewport=WIDE, color_scheme="dark")
        _chat(browser, up.url, folder / "chat-phone.png", viewport=PHONE, color_scheme="dark")
        _chat(browser, up.url, folder / "probabilities.png", likely=True, viewport=WIDE)
        _run(browser, up.url, folder / "run.png", viewport=WIDE | {"height": 1000})
        _run(browser, up.url, folder / "run-phone.png", viewport=PHONE, color_scheme="dark")
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.quantize(COLOURS).save(path, optimize=True)


def _chat(browser: Browser, url: str, path: Path, likely: bool = False, **context: object) -> None:
    visit = Visit(browser, url, **context)
    visit.ask("find files bigger than 100 MB in /srv")
    visit.ask("remove the folder /srv/data with all that is in it")
    visit.page.wait_for_selector(".danger:visible")
    if likely:
        visit.page.get_by_label("Show the probability of every token").check()
        visit.ask("erase /srv/data/old")  # beyond this model, as the alternatives to its first token show
        visit.page.locator(".turn:last-child .token").first.hover()
    visit.page.screenshot(path=path)
    visit.context.close()


def _run(browser: Browser, url: str, path: Path, **context: object) -> None:
    visit = Visit(browser, url, "/run", **context)
    visit.page.locator("figure svg").first.hover()
    visit.page.screenshot(path=path)
    visit.context.close()


if __name__ == "__main__":
    take(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURES)
