"""Models that are replaced while the gateway runs, and servers with different ones: ids mean what they do then."""

import shutil
import signal

import httpx
import pytest
from gateways import run_gateway
from random_models import LETTERS, make_run, save_bundle
from servers import run_server, wait_until

pytestmark = pytest.mark.long
REVERSED = tuple(reversed(LETTERS))


def ids(http, text, **fields):
    return http.post("/tokenize", json={"prompt": text, **fields}).json()["tokens"]


def text(http, **fields):
    answer = http.post("/v1/completions", json={"seed": 7, "max_tokens": 30, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_ids_follow_a_reload(tmp_path):
    save_bundle(make_run(), tmp_path / "served" / "tiny")
    save_bundle(make_run(REVERSED, seed=1), tmp_path / "next" / "tiny")
    with (
        run_server(tmp_path / "served") as server,
        run_gateway(server.target) as gateway,
        httpx.Client(base_url=gateway.url) as http,
    ):
        old_ids, old_text = ids(http, "the"), text(http, prompt="the")
        old = http.get("/v1/models/tiny").json()["rill"]
        assert text(http, prompt=old_ids) == old_text
        shutil.rmtree(tmp_path / "served" / "tiny")
        shutil.copytree(tmp_path / "next" / "tiny", tmp_path / "served" / "tiny")
        server.process.send_signal(signal.SIGHUP)
        with server.client() as client:
            wait_until(lambda: client.models().models[0].model_id != old["model_id"])
        # The first request after the reload, with what was remembered before it.
        new_text = text(http, prompt=ids_of(REVERSED, "the"))
        assert new_text == text(http, prompt="the") != old_text
        assert ids(http, "the") == ids_of(REVERSED, "the") != old_ids
        assert http.get("/v1/models/tiny").json()["rill"] != old


def ids_of(symbols, given):
    return [symbols.index(character) for character in given]


def test_servers_may_have_different_models(tmp_path):
    save_bundle(make_run(), tmp_path / "a" / "tiny")
    save_bundle(make_run(REVERSED, seed=1), tmp_path / "b" / "tiny")
    save_bundle(make_run(REVERSED, seed=1), tmp_path / "b" / "other")
    (tmp_path / "key").write_bytes(bytes(32))
    key = ("--resume-key-file", tmp_path / "key")
    with (
        run_server(tmp_path / "a" / "tiny", *key, "--max-streams", 1, "--max-waiting", 0) as one,
        run_server(tmp_path / "b" / "tiny", tmp_path / "b" / "other", *key) as two,
        run_gateway(f"{one.target},{two.target}") as gateway,
        httpx.Client(base_url=gateway.url) as http,
    ):
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny", "other"]
        assert ids(http, "the", model="other") == ids_of(REVERSED, "the")
        assert text(http, prompt="the", model="other") == text(http, prompt=ids_of(REVERSED, "the"), model="other")
        assert text(http, prompt="the") == text(http, prompt=ids_of(LETTERS, "the"))
        token = http.post("/v1/completions", json={"model": "other", "prompt": "a"}).json()["rill"]["resume_token"]
        answer = http.post("/v1/completions", json={"resume_token": token}).json()
        assert answer["model"] == "other"
        with one.client() as client, client.generate("the", max_chars=0) as endless:
            next(endless)
            answer = http.post("/v1/completions", json={"prompt": "the"})
        assert answer.status_code == 429  # and not a text of the other server's namesake
        assert answer.headers["retry-after"] == "1"
