"""Everything else that the page does, in a real browser: settings, failures, tokens, strange texts, and who uses it."""

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from gateways import run_gateway
from playgrounds import text_of, token_after
from random_models import make_run, save_bundle
from servers import ROOT, run_server, started

from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SYMBOLS = "<script>alert(1)</script>&\"'` \n\t\r\x07\u202e\u200b\u0301א"


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(32))
    return path


def first_difference(one, other):
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)


def continued(client, text, parameters, changed):
    """Where `text` leaves the one of `parameters` for the continuation with `changed`; None if it never does."""
    at = first_difference(text_of(client, max_chars=len(text), **parameters), text)
    for position in range(at, 0, -1):
        token = token_after(client, position, **parameters)
        if text_of(client, resume_token=token, max_chars=len(text) - position, **changed) == text[position:]:
            return position
    return None


def test_a_change_of_temperature_acts_in_the_middle_of_a_text(playground, gateway, server):
    page = playground(gateway)
    page.start(seed=7, length=300, pace=5)
    page.grown(60)
    page.set(temperature=0)
    page.grown(150)
    page.set(temperature=0.5)
    text = page.complete()
    assert len(text) == 300
    assert any('"update"' in frame for frame in page.sent)
    with server.client() as client:
        first = continued(client, text[:150], {"seed": 7}, {"temperature": 0.0})
        greedy = {"resume_token": token_after(client, first, seed=7), "temperature": 0.0}
        assert continued(client, text[first:], greedy, {"temperature": 0.5})


def test_pace_and_stop_strings_act_in_the_middle_of_a_text(playground, gateway, server):
    with server.client() as client:
        whole = text_of(client, seed=3, max_chars=2000)
    letter = next(letter for letter in "abcdefghijklmnop" if letter in whole[200:])
    page = playground(gateway)
    page.start(seed=3, length=2000, pace=4)
    page.grown(20)
    page.set(pace=5)
    page.grown(40)
    page.set(stop=letter, pace=13)
    stopped = page.complete()
    assert whole.startswith(stopped)
    assert whole[len(stopped)] == letter
    page.page.click("#pause")  # goes on, past the stop string
    page.wait(lambda: len(page.text) > len(stopped))
    again = page.complete()
    assert whole.startswith(again)
    assert again[len(stopped) :].count(letter) == 1


def test_a_server_that_is_killed_and_started_again_changes_nothing(playground, tiny_folder, key):
    with started(tiny_folder, key) as first, run_gateway(first.target) as gateway:
        page = playground(gateway)
        page.start("hello", seed=5, length=600, pace=6)
        page.grown(100)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        with started(tiny_folder, key, first.port) as second:
            text = page.complete()
            with second.client() as client:
                assert text == "hello" + text_of(client, "hello", seed=5, max_chars=600)
        page.tolerate("503")


def test_a_server_with_another_key_gets_the_text_from_its_prompt(playground, tiny_folder, key, tmp_path):
    other_key = tmp_path / "other"
    other_key.write_bytes(bytes(31) + b"x")
    with started(tiny_folder, key) as first, run_gateway(first.target) as gateway:
        page = playground(gateway)
        page.start("hello", seed=5, length=300, pace=6)
        page.grown(60)
        page.set(temperature=0.6)
        page.grown(100)
        page.pause()
        page.fork(80, "2")
        page.grown(120)
        page.set(temperature=0.9)
        page.grown(150)
        before = page.pause()
        first.process.kill()
        first.process.wait()
        with started(tiny_folder, other_key, first.port):
            page.page.keyboard.press("Alt+Enter")
            assert page.complete().startswith(before)
            assert len(page.text) == 380
        page.tolerate("503")


def test_a_gateway_that_is_killed_and_started_again_changes_nothing(playground, server):
    with run_gateway(server.target) as first:
        page = playground(first)
        page.start("hello", seed=6, length=900, pace=6)
        page.grown(150)
        first.process.kill()
        first.process.wait()
        page.wait(lambda: page.status.startswith("Waiting"))
    with run_gateway(server.target, port=first.port):
        text = page.complete()
        with server.client() as client:
            assert text == "hello" + text_of(client, "hello", seed=6, max_chars=900)


def test_a_server_without_place_is_told_in_a_sentence(playground, tiny_folder):
    arguments = ("--max-streams", 1, "--max-waiting", 0)
    with run_server(tiny_folder, *arguments) as server, run_gateway(server.target) as gateway:
        with server.client() as client, client.generate(max_chars=0, chars_per_second=50) as busy:
            next(busy)
            page = playground(gateway)
            page.start()
            page.page.locator("#problem").wait_for()
            # gRPC for asyncio loses the server's reason if an action was on its way when the call ended.
            reasons = ("try again later", "The call ended while an action was on its way")
            assert any(reason in page.page.inner_text("#problem") for reason in reasons)
            assert page.page.inner_text("#load").startswith("1 of 1 streams")
        page.start(length=20)
        assert len(page.complete()) == 20
        page.tolerate("429")


def test_errors_name_what_is_wrong(playground, gateway):
    page = playground(gateway)
    page.start("1234")
    page.page.locator("#problem").wait_for()
    problem = page.page.inner_text("#problem")
    assert "'1'" in problem
    assert "(request " in problem
    for value in ("-1", "x", str(2**64), ""):
        page.set(seed=value)
        page.page.click("#start")
        assert "seed must be a whole number" in page.page.inner_text("#problem")
    page.set(seed=2**64 - 1)
    page.start("hello", length=30)
    assert len(page.complete()) == 35
    for value, sentence in (("not a token!", "not a resume token"), ("", "Paste"), ("AAAA", "token")):
        page.set(pasted=value)
        page.page.click("#paste-form button")
        page.wait(lambda sentence=sentence: sentence in page.page.inner_text("#problem"))
    assert "(request " in page.page.inner_text("#problem")
    page.tolerate("400")


def test_an_idle_pause_costs_no_slot_and_goes_on(playground, tiny_folder):
    with run_server(tiny_folder, "--idle-seconds", 1) as server, run_gateway(server.target) as gateway:
        page = playground(gateway)
        page.start(seed=2, length=300, pace=5)
        page.grown(50)
        page.pause()
        with server.client() as client:
            page.wait(lambda: client.models().streams_running == 0)
            page.page.wait_for_timeout(1500)
            page.set(pace=13)
            page.page.click("#pause")
            assert page.complete() == text_of(client, seed=2, max_chars=300)


def test_two_models_beside_each_other(playground, tmp_path):
    run = make_run()
    save_bundle(run, tmp_path / "whole")
    bundle = build_bundle(run, "small", "int8")
    write_bundle(bundle, manifest_of(bundle, {}, {}), tmp_path / "small")
    with run_server(tmp_path / "whole", tmp_path / "small") as server, run_gateway(server.target) as gateway:
        page = playground(gateway)
        page.page.select_option("#other-model", "small")
        page.start("hello", seed=7, length=400)
        page.complete()
        page.wait(lambda: [len(text) for text in page.texts] == [405, 405])
        first, second = page.texts
        with server.client() as client:
            assert first == "hello" + text_of(client, "hello", model="whole", seed=7, max_chars=400)
            assert second == "hello" + text_of(client, "hello", model="small", seed=7, max_chars=400)
        common = first_difference(first, second)
        assert common, "the models should differ somewhere"
        assert f"character {common + 1:,}" in page.page.inner_text("#difference")
        marked = page.page.evaluate("[...document.querySelectorAll('rill-text')].map((view) => view.marked)")
        assert marked == [common, common]
        page.page.select_option("#other-model", "")
        page.start("hello", length=10)
        page.complete()
        assert len(page.texts) == 1


def test_a_token_is_copied_and_continued(playground, gateway, server):
    page = playground(gateway)
    page.start("hello", seed=7, temperature=0.8, length=100)
    whole = page.complete()
    with server.client() as client:
        token = page.page.input_value("#token")
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        expected = text_of(client, resume_token=raw, max_chars=80)
        assert "hello" + text_of(client, "hello", seed=7, temperature=0.8, max_chars=180) == whole + expected
    page.set(pasted=f" {token[:40]}\n{token[40:]}", length=80)
    page.page.click("#paste-form button")
    page.wait(lambda: page.text == expected)
    assert "as in the token" in page.page.inner_text("output[for=temperature]")
    page.fork(10, "Enter")  # with a new seed, and the token's other settings
    page.wait(lambda: page.text[:10] == expected[:10] and page.text != expected and page.status.startswith("Complete"))


def test_a_bearer_token_goes_nowhere_else(playground, tiny_folder, tmp_path):
    secret = "s3cret-of-the-tab"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{secret}\n")
    tokens.chmod(0o600)
    with run_server(tiny_folder, "--auth-token-file", tokens) as server, run_gateway(server.target) as gateway:
        page = playground(gateway, bearer=secret)
        page.start("hello", seed=7, length=50)
        assert len(page.complete()) == 55
        assert "$RILL_TOKEN" in page.page.inner_text("#snippet")
        assert page.page.evaluate("sessionStorage.getItem('rill.bearer')") == secret
        assert page.page.evaluate("localStorage.length") == 0
        assert not page.context.cookies()
        assert not any(secret in url for url in page.asked)
        assert secret not in page.page.content()
        page.page.fill("#bearer", "wrong")
        page.page.click("#access button")
        page.wait(lambda: page.page.inner_text("#bearer-state") == "refused")
        page.page.click("#start")
        page.wait(lambda: "token" in page.page.inner_text("#problem"))
        page.tolerate("401")
        gateway.process.terminate()
        assert gateway.process.stderr
        assert secret not in gateway.process.stderr.read()


def test_a_text_of_hostile_characters_is_text(playground, tmp_path):
    save_bundle(make_run(tuple(sorted(set(SYMBOLS)))), tmp_path / "hostile")
    with run_server(tmp_path / "hostile") as server, run_gateway(server.target) as gateway:
        page = playground(gateway)
        page.start("<script>alert(1)</script>\u202e\u200b", seed=1, length=500)
        text = page.complete()
        with server.client() as client:
            prompt = "<script>alert(1)</script>\u202e\u200b"
            assert text == prompt + text_of(client, prompt, seed=1, max_chars=500)
        signs = page.page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('rill-text span[data-sign]')]"
            ".map((span) => [span.textContent, span.dataset.sign]))"
        )
        assert signs == {"\x07": "␇", "\r": "␍", "\u202e": "U+202E", "\u200b": "U+200B"}
        assert page.page.evaluate("document.querySelectorAll('rill-text script, rill-text img').length") == 0
        page.page.set_viewport_size({"width": 390, "height": 844})
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_long_text_leaves_the_page_quick(playground, gateway, server):
    page = playground(gateway)
    page.page.uncheck("#shading")
    page.page.evaluate(
        """() => {
          window.longest = 0;
          let last = performance.now();
          const look = (now) => {
            window.longest = Math.max(window.longest, now - last);
            last = now;
            requestAnimationFrame(look);
          };
          requestAnimationFrame(look);
        }"""
    )
    page.start(seed=4, length=100_000)
    page.wait(lambda: page.status.startswith("Complete: 100,000"), 120)
    page.grown(100_000)
    assert page.page.evaluate("window.longest") < 3000  # ms between two frames
    with server.client() as client:
        assert page.text == text_of(client, seed=4, max_chars=100_000)
    page.fork(99_000, "Enter")
    page.wait(lambda: len(page.text) > 100_000)
    page.pause()
    page.page.click("#back")
    page.wait(lambda: len(page.text) == 100_000)


def test_everything_is_reached_by_keys(playground, gateway):
    page = playground(gateway)
    keys = page.page.keyboard
    page.set(seed=7, length=120)
    page.page.focus("#prompt")
    keys.type("hello")
    keys.press("Control+Enter")
    whole = page.complete()
    seen = []
    page.page.click("h1")
    for _ in range(60):
        keys.press("Tab")
        focused = page.page.evaluate(
            """() => {
              const one = document.activeElement, style = getComputedStyle(one);
              const named = one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim();
              const { outlineStyle: outline, outlineWidth } = style;
              return { id: one.id || one.tagName, named: Boolean(named), outline, width: parseFloat(outlineWidth) };
            }"""
        )
        if focused["id"] in ("BODY", seen[0]["id"] if seen else ""):
            break
        seen.append(focused)
    assert all(one["named"] and one["outline"] != "none" and one["width"] >= 2 for one in seen), seen
    wanted = {"prompt", "start", "pause", "RILL-TEXT", "temperature", "top-p", "min-p", "top-k", "seed", "pace"}
    assert wanted <= {one["id"] for one in seen}
    page.page.focus("rill-text")
    keys.press("Home")
    for _ in range(30):
        keys.press("ArrowRight")
    keys.press("Enter")
    page.page.locator(".fork-menu").wait_for()
    keys.press("Escape")
    assert page.page.evaluate("document.activeElement.tagName") == "RILL-TEXT"
    assert page.status.startswith("Complete")
    keys.press("Enter")
    keys.press("3")
    page.wait(lambda: page.text != whole and page.status.startswith("Complete"))
    assert page.text[:30] == whole[:30]
    keys.press("Alt+Backspace")
    page.wait(lambda: page.text == whole)
    page.set(pace=4)
    keys.press("Alt+Enter")
    page.wait(lambda: page.status == "The text grows")
    keys.press("Escape")
    page.wait(lambda: page.status.startswith("Paused"))


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const pixel = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("button:disabled, noscript, script, option")) continue;
    const backs = [];
    for (let at = element; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
    const back = pixel(backs), ink = pixel([...backs, getComputedStyle(element).color]);
    const [dark, light] = [luminance(back), luminance(ink)].sort((one, other) => one - other);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) poor.push([element.className || element.tagName, node.data.slice(0, 20), ratio.toFixed(2)]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_is_readable_and_fits(playground, gateway, scheme, width):
    page = playground(gateway, color_scheme=scheme, viewport={"width": width, "height": 844}, reduced_motion="reduce")
    page.start("hello", seed=7, length=200)
    page.complete()
    page.fork(20, "2")
    page.complete()
    page.page.locator("#help summary").click()
    page.page.locator("rill-text span").nth(40).click()
    page.page.locator(".fork-menu").wait_for()
    assert page.page.evaluate(CONTRAST) == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.page.evaluate(
        "[...document.querySelectorAll('.fork-menu button, .actions button')].every((one) => "
        "{ const box = one.getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth; })"
    )


def test_the_requests_to_copy_make_the_same_text(playground, gateway, server, tmp_path):
    page = playground(gateway)
    prompt = 'it s\n"hello" '.replace('"', "").replace("it s", "its")
    page.start(prompt, seed=2**63 + 5, temperature=0.7, top_p=0.9, length=120)
    text = page.complete()[len(prompt) :]
    for origin in ("prompt", "token"):
        page.page.click(f"#origins [data-value={origin}]")
        if origin == "token":
            with server.client() as client:
                parameters = {"seed": 2**63 + 5, "temperature": 0.7, "top_p": 0.9}
                text = text_of(client, prompt, max_chars=240, **parameters)[120:]
        snippets = {}
        for program in ("curl", "rill", "grpcurl"):
            page.page.click(f"#programs [data-value={program}]")
            if program != "curl":
                page.set(target=server.target)
            snippets[program] = page.page.inner_text("#snippet")
        if shutil.which("grpcurl"):
            assert said_by_grpcurl(snippets["grpcurl"]) == text
        assert said_by_curl(snippets["curl"]) == text
        done = subprocess.run(
            [sys.executable, "-c", snippets["rill"]], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == text


def said_by_grpcurl(snippet):
    """The text of the messages that the command prints, one JSON object after another."""
    done = subprocess.run(["sh", "-c", snippet], capture_output=True, text=True, check=True, timeout=60)
    objects = done.stdout.replace("}\n{", "},{")
    messages = json.loads(f"[{objects}]")
    return "".join(message.get("text", "") for message in messages)


def said_by_curl(snippet):
    """The text of the events that the command prints."""
    assert shlex.split(snippet)[0] == "curl"
    done = subprocess.run(["sh", "-c", snippet], capture_output=True, text=True, check=True, timeout=60)
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
