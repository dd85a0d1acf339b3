"""The page with a model of molecules: symbols of several characters are one, and the model may end a text."""

import base64

import pytest
from gateways import run_gateway
from playgrounds import text_of, token_after
from servers import started

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

COUNT = "document.querySelector('rill-text').length"
PROMPT = "CCl[nH]"
BANNED = {"<end>": float("-inf")}


@pytest.fixture(scope="module")
def molecule_gateway(molecule_server):
    with run_gateway(molecule_server.target) as running:
        yield running


def of_length(client, shortest, longest, prompt=""):
    """A seed whose text the model ends after so many symbols, the text, and its length."""
    for seed in range(300):
        stream = client.generate(prompt, seed=seed, max_chars=longest + 1)
        text = "".join(stream)
        if shortest <= stream.position <= longest:
            return seed, text, stream.position
    raise AssertionError("no such text")


def test_the_model_ends_a_text_without_a_prompt(playground, molecule_gateway, molecule_server):
    with molecule_server.client() as client:
        seed, text, count = of_length(client, 12, 60)
    page = playground(molecule_gateway)
    page.start(seed=seed, length=500)
    page.wait(lambda: page.text == text)
    page.complete()
    assert page.page.evaluate(COUNT) == count < len(text)
    assert page.status == f"Complete: the model ended the text, after {count}"
    page.page.click("#pause")  # nothing follows with this seed
    page.wait(lambda: page.status.startswith("Complete"))
    assert page.text == text


def test_forks_are_at_symbols(playground, molecule_gateway, molecule_server):
    with molecule_server.client() as client:
        seed, text, count = of_length(client, 12, 60, PROMPT)
        token = token_after(client, 5, PROMPT, seed=seed)
        likely = client.generate(resume_token=token, max_chars=1, logprobs=3)
        "".join(likely)
        options = [one.character for one in likely.logprobs[0].alternatives if one.character != "<end>"]
        with client.interact(resume_token=token) as session:
            session.feed(options[1])
            expected = options[1] + "".join(session.generate(max_chars=400))
    page = playground(molecule_gateway)
    page.start(PROMPT, seed=seed, length=400)
    whole = PROMPT + text
    page.wait(lambda: page.text == whole)
    page.complete()
    assert page.page.evaluate(COUNT) == 3 + count
    assert [page.page.locator("rill-text span").nth(at).inner_text() for at in range(3)] == ["C", "Cl", "[nH]"]
    before = "".join(page.page.locator("rill-text span").all_inner_texts()[: 3 + 5])
    page.fork(3 + 5, "2")
    page.wait(lambda: page.text == before + expected)
    page.complete()
    page.page.click("#back")
    page.wait(lambda: page.text == whole)
    page.fork(1, "Enter")  # a new seed, within the prompt: what is left of it is read again
    page.wait(lambda: page.text != whole)
    assert page.complete().startswith("C")
    page.page.locator("rill-text span").first.click()
    page.page.locator(".fork-menu").wait_for()
    assert "<end>" not in page.page.locator(".fork-menu").inner_text()


def test_a_text_outlives_its_server(playground, molecule_folder, tmp_path):
    """What had arrived is made again and compared, symbol by symbol; settings changed in it before."""
    (key := tmp_path / "key").write_bytes(bytes(32))
    with started(molecule_folder, key) as first, run_gateway(first.target) as gateway:
        with first.client() as client:
            seed, text, count = of_length(client, 60, 200, PROMPT)
        page = playground(gateway)
        page.start(PROMPT, seed=seed, length=400, pace=4)
        page.grown(3 + 20)
        page.set(stop="%10%10%10")  # and taken away again: the token keeps it
        page.grown(3 + 25)
        page.set(stop="")
        page.grown(3 + 30)
        port = first.port
        first.process.kill()
        first.process.wait()
        with started(molecule_folder, key, port):
            page.set(pace=13)
            page.wait(lambda: page.text == PROMPT + text)
            assert page.page.evaluate(COUNT) == 3 + count


def test_a_token_goes_on_in_the_page(playground, molecule_gateway, molecule_server):
    with molecule_server.client() as client:
        whole = text_of(client, "C", seed=3, max_chars=60, logit_bias=BANNED)
        token = token_after(client, 20, "C", seed=3, logit_bias=BANNED)
        had = text_of(client, "C", seed=3, max_chars=20, logit_bias=BANNED)

    page = playground(molecule_gateway)
    page.set(length=40, pace=13)
    page.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.page.fill("#pasted", base64.b64encode(token).decode())
    page.page.click("#paste-form button")
    page.wait(lambda: had + page.text == whole)
    page.complete()
