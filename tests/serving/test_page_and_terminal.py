"""Conversations go from `leveret chat` to the page and back."""

from pathlib import Path

from browsing import Visit
from playwright.sync_api import Browser, expect
from tiny_server import running, tiny_model

from leveret.inference.dialogue import Dialogue


def test_the_page_imports_what_the_terminal_saves_and_the_terminal_what_the_page_exports(
    browser: Browser, tmp_path: Path
) -> None:
    dialogue = Dialogue("tiny", "Be brief.", {"temperature": 0.5})
    for question, answer in (("hello 日本", "<b>hi</b>"), ("more", "")):
        dialogue.ask(question)
        dialogue.answer(answer)
    dialogue.save(tmp_path / "said.json")
    with running(tiny_model()) as up:
        visit = Visit(browser, up.url)
        visit.page.locator("#file").set_input_files(tmp_path / "said.json")
        expect(visit.page.locator("#notice")).to_contain_text("1 conversation imported")
        visit.page.locator("#conversations .open").click()
        assert visit.texts("user") == ["hello 日本", "more"]
        assert visit.texts("assistant")[0] == "<b>hi</b>"
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Export").click()
        download.value.save_as(tmp_path / "exported.json")
        visit.context.close()
    found = Dialogue.load(tmp_path / "exported.json")
    assert (found.model, found.turns) == ("tiny", dialogue.turns)
