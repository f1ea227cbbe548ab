"The page in a real Chromium (`make test-browser`): it shows both models, streams, says how long it took, and a star lands in the log; at the width of a phone, too."
import os, shutil, tempfile, time
from pathlib import Path

import pytest

from serving import SLOW, Server, held, until
from ftlearn.config import resolve
from ftlearn.core import write_jsonl
from ftlearn.deploy.log import RequestLog
from ftlearn.tiny import tiny_rows
from ftlearn.train.sft import train

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("SHOTS")   # a folder for screenshots


@pytest.fixture(scope="module")
def home():
    home = Path(tempfile.mkdtemp())
    rows = [{**r, "messages": [{"role": "system", "content": "Answer in JSON."}, *r["messages"]]} for r in tiny_rows(48)]
    write_jsonl(home / "rows.jsonl", rows)
    train(resolve(dict(model="tiny", method="lora", dtype="float32", data=str(home / "rows.jsonl"), split="60/20/20", out=str(home / "runs" / "tuned"), learning_rate=0.01, max_steps=40, per_device_train_batch_size=16,
                       max_length=512, max_new_tokens=400), settings=False), progress=False, say=lambda text: None)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def server(home):
    with Server(home / "runs" / "tuned", "--log", home / "log.db", "--max-tokens", 400) as s: yield s


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM: pytest.skip("no Chromium is on the PATH (on Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright; its own browsers are not needed)")
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"], timeout=1000*SLOW)
        yield b
        b.close()


@pytest.fixture
def page(browser, server, request):
    width, height = getattr(request, "param", (1280, 800))
    context = browser.new_context(viewport=dict(width=width, height=height), has_touch=width < 500)
    page, page.complaints = context.new_page(), []
    page.set_default_timeout(1000*SLOW)
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.complaints.append(str(e)))
    page.on("request", lambda r: page.complaints.append(r.url) if not r.url.startswith((server.url, "data:")) else None)
    page.goto(server.url)
    yield page
    context.close()


def shot(page, name):
    if SHOTS: page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def wait(page, what):
    "Wait until an expression is true. Playwright's own wait would evaluate text in the page, which the page's policy forbids."
    end = time.monotonic() + SLOW
    while not page.evaluate(what):
        assert time.monotonic() < end, what
        page.wait_for_timeout(20)


def answered(page): wait(page, "[...document.querySelectorAll('.stars')].every(s => s.classList.contains('on'))")


@pytest.mark.parametrize("page", [(1280, 800), (360, 740)], indirect=True, ids=["desktop", "phone"])
def test_both_answer_and_a_star_lands_in_the_log(page, home):
    page.wait_for_selector("section")
    assert page.locator("section select").evaluate_all("all => all.map(s => s.value)") == ["tiny", "tuned"]
    assert page.input_value("#system") == "Answer in JSON."   # as the run was trained
    page.fill("#question", "2 red cat")
    page.click("#go")
    wait(page, "document.querySelectorAll('.answer')[1].textContent.length > 3")
    answered(page)
    base, tuned = page.locator(".answer").all_text_contents()
    assert tuned.startswith('{"count":2') and base != tuned
    assert all("first word" in f and "tokens/s" in f for f in page.locator(".facts").all_text_contents())
    page.locator(".stars").nth(1).get_by_role("radio", name="4 of 5 stars").click()
    wait(page, "document.querySelectorAll('.stars span')[1].textContent === 'kept'")
    row = RequestLog(home / "log.db").rows(rated=(4, 4))[-1]
    assert (row["model"], row["output"], row["rating"]) == ("tuned", tuned, 4)
    assert page.locator(".stars").nth(1).locator("[aria-checked=true]").count() == 4
    wide, narrow = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= narrow, "it must not scroll sideways"
    small = page.evaluate("[...document.querySelectorAll('button')].filter(b => b.offsetWidth && (b.offsetWidth < 40 || b.offsetHeight < 30)).length")
    assert small == 0, "buttons must be large enough for a finger"
    shot(page, f"serve_{page.viewport_size['width']}")
    assert page.complaints == []


def test_it_streams_and_can_be_stopped(page, server):
    page.wait_for_selector("section")
    page.evaluate("""() => { window.seen = new Set(); new MutationObserver(() => seen.add(document.querySelector('.answer').textContent.length)).observe(document.querySelector('.answer'), {childList: true, characterData: true, subtree: true}); }""")
    page.fill("#question", "9 blue box")
    page.click("#go")
    wait(page, "seen.size > 8")   # it grew in steps
    page.click("#stop")
    wait(page, "document.querySelector('.facts').textContent === 'stopped'")
    until(lambda: held(server) == 0)
    assert page.is_enabled("#go") and page.complaints == []


def test_an_answer_is_text_and_never_a_part_of_the_page(page):
    "A model that writes HTML, and a script in the page that is not ours."
    page.wait_for_selector("section")
    page.route("**/v1/chat/completions", lambda r: r.fulfill(content_type="text/event-stream", body='data: {"id":"x","choices":[{"delta":{"content":"<img src=x onerror=window.hacked=1><b>bold</b>"}}]}\n\ndata: [DONE]\n\n'))
    page.fill("#question", "x")
    page.click("#go")
    answered(page)
    assert page.locator(".answer").first.text_content() == "<img src=x onerror=window.hacked=1><b>bold</b>" and page.locator(".answer *").count() == 0 and page.evaluate("window.hacked") is None
    assert page.complaints == []
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 2'}))")
    assert page.evaluate("window.hacked") is None and "Content Security Policy" in page.complaints[0]


def test_what_goes_wrong_is_told(page):
    page.wait_for_selector("section")
    page.fill("#question", "red " * 2000)
    page.click("#go")
    wait(page, "document.querySelectorAll('.answer.error').length === 2")
    assert "this model holds" in page.locator(".answer").first.text_content() and page.is_enabled("#go")
    shot(page, "serve_error")
