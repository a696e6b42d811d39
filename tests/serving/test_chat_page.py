"""The chat page in a real browser, before a real server with a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsing import Visit, refuses, says, talkative
from playwright.sync_api import Browser, expect
from tiny_server import KEY, Running, running

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
LONG = 4096
"""Tokens of context, which take the tiny model seconds."""


@pytest.fixture(scope="module")
def chatty() -> Iterator[Running]:
    with running(talkative(context=LONG)) as up:
        yield up


@pytest.fixture
def visit(browser: Browser, chatty: Running) -> Iterator[Visit]:
    """The page, which must have thrown nothing, asked nobody else, and broken no rule of its policy."""
    visit = Visit(browser, chatty.url)
    expect(visit.page.locator("#empty h2")).to_be_visible()
    yield visit
    assert (visit.errors, visit.elsewhere, visit.violations) == ([], [], [])
    visit.context.close()


def test_an_answer_is_typed_for_streamed_and_measured(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#ask")).to_be_focused()
    with page.expect_response("**/v1/chat/completions") as response:
        visit.ask("Tell me something")
    assert "text/event-stream" in response.value.headers["content-type"]
    assert visit.texts("user") == ["Tell me something"]
    assert visit.texts("assistant")[0]
    expect(page.locator(".turn.assistant .foot")).to_contain_text("8 tokens · ")
    expect(page.locator(".turn.assistant .foot")).to_contain_text("tokens/s")
    assert "of 4,096 tokens" in page.locator("#context").inner_text()
    assert page.locator("#status").inner_text().startswith("The model: ")
    visit.ask("And more")
    assert len(visit.texts("assistant")) == 2


def test_it_streams_and_stops_by_button_and_by_escape_and_the_slot_is_free_again(visit: Visit, chatty: Running) -> None:
    page = visit.page
    page.locator("#set-max_tokens").fill(str(LONG - 100))
    for number, stop in enumerate((lambda: page.locator("#stop").click(), lambda: page.keyboard.press("Escape")), 1):
        page.locator("#ask").fill("go on for long")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('.busy .turn:last-child .text')?.textContent.length > 5")
        stop()
        visit.answered(number)
        chatty.wait(lambda: chatty.slots_taken == 0, seconds=2)
        expect(page.locator(".turn.assistant .foot").last).to_contain_text("stopped")
    assert all(0 < len(text) < LONG - 100 for text in visit.texts("assistant"))


def test_retry_asks_the_same_anew_and_edit_asks_otherwise(visit: Visit) -> None:
    page = visit.page
    visit.ask("first")
    asked = says(page, "scripted")
    page.get_by_role("button", name="Retry").click()
    visit.answered(1)
    assert visit.texts("assistant") == ["scripted"]
    visit.ask("second")
    page.locator(".turn.user").first.hover()
    page.get_by_role("button", name="Edit this message").first.click()
    expect(page.locator(".editor textarea")).to_be_focused()
    page.locator(".editor textarea").fill("changed")
    page.keyboard.press("Enter")
    visit.answered(1)
    assert visit.texts("user") == ["changed"]
    sent = [[message["content"] for message in body["messages"]] for body in asked]
    assert sent == [["first"], ["first", "scripted", "second"], ["changed"]]


def test_settings_go_with_the_request_and_outlive_a_reload(visit: Visit) -> None:
    page = visit.page
    wanted = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "max_tokens": 12, "seed": 3,
    }  # fmt: skip
    for name, value in wanted.items():
        page.locator(f"#set-{name}").fill(str(value))
    page.locator("#system").fill("Be brief.")
    with page.expect_request("**/v1/chat/completions") as request:
        visit.ask("hello")
    body = request.value.post_data_json
    assert {name: body[name] for name in wanted} == wanted
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    expect(page.locator("#set-top_k")).to_have_value("40")
    page.locator("#set-temperature").fill("9")
    page.locator("#ask").fill("not sent")
    page.locator("#ask").press("Enter")
    expect(page.locator("#notice")).to_contain_text("Temperature")
    expect(page.locator("#ask")).to_have_value("not sent")
    page.get_by_role("button", name="Back to the model's own").click()
    expect(page.locator("#set-temperature")).to_have_value("")


def test_probabilities_are_shown_by_hover_and_by_the_arrow_keys(visit: Visit) -> None:
    page = visit.page
    page.get_by_label("Show the probability of every token").check()
    visit.ask("what is likely?")
    tokens = page.locator(".token")
    assert tokens.count() == 8
    tokens.nth(2).hover()
    card = page.locator("#token-card")
    expect(card).to_be_visible()
    shares = [float(text.strip("<%")) for text in card.locator("td:last-child").all_inner_texts()]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.1
    assert card.locator(".chosen").count() == 1
    assert card.locator(".chosen td:last-child").inner_text() == f"{shares[0]:g}%"  # greedy: the first
    page.mouse.move(0, 0)
    expect(card).to_be_hidden()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(card).to_be_visible()
    page.keyboard.press("End")
    expect(tokens.nth(7)).to_be_focused()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_conversations_are_kept_exported_deleted_and_imported(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    says(page, "kept 🐇 שלום")
    visit.ask("remember this")
    page.get_by_role("button", name="New conversation").click()
    visit.ask("and that")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    path = tmp_path / "exported.json"
    download.value.save_as(path)
    content = json.loads(path.read_text("utf-8"))
    assert (content["format"], content["format_version"]) == ("leveret-conversations", 1)
    assert [each["title"] for each in content["conversations"]] == ["and that", "remember this"]

    page.reload()
    names = page.locator("#conversations .open")
    expect(names).to_have_text(["and that", "remember this"])
    page.get_by_role("button", name="Delete remember this").focus()
    page.keyboard.press("Enter")
    expect(names).to_have_text(["and that"])
    page.get_by_role("button", name="Undo").click()
    expect(names).to_have_text(["and that", "remember this"])
    page.get_by_role("button", name="Delete remember this").focus()
    page.keyboard.press("Enter")

    page.locator("#file").set_input_files(path)
    expect(page.locator("#notice")).to_contain_text("1 conversation imported")
    names.nth(1).click()
    assert visit.texts("assistant") == ["kept 🐇 שלום"]
    expect(page.locator("#origin")).to_be_hidden()


def test_what_is_kept_and_cannot_be_read_stays(visit: Visit) -> None:
    strange = '[{"id": "of another version"}]'
    visit.page.evaluate("(text) => localStorage.setItem('leveret.conversations', text)", strange)
    visit.page.reload()
    says(visit.page, "fine")
    visit.ask("new")
    kept = visit.page.evaluate("() => localStorage.getItem('leveret.conversations')")
    assert [each.get("title") for each in json.loads(kept)] == ["new", None]
    assert json.loads(kept)[1] == json.loads(strange)[0]


def test_a_conversation_with_another_model_says_so(visit: Visit) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    one = {"id": "a", "title": "hello", "created": "2026", "updated": "2026", "model": "another-one", "turns": turns}
    file = {"format": "leveret-conversations", "format_version": 1, "conversations": [one]}
    visit.page.locator("#file").set_input_files({"name": "x", "mimeType": "", "buffer": json.dumps(file).encode()})
    visit.page.locator("#conversations .open").click()
    expect(visit.page.locator("#origin")).to_contain_text("another-one")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{not json", "not JSON"),
        ('{"format": "other"}', "no export of conversations"),
        ('{"format": "leveret-conversations", "format_version": 99, "conversations": []}', "format version 99"),
        ('{"format": "leveret-conversations", "format_version": 1}', "no list"),
        (
            '{"format": "leveret-conversations", "format_version": 1, "conversations": [{"id": "a", "title": "b", '
            '"created": "c", "updated": "d", "turns": [{"role": "user", "content": 7}]}]}',
            "conversation 1 is damaged",
        ),
        (
            '{"format": "leveret-conversations", "format_version": 1, "conversations": [{"id": "a", "title": "b", '
            '"created": "c", "updated": "d", "turns": [{"role": "assistant", "content": "", "stats": {}}]}]}',
            "conversation 1 is damaged",
        ),
    ],
)
def test_a_malformed_import_says_so_and_loses_nothing(visit: Visit, content: str, why: str) -> None:
    page = visit.page
    says(page, "safe")
    visit.ask("stay")
    page.locator("#file").set_input_files(
        {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()}
    )
    expect(page.locator("#notice")).to_contain_text(why)
    expect(page.locator("#notice")).to_contain_text("Nothing here has changed")
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text(["stay"])


def test_text_of_models_users_and_files_stays_text(visit: Visit) -> None:
    page = visit.page
    says(page, f"{EVIL}\n```html\n{EVIL}\n```")
    visit.ask(EVIL)
    assert visit.texts("user") == [EVIL]
    assert visit.texts("assistant")[0].count(EVIL) == 2
    turn = {
        "role": "assistant",
        "content": EVIL,
        "tokens": [{"text": EVIL, "logprob": -1, "top": [{"text": EVIL, "logprob": -1}]}],
    }
    times = {"created": "2026", "updated": "2026"}
    file = {"format": "leveret-conversations", "format_version": 1, "conversations": [
        {"id": EVIL, "title": EVIL, **times, "turns": [turn]}]}  # fmt: skip
    page.locator("#file").set_input_files({"name": "x", "mimeType": "", "buffer": json.dumps(file).encode()})
    page.locator("#conversations .open").nth(1).click()
    page.get_by_label("Show the probability of every token").check()
    page.locator(".token").hover()
    expect(page.locator("#token-card")).to_contain_text("<img")
    assert page.locator("main img, main script, #list img, #token-card img").count() == 0
    assert page.evaluate("() => window.hacked") is None


def test_the_policy_holds_even_where_a_script_would_forget_itself(browser: Browser, chatty: Running) -> None:
    visit = Visit(browser, chatty.url)
    refused = visit.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } }"
    )
    assert refused == "TypeError"
    tried = """() => new Promise((done) => {
        addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective), { once: true });
        const image = document.createElement('img');
        image.src = 'http://elsewhere.invalid/x.png';
        document.body.append(image);
    })"""
    assert visit.page.evaluate(tried) == "img-src"
    visit.context.close()


@pytest.mark.parametrize(
    ("status", "code", "headers", "shown"),
    [
        (429, "server_full", {"Retry-After": "7"}, "busy with other requests. Try again in 7 s."),
        (503, None, {}, "said by the server"),
        (400, "invalid_value", {}, "said by the server"),
        (500, None, {}, "Something broke in the server"),
        (401, "invalid_api_key", {}, "asks for its key"),
    ],
)
def test_a_refusal_is_told_kindly_and_can_be_tried_again(
    visit: Visit, status: int, code: str | None, headers: dict[str, str], shown: str
) -> None:
    page = visit.page
    refuses(page, status, "said by the server", code, **headers)
    visit.ask("hello")
    expect(page.locator(".trouble")).to_contain_text(shown)
    if status != 401:
        page.unroute("**/v1/**")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".turn.assistant .foot")).to_contain_text("8 tokens")


@pytest.mark.parametrize(
    ("end", "shown"),
    [('data: {"error": {"message": "said in the middle"}}\n\n', "said in the middle"), ("", "broke off")],
)
def test_an_answer_that_breaks_off_keeps_what_came(visit: Visit, end: str, shown: str) -> None:
    body = f'data: {{"choices": [{{"index": 0, "delta": {{"content": "half of"}}}}]}}\n\n{end}'
    visit.page.route("**/v1/**", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    visit.ask("hello")
    assert visit.texts("assistant") == ["half of"]
    expect(visit.page.locator(".trouble")).to_contain_text(shown)


def test_a_server_that_is_gone_is_told_too(browser: Browser) -> None:
    with running(talkative()) as up:
        visit = Visit(browser, up.url)
        expect(visit.page.locator("#empty h2")).to_be_visible()
    visit.ask("anyone?")
    expect(visit.page.locator(".trouble")).to_contain_text("does not answer")
    visit.context.close()


def test_a_conversation_too_long_is_refused_with_both_numbers_and_shows_what_is_left_out(browser: Browser) -> None:
    with running(talkative(context=128)) as up:
        visit = Visit(browser, up.url)
        for _ in range(2):
            visit.ask("twenty bytes of text")
        visit.ask("a message that is long enough by itself")
        trouble = visit.page.locator(".trouble")
        expect(trouble).to_contain_text("127 is the most")
        visit.page.get_by_role("button", name="Leave out the oldest turns").click()
        visit.page.wait_for_selector(".left-out")
        visit.answered(3)
        while trouble.count():
            visit.page.get_by_role("button", name="Leave out the oldest turns").click()
            visit.answered(3)
        expect(visit.page.locator(".left-out").first).to_contain_text("the model does not read this")
        assert visit.texts("assistant")[2]
        assert visit.errors == []
        visit.context.close()


def test_an_instruction_becomes_a_command_to_be_copied_with_its_danger_told(browser: Browser) -> None:
    with running(talkative("command")) as up:
        visit = Visit(browser, up.url, permissions=["clipboard-read", "clipboard-write"])
        page = visit.page
        expect(page.get_by_role("button", name="show the last 20 lines of server.log")).to_be_visible()
        asked = says(page, "ls -la")
        visit.ask("list all files")
        expect(page.locator(".danger")).to_be_hidden()
        page.unroute("**/v1/chat/completions")
        later = says(page, "rm -rf photos")
        visit.ask("delete the photos")
        expect(page.locator(".danger").last).to_have_text("Careful: this deletes files.")
        assert [message["content"] for message in later[0]["messages"]] == ["delete the photos"]  # it stands by itself
        assert len(asked) == 1
        page.get_by_label("Show the probability of every token").check()  # hides neither the warning nor the button
        expect(page.locator(".danger").last).to_have_text("Careful: this deletes files.")
        page.get_by_role("button", name="Copy").last.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("() => navigator.clipboard.readText()") == "rm -rf photos"
        page.unroute("**/v1/chat/completions")
        visit.ask("and with the real model")
        expect(page.locator(".command").last.locator(".token")).to_have_count(8)
        expect(page.locator(".command").last.get_by_role("button", name="Copy")).to_be_visible()
        assert (visit.errors, visit.elsewhere, visit.violations) == ([], [], [])
        visit.context.close()


def test_a_base_model_goes_on_with_the_text(browser: Browser) -> None:
    with running(talkative(stage="pretrain")) as up:
        visit = Visit(browser, up.url)
        page = visit.page
        asked: list[str] = []
        page.on("request", lambda request: asked.append((request.post_data_json or {}).get("prompt", "")))
        visit.ask("Once upon ")
        page.get_by_role("button", name="Go on with the text").click()
        visit.answered(2)
        asked = [prompt for prompt in asked if prompt]
        first, second = visit.texts("assistant")
        assert asked == ["Once upon ", f"Once upon {first}"]
        assert second
        page.get_by_role("button", name="Edit the whole text").click()
        page.locator(".editor textarea").fill("Otherwise")
        page.locator(".editor .main").click()
        visit.answered(1)
        assert visit.texts("user") == ["Otherwise"]
        visit.context.close()


def test_the_model_is_described(visit: Visit) -> None:
    facts = visit.page.locator("#facts").inner_text()
    for fact in ("parameters", "finetune, 7", "4,096 tokens", "bpe, 259 entries", "0" * 64):
        assert fact in facts
    assert visit.page.locator("#name").inner_text().startswith("tiny")


def test_a_key_is_asked_for_by_the_browser_and_then_goes_along(browser: Browser) -> None:
    with running(talkative(), api_key=KEY) as up:
        for path in ("/", "/run", "/static/chat.js", "/api/model", "/api/run"):
            refused = httpx.get(up.url + path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
        visit = Visit(browser, up.url, http_credentials={"username": "anyone", "password": KEY})
        visit.ask("let me in")
        assert visit.texts("assistant")[0]
        assert KEY not in visit.page.content()
        assert KEY not in json.dumps(visit.page.evaluate("() => ({ ...localStorage, ...sessionStorage })"))
        visit.context.close()


def test_without_a_model_the_page_says_so(browser: Browser) -> None:
    with running(None) as up:
        visit = Visit(browser, up.url)
        expect(visit.page.locator("#empty")).to_contain_text("no model yet")
        expect(visit.page.locator("#ask")).to_be_hidden()
        visit.context.close()


def test_a_phone_shows_everything_within_its_width_and_the_keyboard_reaches_it(
    browser: Browser, chatty: Running
) -> None:
    visit = Visit(browser, chatty.url, viewport={"width": 360, "height": 640}, color_scheme="dark")
    page = visit.page
    says(page, f"{'unbroken' * 40}\n```\n{'code ' * 60}\n```")
    visit.ask("w" * 200)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    expect(page.locator("#settings")).to_be_hidden()
    page.get_by_role("button", name="Settings and model").press("Enter")
    expect(page.get_by_label("Show the probability of every token")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.get_by_role("button", name="Settings and model")).to_be_focused()
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light colours").press("Enter")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != dark
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"
    visit.context.close()


def test_the_tab_key_goes_through_the_page_and_shows_where_it_is(visit: Visit) -> None:
    page = visit.page
    page.evaluate("() => document.activeElement.blur()")
    where = "() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(where))
    reached = {name for name, _ in seen}
    assert reached >= {"new", "export", "import", "ask", "send", "probabilities", "system", "set-temperature"}
    assert {style for name, style in seen if name} == {"solid"}
