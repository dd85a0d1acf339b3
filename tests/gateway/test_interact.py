"""`WebSocket /v1/interact` of a gateway process before real servers."""

import base64
import json
import signal
from contextlib import contextmanager

import pytest
from gateways import run_gateway
from servers import run_server, started, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

TOKEN = "correct-horse-battery-staple"
OPEN = {"open": {"sampling": {"seed": "7"}}}


class Conversation:
    """A client of /v1/interact, whose frames are objects."""

    def __init__(self, socket):
        self.socket = socket

    def say(self, *actions):
        for action in actions:
            self.socket.send(action if isinstance(action, (str, bytes)) else json.dumps(action))

    def hear(self):
        return json.loads(self.socket.recv(timeout=20))

    def text(self):
        """The text of the running generation, and the event that ends it."""
        text = ""
        while True:
            event = self.hear()
            output = event.get("output", {})
            assert not output or int(output.get("position", 0)) >= 0
            text += output.get("text", "")
            if not output or "finishReason" in output:
                return text, event

    def end(self):
        """What is heard last, and the close code."""
        last = None
        try:
            while True:
                last = self.hear()
        except ConnectionClosed as closed:
            return last, closed.rcvd.code


@contextmanager
def conversation(gateway, **options):
    with connect(f"{gateway.url.replace('http', 'ws')}/v1/interact", proxy=None, **options) as socket:
        yield Conversation(socket)


def generated(server, prompt="", **parameters):
    with server.client() as client:
        return "".join(client.generate(prompt, **parameters))


def streams_running(server):
    with server.client() as client:
        return client.models().streams_running


def test_a_text_is_the_servers(gateway, server):
    with conversation(gateway, subprotocols=["rill.v1"]) as talk:
        assert talk.socket.subprotocol == "rill.v1"
        talk.say(OPEN, {"feed": "the "}, {"generate": {"maxChars": 40, "logprobs": 1}}, {"snapshot": {}})
        opened = talk.hear()["opened"]
        assert opened["seed"] == "7"
        assert talk.hear()["fed"]["chars"] == "4"
        first = {}
        while "output" not in first:
            first = talk.hear()
        assert isinstance(first["output"]["logprobs"][0]["logprob"], float)
        text, last = talk.text()
        while "output" not in last:  # the snapshot, which came in mid-text
            more, last = talk.text()
            text += more
        assert last["output"]["finishReason"] == "FINISH_REASON_LENGTH"
    with server.client() as client, client.interact(seed=7) as session:
        session.feed("the ")
        assert first["output"]["text"] + text == "".join(session.generate(max_chars=40))


def test_actions_behind_a_pause_wait_for_it(gateway):
    with conversation(gateway) as talk:
        talk.say(OPEN, {"generate": {"charsPerSecond": 100}})
        assert [next(iter(talk.hear())) for _ in range(2)] == ["opened", "output"]
        talk.say({"pause": {}}, {"update": {"temperature": 0.0}}, {"generate": {"maxChars": 3}})
        assert "paused" in talk.text()[1]
        text, last = talk.text()
        assert (len(text), last["output"]["finishReason"]) == (3, "FINISH_REASON_LENGTH")
        talk.say({"pause": {}}, {"pause": {}})
        assert int(talk.hear()["paused"]["position"]) > 3  # of a generation that had ended by itself
        last, code = talk.end()
        assert last["error"]["message"] == "pause: nothing is generating, or it was paused already"
        assert code == 1008


@pytest.mark.parametrize(
    ("frames", "sentence", "code"),
    [
        ([b"{}"], "frames must be text: an action as JSON", 1003),
        (["{"], "the frame is not an InteractRequest: Expecting property name", 1007),
        (["[" * 100_000], "the frame is not an InteractRequest: ", 1007),
        (["{}"], "the frame has no action: give one of open, feed, generate, pause, update, snapshot", 1007),
        ([{"feed": "a"}], "the first frame must be an open action", 1008),
        ([OPEN, {"generate": {"maxChar": 1}}], "there is no field 'maxChar' in generate", 1007),
        ([OPEN, OPEN], "open: the session is open", 1008),
        ([OPEN, {"feed": "a\ud800"}], "the frame is not an InteractRequest: ", 1007),
        ([OPEN, {"feed": "\u2603"}], "(U+2603) at position 0 is not in the model's vocabulary", 1008),
        ([{"open": {"model": "x"}}], "model 'x'", 1008),
        ([{"open": {"sampling": {"topP": 2}}}], "top_p", 1008),
    ],
)
def test_what_is_wrong_is_named_in_the_last_frame(gateway, frames, sentence, code):
    with conversation(gateway) as talk:
        talk.say(*frames)
        last, closed = talk.end()
        assert sentence in last["error"]["message"]
        assert last["error"]["status"] in (400, 404)
        assert last["error"]["request_id"]
        assert closed == code


def test_an_action_out_of_order_leaves_the_state(gateway, server):
    with conversation(gateway) as talk:
        talk.say(OPEN, {"generate": {"charsPerSecond": 100}})
        talk.hear()
        text = talk.hear()["output"]["text"]
        talk.say({"feed": "a"})
        more, snapshot = talk.text()
        last, code = talk.end()
    assert (last["error"]["code"], code) == ("out_of_order", 1008)
    assert last["error"]["resume_token"] == snapshot["snapshot"]["resumeToken"]
    rest = generated(server, resume_token=base64.b64decode(last["error"]["resume_token"]), max_chars=20)
    assert text + more + rest == generated(server, seed=7, max_chars=len(text + more) + 20)


def test_a_client_that_leaves_frees_its_slot(gateway, server):
    before = streams_running(server)
    with conversation(gateway) as talk:
        talk.say(OPEN, {"generate": {"charsPerSecond": 20}})
        talk.hear()
        talk.hear()
        assert streams_running(server) == before + 1
        talk.socket.socket.close()  # without a word
        wait_until(lambda: streams_running(server) == before)


def test_a_drain_ends_it_with_a_token(server):
    with run_gateway(server.target) as gateway, conversation(gateway) as talk:
        talk.say(OPEN, {"generate": {"charsPerSecond": 50}})
        talk.hear()
        text = talk.hear()["output"]["text"]
        gateway.process.send_signal(signal.SIGTERM)
        more, last = talk.text()
        assert last["output"]["finishReason"] == "FINISH_REASON_DRAINING"
        error, code = talk.end()
        assert (error["error"]["status"], error["error"]["message"], code) == (
            503,
            "the gateway is shutting down",
            1001,
        )
        assert error["error"]["resume_token"] == last["output"]["resumeToken"]
        assert gateway.process.wait(timeout=10) == 0
    rest = generated(server, resume_token=base64.b64decode(error["error"]["resume_token"]), max_chars=20)
    assert text + more + rest == generated(server, seed=7, max_chars=len(text + more) + 20)


@pytest.mark.long
def test_a_server_that_is_killed_leaves_no_gap(tiny_folder, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    with started(tiny_folder, key) as first, started(tiny_folder, key) as second:
        with run_gateway(f"{first.target},{second.target}") as gateway, conversation(gateway) as talk:
            talk.say(OPEN, {"generate": {"maxChars": 400, "charsPerSecond": 400}})
            talk.hear()
            text = talk.hear()["output"]["text"]
            first.process.kill()
            more, last = talk.text()
            assert last["output"]["finishReason"] == "FINISH_REASON_LENGTH"
        assert text + more == generated(second, seed=7, max_chars=400)


def test_bearer_tokens_come_as_a_subprotocol(tiny_folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with run_server(tiny_folder, "--auth-token-file", tokens) as server, run_gateway(server.target) as gateway:
        coded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
        with conversation(gateway, subprotocols=["rill.v1", f"rill.bearer.{coded}"]) as talk:
            assert talk.socket.subprotocol == "rill.v1"
            talk.say(OPEN)
            assert "opened" in talk.hear()
        with conversation(gateway, subprotocols=["rill.v1"]) as talk:
            talk.say(OPEN)
            last, code = talk.end()
            assert (last["error"]["status"], last["error"]["code"], code) == (401, "invalid_api_key", 1008)
        gateway.process.terminate()
        assert TOKEN not in (log := gateway.process.communicate(timeout=20)[1])
        assert coded not in log


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"subprotocols": ["other"]}, 400),
        ({"subprotocols": ["rill.v1", "rill.bearer.!"]}, 401),
    ],
)
def test_pages_of_others_reach_nothing(gateway, options, status):
    with pytest.raises(InvalidStatus) as refused, conversation(gateway, **options):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["message"]
