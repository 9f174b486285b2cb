"""The page in a real browser: streaming, side by side, stopping, errors, names for screen readers, small screens."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serve.server import serving

from fakes import byte_tokenizer, tiny_llama
from metier.models.save import save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium browser on the path"),
    pytest.mark.slow,
]
TOKEN = "a-token-of-some-length-123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_llama(), byte_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 760})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def test_a_question_is_answered_side_by_side(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder, "two": folder}, tmp_path) as address:
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        page.select_option("#beside", "two")
        page.fill("#longest", "8", force=True) if page.is_visible("#longest") else page.click("summary")
        page.fill("#longest", "8")
        ask(page, "<b>Hello</b>?")
        page.wait_for_selector(".answer:not(.writing) >> nth=1")
        assert page.inner_text(".asked") == "<b>Hello</b>?"
        assert page.locator(".answer h2").all_inner_texts() == ["one", "two"]
        first, second = page.locator(".answer p:not(.cost)").all_inner_texts()
        assert first == second
        assert re.search(r"\d+ tokens", page.locator(".cost").first.inner_text())
        with page.expect_download() as download:
            page.click("#export")
        assert "## <b>Hello</b>?" in Path(download.value.path()).read_text()
        page.click("#clear")
        assert page.locator(".turn").count() == 0
    assert page.problems == []
    assert all(url.startswith((address, "blob:")) for url in page.asked)


def test_an_answer_can_be_stopped(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder}, tmp_path) as address:
        page.goto(address)
        page.route("**/v1/chat/completions", lambda route: None)  # an answer that never comes
        ask(page, "Hello?")
        page.wait_for_selector("#stop:visible")
        page.keyboard.press("Escape")
        page.wait_for_selector("#send:visible")
        assert "stopped" in page.inner_text(".cost")


def test_a_question_waits_for_the_models(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder}, tmp_path) as address:
        held: list[Any] = []
        page.route("**/v1/models", lambda route: held.append(route))
        page.goto(address)
        ask(page, "Hello?")
        assert page.locator(".asked").count() == 0
        held[0].continue_()
        page.wait_for_selector(".answer:not(.writing)")
        assert page.inner_text(".asked") == "Hello?"
        assert page.locator(".answer").count() == 1


def test_errors_are_said(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder}, tmp_path) as address:
        page.goto(address)
        ask(page, "x" * 6000)
        page.wait_for_selector("#error:visible")
        assert "tokens" in page.inner_text("#error")
        assert page.get_attribute("#error", "role") == "alert"


def test_the_token_is_asked_for_once(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder}, tmp_path, token=TOKEN) as address:
        page.goto(address)
        page.wait_for_selector("#token:visible")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#question:visible")
        ask(page, "Hello?")
        page.wait_for_selector(".answer:not(.writing)")
        assert page.locator(".failed").count() == 0


def test_every_control_has_a_name_and_can_be_reached(page: Any, folder: Path, tmp_path: Path):
    with serving({"one": folder}, tmp_path) as address:
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        for control in page.locator("button:visible, select:visible, textarea:visible, input:visible").all():
            said = control.inner_text() if control.evaluate("e => e.tagName") == "BUTTON" else ""
            assert said or control.evaluate("e => e.labels.length > 0")
        reached = set()
        for _ in range(16):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert {"Chat", "Runs", "Training", "model", "beside", "question", "send"} <= reached
        assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1100, "light")])
def test_it_fits_and_can_be_read(browser: Any, folder: Path, tmp_path: Path, width: int, scheme: str):
    with serving({"one": folder}, tmp_path) as address:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = page.evaluate(
            "(() => { const s = getComputedStyle(document.documentElement); return [s.color, s.backgroundColor]; })()"
        )
        assert contrast(ink, paper) > 7
        page.close()


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2 between two `rgb(...)` colours."""

    def light(colour: str) -> float:
        parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
