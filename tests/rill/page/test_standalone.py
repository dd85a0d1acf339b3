"""The page that `rill page` writes, in a real browser."""

import json
import re
import shutil

import numpy as np
import pytest
from reference_texts import reference
from servers import wait_until
from static_server import static_server

from rill.export.parity.compare import session

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FAST = "8"  # the last of the speeds


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(sites):
    with static_server(next(iter(sites.values())).parent) as address:
        yield address


class Visit:
    """A page that is open, with what it complained about and whom it asked."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.complaints, self.asked = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def opened(self):
        expect(self.page.locator("#tool")).to_be_visible(timeout=60_000)
        return self

    def set(self, **values):
        for name, value in values.items():
            self.page.locator(f"#{name.replace('_', '-')}").fill(str(value))

    def generate(self, prompt="", **values):
        self.set(prompt=prompt, speed=FAST, **values)
        self.page.click("#generate")
        self.finished()

    def finished(self):
        expect(self.page.locator("#pause")).to_have_text("Go on", timeout=60_000)

    @property
    def text(self):
        return self.page.evaluate("document.getElementById('text').text")

    def choose(self, position):
        self.page.locator("#text span").nth(position).click()


@pytest.fixture
def visit(chromium, address):
    """Open a model's page; at the end, no page has complained, or asked another host."""
    visits = []

    def open_(name="gru", is_whole=True, **options):
        visits.append(Visit(chromium, f"{address}{name}/", **options))
        return visits[-1].opened() if is_whole else visits[-1]

    yield open_
    for one in visits:
        one.context.close()
        assert not one.complaints
        assert all(url.startswith((address, "blob:")) for url in one.asked), one.asked


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn", "deep"])
def test_texts_are_the_servers(visit, models, name):
    bundle, _ = models[name]
    page = visit(name)
    cases = [
        ("abc", 7, {}),
        ("a", 2**64 - 1, {"temperature": 0.0}),
        ("ab", 5, {"temperature": 1.25, "top_p": 0.8, "top_k": 6, "min_p": 0.02}),
        ("", 11, {"temperature": 0.5}),
    ]
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    for prompt, seed, parameters in cases:
        page.generate(prompt, seed=seed, count=80, **(plain | parameters))
        assert page.text == prompt + reference(bundle, prompt, seed, 80, **(plain | parameters))


def test_any_web_server_will_do(chromium, sites):
    """One that does not know WebAssembly, forbids what can be forbidden, and has the page under a path."""
    policy = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
    headers = {
        "Content-Security-Policy": policy + "connect-src 'self'; worker-src 'self'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    with static_server(sites["gru"].parent, headers, knows_wasm=False) as address:
        page = Visit(chromium, address + "gru").opened()
        page.generate("ab", count=10)
        assert len(page.text) == 12
        assert not page.complaints
        page.context.close()


def test_pause_and_go_on_change_nothing(visit, models):
    page = visit()
    page.set(prompt="ab", count=400, seed=3, temperature=1, speed=3)
    page.page.click("#generate")
    wait_until(lambda: len(page.text) > 20)
    page.page.click("#pause")
    page.finished()
    length = len(page.text)
    assert length < 300
    page.set(speed=FAST, count=100)
    page.page.click("#pause")
    page.finished()
    assert page.text == "ab" + reference(models["gru"][0], "ab", 3, length - 2 + 100)


def test_settings_act_in_mid_text(visit):
    page = visit()
    page.set(prompt="ab", count=2000, seed=3, temperature=1, speed=6)
    page.page.click("#generate")
    wait_until(lambda: len(page.text) > 20)
    page.set(temperature=0)
    page.set(speed=FAST)
    page.finished()
    assert len(page.text) == 2002
    assert len(set(page.text[-50:])) < 25  # greedy: it repeats itself


def test_fork_and_put_back(visit):
    page = visit()
    page.generate("ab", seed=9, temperature=1, count=300)
    text = page.text
    page.choose(50)
    expect(page.page.locator("#chosen-label")).to_contain_text("at 51")
    page.page.click("#fork")
    assert page.text == text[:51]
    page.set(count=251)
    page.page.click("#pause")
    page.finished()
    assert page.text == text  # the same seed
    page.choose(50)
    page.page.click("#fork")
    page.set(seed=10)
    page.page.click("#pause")
    page.finished()
    assert page.text[:51] == text[:51]
    assert page.text != text
    page.page.get_by_role("button", name="Put back: 302 characters, before the fork at 51").first.click()
    assert page.text == text
    expect(page.page.locator("#seed")).to_have_value("9")
    # Of the prompt's first character, the state before it is known, too.
    page.choose(0)
    page.page.click("#fork")
    assert page.text == "a"
    page.page.click("#pause")
    page.finished()


def test_a_state_in_a_file(visit, tmp_path):
    """Another visit goes on with it."""
    page = visit("lstm")
    page.generate("ab", seed=9, temperature=0.9, top_p=0.95, count=300)
    page.page.click("#save")
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name=re.compile("^Download")).click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "lstm-state-at-302.json"
    page.page.click("#pause")
    page.finished()

    other = visit("lstm")
    other.page.set_input_files("#file", path)
    expect(other.page.locator("#temperature")).to_have_value("0.9")
    other.set(speed=FAST, count=300)
    other.page.click("#pause")
    other.finished()
    assert other.text == page.text
    other.choose(10)  # the state of which is not in the file
    other.page.click("#fork")
    expect(other.page.locator("#file-error")).to_have_text("The state of this character is not kept.")

    saved = json.loads(path.read_text())
    for changes, sentence in (
        ({"model_id": "0" * 64}, "This state is of another model (lstm)."),
        ({"rill_page_state": 2}, "This file is not a state that this page saved."),
        ({"states": {}}, "The state in this file is damaged."),
        ({"position": -1}, "The state in this file is damaged."),
        ({"seed": "9" * 20}, "The state in this file is damaged."),
        ({"sampling": saved["sampling"] | {"banned": [1000]}}, "The state in this file is damaged."),
        ({"sampling": {"temperature": "hot"}}, "The state in this file is damaged."),
        ({"text": "ü"}, "The model does not know the character ü (U+00FC) at position 1."),
        ({"text": ""}, "The state in this file is damaged."),
    ):
        path.write_text(json.dumps(saved | changes))
        other.page.set_input_files("#file", path)
        expect(other.page.locator("#file-error")).to_have_text(sentence)
    path.write_text("[" * 100)
    other.page.set_input_files("#file", path)
    expect(other.page.locator("#file-error")).to_have_text("This file is not JSON.")


def test_units_have_the_models_values(visit, models):
    """Of each layer and part; the portable graph in Python says which."""
    for name in ("lstm", "deep"):
        bundle, _ = models[name]
        page = visit(name)
        page.generate("abc", seed=1, count=30)
        graph = session(bundle.graphs["model"])
        feeds = {state: np.zeros((bundle.layers, 1, bundle.hidden), np.float32) for state, _ in bundle.states}
        tokens = np.array([bundle.vocabulary.encode(page.text[:21])])
        results = graph.run([f"next_{state}" for state, _ in bundle.states], {**feeds, "tokens": tokens})
        page.set(unit=5)
        page.choose(20)
        for option in page.page.locator("#layer option").all():
            part, layer = map(int, option.get_attribute("value").split())
            page.page.select_option("#layer", option.get_attribute("value"))
            shown = page.page.inner_text("#map-note")
            assert re.fullmatch("unit 5 after . at 21: [+−].*", shown)
            assert abs(float(shown.rpartition(" ")[2].replace("−", "-")) - results[part][layer, 0, 5]) < 6e-4
        labels = page.page.locator("#layer option").all_inner_texts()
        assert labels == (["1 h", "1 c"] if name == "lstm" else ["1", "2", "3"])


def test_a_unit_colours_the_text(visit, models):
    page = visit()
    page.generate("abc", seed=1, count=30)
    page.page.click("#shade-unit")
    page.set(unit=3)
    bundle, _ = models["gru"]
    tokens = np.array([bundle.vocabulary.encode(page.text)])
    graph = session(bundle.graphs["model"])
    wanted = []
    state = np.zeros((1, 1, bundle.hidden), np.float32)
    for index in range(tokens.shape[1]):
        (state,) = graph.run(["next_state_h"], {"tokens": tokens[:, index : index + 1], "state_h": state})
        wanted.append((state[0, 0, 3] + 1) / 2 * 16)
    classes = page.page.evaluate("[...document.querySelectorAll('#text span')].map((span) => span.className)")
    found = [int(re.match(r"u(\d+)", name)[1]) for name in classes]
    assert np.abs(np.array(found) - wanted).max() <= 0.51


def test_a_unit_is_found(visit):
    page = visit("deep")
    page.page.select_option("#find", "space")
    expect(page.page.locator("#found")).to_have_text("There is no text yet.")
    page.generate("ab", seed=4, count=300)
    page.page.select_option("#find", "vowel")
    expect(page.page.locator("#found")).to_have_text(
        re.compile("^Unit [0-9]+ of layer [123] goes best with vowels: correlation [+−]0.[0-9]{2}.$")
    )
    unit, layer = re.findall("[0-9]+", page.page.inner_text("#found"))[:2]
    expect(page.page.locator("#unit")).to_have_value(unit)
    assert page.page.locator("#layer option:checked").inner_text() == layer
    expect(page.page.locator("#shade-unit")).to_have_attribute("aria-pressed", "true")
    assert page.page.locator("#text span[class^=u]").count() == 302


def test_text_is_copied(visit):
    """With and without the permission to write into the clipboard."""
    page = visit()
    page.generate("ab", seed=4, count=30)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.page.click("#copy")
    expect(page.page.locator("#copy")).to_have_text("Copied")
    assert page.page.evaluate("navigator.clipboard.readText()") == page.text
    page.generate("abc", seed=5, count=30)
    page.page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new Error('no')))")
    page.page.click("#copy")
    wait_until(lambda: page.page.evaluate("navigator.clipboard.readText()") == page.text)


def test_by_keyboard_alone(visit):
    page = visit()
    keyboard = page.page.keyboard
    page.page.locator("#prompt").focus()
    keyboard.type("abc")
    keyboard.press("Control+Enter")
    wait_until(lambda: len(page.text) > 40)
    keyboard.press("Tab")
    keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.id") == "pause"
    keyboard.press("Enter")
    page.finished()
    page.page.locator("#text").focus()
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert page.page.locator(".text-tip").is_visible()
    keyboard.press("Enter")
    expect(page.page.locator("#chosen-label")).to_have_text("c at 3")
    page.page.locator("#map").focus()
    keyboard.press("ArrowRight")
    keyboard.press("ArrowDown")
    expect(page.page.locator("#map-note")).to_contain_text("unit 1 after")
    expect(page.page.locator("#map-note")).to_contain_text("at 4")
    page.page.locator("#fork").focus()
    keyboard.press("Enter")
    assert len(page.text) == 4
    assert page.page.evaluate("document.activeElement.id") == "pause"
    keyboard.press("Enter")
    wait_until(lambda: len(page.text) > 10)


def test_wrong_entries_are_said_in_their_place(visit):
    page = visit()
    page.set(prompt="abß")
    page.page.click("#generate")
    expect(page.page.locator("#prompt-error")).to_have_text(
        "The model does not know the character ß (U+00DF) at position 3."
    )
    page.set(prompt="ab" * 25_001)
    page.page.click("#generate")
    expect(page.page.locator("#prompt-error")).to_have_text("The prompt has 50,002 characters; this page reads 50,000.")
    page.set(prompt="ab", seed=2**64)
    page.page.click("#generate")
    expect(page.page.locator("#seed-error")).to_contain_text("from 0 to 2⁶⁴ − 1")
    assert page.text == ""
    page.set(count="-5")
    page.generate("ab", seed=3)
    assert len(page.text) == 3
    expect(page.page.locator("#seed-error")).to_be_hidden()
    expect(page.page.locator("#prompt-error")).to_be_hidden()


def test_characters_that_are_banned(visit, models):
    page = visit("deep")
    bundle, _ = models["deep"]
    bias = {"a": -np.inf, "漢": -np.inf, "\n": -np.inf}
    page.generate("ab", seed=3, count=80, temperature=1, banned="a漢ß↵")
    assert page.text == "ab" + reference(bundle, "ab", 3, 80, logit_bias=bias)
    page.page.click("#save")
    page.set(banned="".join(bundle.vocabulary.symbols[1:]).replace("\n", "↵"))
    expect(page.page.locator("#banned-error")).to_have_text("No character is left.")
    page.page.get_by_role("button", name=re.compile("^Put back")).click()
    expect(page.page.locator("#banned")).to_have_value("a漢↵")
    expect(page.page.locator("#banned-error")).to_be_hidden()


def test_unknown_characters_are_read_as_such(visit, models):
    page = visit("deep")
    page.generate("aßb漢🚀", seed=3, count=40, temperature=1)
    assert page.text == "a�b漢�" + reference(models["deep"][0], "aßb漢🚀", 3, 40)
    expect(page.page.locator("#prompt-note")).to_have_text("Unknown to the model, which reads them as �: 2.")
    page.generate("ab", count=1)
    expect(page.page.locator("#prompt-note")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(visit, scheme):
    page = visit("deep", viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.generate("ab", count=300)
    assert page.page.evaluate("document.scrollingElement.scrollWidth") <= 360
    page.page.click("#shade-unit")
    page.choose(3)
    assert page.page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_long_texts_stay_quick(visit):
    """The page answers while it draws tens of thousands of characters."""
    page = visit()
    page.set(prompt="ab", count=20_000, speed=FAST)
    page.page.click("#generate")
    longest = page.page.evaluate(
        """new Promise((resolve) => {
             let last = performance.now();
             let longest = 0;
             const look = () => {
               const now = performance.now();
               longest = Math.max(longest, now - last);
               last = now;
               const isDone = document.getElementById("text").length >= 20000;
               if (isDone) resolve(longest); else setTimeout(look, 5);
             };
             look();
           })"""
    )
    page.finished()
    assert longest < 2000  # milliseconds, on a busy machine; usually below 100
    page.page.click("#shade-unit")
    page.page.select_option("#order", "pace")
    page.choose(19_990)
    page.page.click("#fork")
    assert len(page.text) == 19_991


def test_a_new_text_while_one_runs(visit, models):
    page = visit()
    page.set(prompt="ab", count=5000, speed=FAST, seed=1, temperature=1)
    page.page.click("#generate")
    wait_until(lambda: len(page.text) > 100)
    page.generate("c", seed=2, count=100)
    assert page.text == "c" + reference(models["gru"][0], "c", 2, 100)
    page.page.click("#save")
    page.set(count=5000)
    page.page.click("#pause")
    wait_until(lambda: len(page.text) > 200)
    page.page.get_by_role("button", name=re.compile("^Put back")).click()
    page.finished()
    assert page.text == "c" + reference(models["gru"][0], "c", 2, 100)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("model/model.json", "The page cannot start: model/model.json cannot be loaded: 404"),
        ("model/model.onnx", "The model cannot be run here: /model/model.onnx cannot be loaded: 404"),
        (
            "onnxruntime/ort-wasm-simd-threaded.wasm",
            "The model cannot be run here: /onnxruntime/ort-wasm-simd-threaded.wasm cannot be loaded: 404",
        ),
        ("onnxruntime/ort.js", "The model cannot be run here: the worker cannot be started"),
    ],
)
def test_a_folder_that_lacks_a_file(chromium, sites, tmp_path, file, sentence):
    folder = shutil.copytree(sites["gru"], tmp_path / "site")
    (folder / file).unlink()
    with static_server(folder) as address:
        page = Visit(chromium, address)
        expect(page.page.locator("#error")).to_have_text(sentence, timeout=60_000)
        assert page.page.locator("#starting").is_hidden()
        page.context.close()


@pytest.mark.parametrize("name", ["molecules", "ngrams-molecules"])
def test_a_model_of_longer_symbols_ends_its_texts(visit, models, name, tmp_path):
    """A symbol is one unit of the text; what has ended stays, forks and goes on from a file."""
    bundle, _ = models[name]
    prompt, seed = next(
        (prompt, seed)
        for seed in range(100)
        for prompt in ("", "CCl[nH]")
        if 6 <= len(bundle.vocabulary.encode(reference(bundle, prompt, seed, 60))) <= 40
    )
    text = prompt + reference(bundle, prompt, seed, 60)
    count = len(bundle.vocabulary.encode(text))
    page = visit(name)
    page.generate(prompt, seed=seed, temperature=1, count=60)
    assert page.text == text
    expect(page.page.locator("#status")).to_have_text(f"{count} symbols, ended by the model")
    assert page.page.locator("#text span").count() == count
    page.page.click("#pause")  # ends at once again
    page.finished()
    assert page.text == text
    page.choose(3)
    page.page.click("#fork")
    page.page.click("#pause")
    page.finished()
    assert page.text == text
    page.page.click("#save")
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name=re.compile("^Download")).last.click()
    path = tmp_path / "state.json"
    download.value.save_as(path)
    saved = json.loads(path.read_text())
    assert len(saved["ids"]) <= count
    assert len(saved.get("context", ())) == bundle.context_length

    other = visit(name)
    other.page.set_input_files("#file", path)
    expect(other.page.locator("#seed")).to_have_value(str(seed))
    other.set(speed=FAST, count=60)
    other.page.click("#pause")
    other.finished()
    assert other.text == text
    for changes in ({"ids": [*saved["ids"][:-1], 999]}, {"ids": None}, {"context": [0.5] * 9}):
        if "context" in changes and not bundle.context_length:
            continue
        path.write_text(json.dumps(saved | changes))
        other.page.set_input_files("#file", path)
        expect(other.page.locator("#file-error")).to_have_text("The state in this file is damaged.")


def test_longer_symbols_and_ends_can_be_banned(visit, models):
    bundle, _ = models["molecules"]
    page = visit("molecules")
    page.generate("", seed=1, temperature=1, count=200, banned="Cl [nH] <end>")
    bias = dict.fromkeys(("Cl", "[nH]", "<end>"), -np.inf)
    assert page.text == reference(bundle, "", 1, 200, logit_bias=bias, top_p=0.999999)
    expect(page.page.locator("#status")).to_have_text("200 symbols")
    page.set(prompt="CC[nX]")
    page.page.click("#generate")
    expect(page.page.locator("#prompt-error")).to_have_text(
        "The character [ (U+005B) at position 3 does not begin a symbol of the model."
    )
    page.set(banned="Cx")
    expect(page.page.locator("#banned-error")).to_contain_text("does not begin a symbol")
