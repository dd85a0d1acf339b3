"""What a text must match, set on the page in a real browser."""

import json
import os
import re
import shlex
import signal

import pytest
from gateways import run_gateway
from playgrounds import text_of
from servers import started

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LETTERS = "[a-z]{300}"


@pytest.fixture
def page(playground, gateway):
    return playground(gateway)


def must_match(page, kind, text):
    page.page.select_option("#constraint-kind", kind)
    page.set(constraint=text)


def is_letters(text):
    return re.fullmatch(LETTERS, text) is not None


def test_a_text_matches_and_the_page_says_so(page, server):
    pattern = "[A-Z][a-z]{2,6}( [a-z]{2,6}){2,4}[.]"
    must_match(page, "regex", pattern)
    page.start("hello", seed=7)
    text = page.complete()[5:]
    assert page.status == f"Complete: the text matches, after {5 + len(text)}"
    assert re.fullmatch(pattern, text)
    with server.client() as client:
        assert text == text_of(client, "hello", seed=7, max_chars=1000, regex=pattern)
    page.start("hello", seed=7, length=9)
    assert page.complete()[5:] == text[:9]
    assert page.status == "Complete: not yet a match, after 14"
    page.set(length=1000)
    page.page.click("#pause")  # goes on
    page.wait(lambda: page.text[5:] == text)
    must_match(page, "choices", "yes\nno")
    page.start("hello")
    assert page.complete()[5:] in ("yes", "no")
    page.page.select_option("#constraint-kind", "")
    page.start("hello", seed=7, length=40)
    assert len(page.complete()) == 45
    with server.client() as client:
        assert page.text[5:] == text_of(client, "hello", seed=7, max_chars=40)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("regex", "(a", "position"),
        ("regex", "[0-9]+", "0"),
        ("choices", "0\n1", "1"),
        ("jsonSchema", '{"type": ', "not JSON"),
        ("jsonSchema", '{"type": "strang"}', "strang"),
    ],
)
def test_errors_stand_at_the_field(page, kind, text, words):
    must_match(page, kind, text)
    page.start("hello")
    page.page.locator("#constraint-problem").wait_for()
    assert words in page.page.inner_text("#constraint-problem")
    assert page.page.get_attribute("#constraint", "aria-invalid") == "true"
    assert not page.page.is_visible("#problem")
    must_match(page, "choices", "yes\nno")
    page.start("hello")
    assert page.complete() in ("helloyes", "hellono")
    assert page.page.get_attribute("#constraint", "aria-invalid") == "false"
    assert not page.page.is_visible("#constraint-problem")


def test_settings_pauses_and_forks_leave_the_constraint_where_it_is(page):
    must_match(page, "regex", LETTERS)
    page.start("hello", seed=7, pace=5)
    page.grown(60)
    page.set(temperature=0.5)
    page.grown(90)
    page.pause()
    page.page.click("#pause")  # goes on
    page.grown(120)
    page.set(pace=13)
    whole = page.complete()[5:]
    assert is_letters(whole)
    page.fork(100, "Enter")  # with a new seed
    page.wait(lambda: page.text[5:] != whole)
    forked = page.complete()[5:]
    assert is_letters(forked)
    assert forked[:95] == whole[:95]


def test_a_constraint_begins_where_it_is_set(page):
    page.start(seed=7, pace=5, length=2000)
    page.grown(30)
    must_match(page, "regex", LETTERS)
    page.page.keyboard.press("Tab")
    page.set(pace=13)
    text = page.complete()
    assert is_letters(text[-300:])
    assert page.status.startswith("Complete: the text matches")
    assert sum('"constraint":{"regex"' in str(frame) for frame in page.sent) == 1


def test_a_text_that_must_match_outlives_its_server(playground, tiny_folder, tmp_path):
    keys = [tmp_path / "key", tmp_path / "other"]
    for at, key in enumerate(keys):
        key.write_bytes(bytes(31) + bytes([at]))
    for second_key in keys:  # with the other one, the text is made again from its prompt
        with started(tiny_folder, keys[0]) as first, run_gateway(first.target) as gateway:
            page = playground(gateway)
            must_match(page, "regex", LETTERS)
            page.start("hello", seed=5, pace=5)
            page.grown(100)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
            with started(tiny_folder, second_key, first.port) as second:
                text = page.complete()
                with second.client() as client:
                    assert text == "hello" + text_of(client, "hello", seed=5, max_chars=1000, regex=LETTERS)
            page.tolerate("503")


def test_the_requests_to_copy_have_the_constraint_once(page):
    must_match(page, "regex", LETTERS)
    page.start("hello", seed=7, length=50)
    page.complete()

    def body():
        words = shlex.split(page.page.inner_text("#snippet").replace("\\\n", " "))
        return json.loads(words[words.index("-d") + 1])

    assert body()["structured_outputs"] == {"regex": LETTERS}
    page.page.click("#origins [data-value=token]")
    assert "structured_outputs" not in body()
    page.page.select_option("#constraint-kind", "")
    assert body()["response_format"] == {"type": "text"}
    must_match(page, "choices", "yes")
    page.page.keyboard.press("Tab")
    assert body()["structured_outputs"] == {"choice": ["yes"]}
