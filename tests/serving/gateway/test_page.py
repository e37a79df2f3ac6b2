"""The page in the browser, in a real Chromium against the real gateway; and how its files are served."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from serving.gateway.keys import KeyStore
from serving.gateway.page import FILES, POLICY
from serving.service import Service
from tests.serving.gateway.running import Running, gateway

EVIL = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found)
        yield launched
        launched.close()


@pytest.fixture
def said(browser: Browser) -> list[str]:
    """What the console of a test's page must not say."""
    return []


@pytest.fixture
def page(browser: Browser, running: Running, said: list[str]) -> Iterator[Page]:
    """A tab at the gateway, which must have nothing to complain of."""
    with browser.new_context(base_url=running.url, permissions=["clipboard-read", "clipboard-write"]) as tab:
        made = tab.new_page()
        made.set_default_timeout(60_000)

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                said.append(message.text)

        made.on("console", heard)
        made.on("pageerror", lambda error: said.append(str(error)))
        yield made
    assert said == []


def ask(page: Page, text: str, tokens: int) -> None:
    """Send a message in the chat, from a conversation without one."""
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_a_chat_streams_and_goes_on(page: Page, running: Running) -> None:
    page.goto("/#smollm2")
    ask(page, "Name a fish.", 12)
    expect(page.get_by_text("The model writes…")).to_be_visible()
    status = page.get_by_role("status").filter(has_text=re.compile("tokens in"))
    expect(status).to_be_visible(timeout=60_000)
    body = {"model": "smollm2", "max_tokens": 12, "temperature": 0}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Name a fish."}]
    _, told, _ = running.post("/v1/chat/completions", {**body, "messages": messages})
    first = told["choices"][0]["message"]["content"]
    log = page.get_by_role("log")
    assert log.locator(".assistant .said").all_inner_texts()[0].strip() == first.strip()
    page.get_by_label("Message", exact=True).fill("Another.")
    page.get_by_role("button", name="Send").click()
    expect(log.locator(".assistant")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "Another."}]
    _, told, _ = running.post("/v1/chat/completions", {**body, "messages": messages})
    second = log.locator(".assistant .said").nth(1).inner_text()
    assert second.strip() == told["choices"][0]["message"]["content"].strip()


def test_stop_ends_the_stream_and_its_request(page: Page) -> None:
    page.goto("/#smollm2")
    with page.expect_event("requestfailed") as failed:
        ask(page, "Count from 1 to 1000.", 1500)
        answer = page.locator(".assistant .said")
        expect(answer).not_to_be_empty(timeout=60_000)
        page.get_by_role("button", name="Stop").click()
    assert failed.value.url.endswith("/v1/chat/completions") and "ABORTED" in str(failed.value.failure)
    expect(page.get_by_text("Stopped.")).to_be_visible()
    before = answer.inner_text()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.wait_for_timeout(500)
    assert answer.inner_text() == before


def test_similarities_are_those_of_the_vectors(page: Page, running: Running) -> None:
    texts = ["Fish swim.", "A fish is swimming.", "Das Auto ist rot."]
    page.goto("/#minilm")
    page.get_by_label("Texts, one a line").fill("\n".join(texts))
    page.get_by_role("button", name="Compare").click()
    cells = page.locator("table.matrix td")
    expect(cells).to_have_count(9)
    _, told, _ = running.post("/v1/embeddings", {"model": "minilm", "input": texts})
    vectors = np.array([entry["embedding"] for entry in told["data"]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = np.array(cells.all_inner_texts(), float).reshape(3, 3)
    np.testing.assert_allclose(shown, unit @ unit.T, atol=6e-4)


def test_everything_works_by_keyboard(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("minilm")

    def tab_to(locator: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.locator(f"{locator}:focus").count():
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", "the focus must be seen"
                return
        raise AssertionError(f"the keyboard does not reach {locator}")

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the model")).to_be_focused()
    tab_to("a[href='#smollm2']")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    tab_to("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    tab_to("[role=tab]")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_have_attribute("aria-selected", "true")
    expect(page.locator("pre#code")).to_contain_text("from openai import OpenAI")


def test_what_models_say_stays_text(page: Page, running: Running) -> None:
    _, listed, _ = running.get("/v1/models")
    evil = {**next(entry for entry in listed["data"] if entry["id"] == "smollm2"), "id": EVIL, "name": EVIL}
    evil["shoal"] = {
        **evil["shoal"],
        "source": EVIL,
        "precision": EVIL,
        "evidence": {"metric": EVIL, "score": 1},
    }
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [evil]}))
    events = [{"choices": [{"index": 0, "delta": {"content": EVIL}, "finish_reason": "stop"}]}]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream")
    )
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    ask(page, EVIL, 5)
    expect(page.locator(".assistant .said")).to_have_text(EVIL)
    assert page.locator("main img, nav ul img").count() == 0 and "taken" not in page.title()[:5]


def test_the_code_runs(page: Page, running: Running) -> None:
    def code(language: str) -> str:
        page.get_by_role("tab", name=language).click()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_text("Copied")).to_be_visible()
        copied = str(page.evaluate("navigator.clipboard.readText()"))
        assert copied == page.locator("pre#code").inner_text()
        return copied

    def output(*command: str) -> str:
        environment = {**os.environ, "SHOAL_API_KEY": "x", "NO_PROXY": "127.0.0.1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    page.goto("/#smollm2")
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Message", exact=True).fill('What\'s "a fish" in\n日本語?')
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": 'What\'s "a fish" in\n日本語?'}],
        "max_tokens": 8,
        "temperature": 0,
    }
    _, told, _ = running.post("/v1/chat/completions", body)
    expected = told["choices"][0]["message"]["content"].strip()
    assert output(sys.executable, "-c", code("Python")).strip() == expected
    streamed = [
        json.loads(line[6:]) for line in output("bash", "-c", code("curl")).split("\n") if "data: {" in line
    ]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed).strip() == expected
    if shutil.which("node"):
        assert output("node", "--input-type=module", "-e", code("JavaScript")).strip() == expected
    page.goto("/#minilm")
    first = running.post("/v1/embeddings", {"model": "minilm", "input": ["Fish swim in shoals to be safe."]})[
        1
    ]
    start = first["data"][0]["embedding"][:4]
    assert json.loads(output(sys.executable, "-c", code("Python")))[0] == pytest.approx(start, abs=1e-5)


@pytest.mark.parametrize("path", ["/#smollm2", "/#minilm", "/docs"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(page: Page, path: str, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    if path == "/#minilm":
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("table.matrix td").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", ground)[:3]]
    assert max(levels) < 64 if scheme == "dark" else min(levels) > 192
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_document_is_shown(page: Page, running: Running) -> None:
    page.goto("/docs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Shoal gateway")
    _, document, _ = running.get("/openapi.json")
    assert page.locator("h2.path code").all_inner_texts() == list(document["paths"])
    chat = page.locator("#post_v1_chat_completions")
    chat.locator("summary").first.click()
    expect(chat.get_by_role("rowheader", name="messages required")).to_be_visible()


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, service: Service, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, secret = store.add("page", models=["minilm"])
    with (
        gateway(service, f"--keys={store.path}", log=tmp_path / "log") as closed,
        browser.new_context(base_url=closed.url) as tab,
    ):
        page = tab.new_page()
        page.goto("/")
        expect(page.get_by_role("alert").filter(has_text="You did not provide an API key")).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(secret)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("minilm")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("minilm")
        assert secret not in page.url and secret not in str(tab.cookies())
        assert page.evaluate("localStorage.length") == 0


def fetched(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read(), {k.lower(): v for k, v in response.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


def test_files_have_a_strict_policy_and_are_not_sent_twice(running: Running) -> None:
    assert "unsafe" not in POLICY and POLICY.startswith("default-src 'none'; script-src 'self'")
    for path in FILES:
        status, content, told = fetched(running.url + path)
        assert status == 200 and content and told["content-security-policy"] == POLICY
        assert told["x-content-type-options"] == "nosniff" and told["referrer-policy"] == "no-referrer"
        status, content, again = fetched(
            running.url + path, **{"If-None-Match": f'"other", W/{told["etag"]}'}
        )
        assert (status, content, again["etag"]) == (304, b"", told["etag"])
    etag = fetched(f"{running.url}/openapi.json")[2]["etag"]
    assert fetched(f"{running.url}/openapi.json", **{"If-None-Match": etag})[0] == 304


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/..%2fpage.py", "/static/../page.py", "//"]
)
def test_no_other_file_is_served(running: Running, path: str) -> None:
    assert fetched(running.url + path)[0] == 404


def test_markup_has_no_script_or_style_of_its_own() -> None:
    from serving.gateway import page as module

    folder = Path(module.__file__).parent / "static"
    assert {path.name for path in folder.iterdir()} == set(FILES.values())
    for path in folder.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path
        if path.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)|https?://", text), path
