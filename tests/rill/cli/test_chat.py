"""`rill chat`: lines from a pipe, and the text that outlives its servers. (In a terminal: test_chat_terminal.py.)"""

import asyncio
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace

import grpc
import pytest
from servers import ROOT, run_server

from rill.cli.chat.command import text_of
from rill.cli.chat.conversation import Chat
from rill.cli.main import main
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.requests import generate_request
from rill.client.sync import Client

TURN = {"max_chars": 40, "stop": [], "include_stop": False, "chars_per_second": 0.0}


def chat_of(lines, *arguments):
    """`rill chat` with these lines on standard input: exit status, standard output, the sentences on standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rill", "chat", *map(str, arguments)],
        cwd=ROOT,
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"\x1b" not in done.stdout + done.stderr
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ROMEO:", "ROMEO:\n"),
        ("", ""),
        ("To be, or \\", "To be, or "),
        ("\\", ""),
        ("\\nROMEO:", "\nROMEO:\n"),
        ("\\n\\", "\n"),
        ("a\\\\", "a\\\n"),
        ("a\\\\\\", "a\\"),
        ("\\t \\\\n", "\\t \\n\n"),
        ("//", "/\n"),
        ("//fork me", "/fork me\n"),
        ("two\nlines", "two\nlines\n"),
    ],
)
def test_what_a_line_lets_the_model_read(line, text):
    assert text_of(line) == text


@pytest.mark.parametrize(
    ("line", "text"),
    [("c1cc", "c1cc"), ("", ""), ("CC\\", "CC"), ("\\", ""), ("/C", "/C"), ("a\\n\\", "a\n"), ("\\\\", "\\")],
)
def test_what_a_line_lets_a_model_without_a_newline_read(line, text):
    assert text_of(line, has_newline=False) == text


def test_lines_from_a_pipe_are_turns_of_one_text(server):
    """What the model writes, and nothing else, is on standard output: the same as Generate makes of it."""
    flags = ["--target", server.target, "--seed", 7, "--max-chars", 40, "--temperature", 0.9]
    status, out, errors = chat_of(["To be", "/temp 0.5", "", "/top-k 3", "or not \\", "/quit", "more"], *flags)
    assert (status, errors) == (0, "")
    with server.client() as client:
        text, made = "\nTo be\n", ""
        messages = list(client.stream(request(prompt=text, seed=7, temperature=0.9)))
        made += joined(messages)
        messages = list(client.stream(request(resume_token=messages[-1].resume_token, temperature=0.5)))
        made += joined(messages)
        token = messages[-1].resume_token
        made += joined(client.stream(request(prompt="or not ", resume_token=token, top_k=3)))
    assert out == made


def test_a_model_of_molecules(molecule_server, tmp_path):
    """Lines are read without a newline; where the model ends a text, that is said, and another one can begin."""
    saved, flags = tmp_path / "here.token", ["--target", molecule_server.target, "--seed", 7, "--max-chars", 400]
    lines = ["c1cc[nH]Cl", f"/save {saved}", "", "Cl\\nC", "[nH", "/new", "Br", f"/load {saved}", "Cl"]
    status, out, errors = chat_of(lines, *flags)
    said = errors.splitlines()
    ended = "(the text ends here: /new begins another, /fork tries another seed)"
    new, last = said.pop(6), said[-2:]
    assert said[:-2] == [
        "(the model has no newline: it reads lines without theirs)",
        ended,
        f"(saved this position to {saved})",
        ended,
        "(feed: character '\\n' (U+000A) at position 2 does not begin a symbol of the model's vocabulary "
        "(INVALID_ARGUMENT))",
        "(feed: character '[' (U+005B) at position 0 does not begin a symbol of the model's vocabulary "
        "(INVALID_ARGUMENT))",
        ended,
    ]
    seed = int(re.fullmatch(r"\(a new text, with seed (\d+)\)", new)[1])
    assert status == 1
    with molecule_server.client() as client:
        first = client.generate("c1cc[nH]Cl", seed=7)
        texts = ["".join(first), "".join(client.generate("Br", seed=seed))]
        more = "".join(client.generate("Cl", resume_token=first.resume_token))
    assert out == "".join([*texts, more])
    assert last == [f"(at character {first.position} of that text)", ended]


async def test_a_turn_of_symbols_outlives_its_server(molecule_folder, tmp_path, monkeypatch):
    """A turn of so many symbols, and a position with its token, although the server is lost in the midst."""
    monkeypatch.setattr("rill.client.interaction.SNAPSHOT_EVERY", 50)
    turn = {**TURN, "max_chars": 300}
    sampling = {"seed": 3, "logit_bias": {"<end>": float("-inf")}}
    with servers(molecule_folder, tmp_path, [1, 1]) as (first, second):
        async with AsyncClient(f"{first.target},{second.target}") as client:
            chat = Chat(client, "", turn, 30.0, lambda sentence: None)
            await chat.begin(b"", sampling)
            await chat.feed("c1cc[nH]Cl")
            made = ""
            async with aclosing(chat.write()) as pieces:
                async for piece in pieces:
                    made += piece
                    if first.process.poll() is None and len(made) > 120:
                        first.process.kill()
            token = await chat.token()
            await chat.close()
            whole = client.generate("c1cc[nH]Cl", max_chars=300, **sampling)
            assert made == "".join([piece async for piece in whole])
            assert (chat.at.position, chat.at.text, chat.has_ended) == (300, f"c1cc[nH]Cl{made}", False)
            more = "".join([piece async for piece in client.generate(resume_token=token, max_chars=50)])
            longer = client.generate("c1cc[nH]Cl", max_chars=350, **sampling)
            assert made + more == "".join([piece async for piece in longer])


def request(**parameters):
    return generate_request(**{"max_chars": 40, **parameters})


def joined(messages):
    return "".join(message.text for message in messages)


def test_what_is_refused_is_said_in_a_sentence_and_changes_nothing(server, tmp_path):
    lines = {
        "/nope": "there is no /nope; /help lists the commands, and // begins a line with /",
        "/": "there is no /; /help lists the commands, and // begins a line with /",
        "/temp": "/temp needs a number, as in: /temp 0.7",
        "/temp -1": "temperature must be a number from 0 to 3.4e38, not -1.0)",
        "/temp nan": "temperature must be a number from 0 to 3.4e38, not nan)",
        "/top-p 2": "top_p must be",
        "/top-k 1.5": "/top-k needs a whole number, as in: /top-k 7",
        "/top-k -1": "/top-k must be from 0 to 2^32 - 1, not -1",
        "/seed 18446744073709551616": "/seed must be from 0 to 2^64 - 1, not 18446744073709551616",
        "漢": "feed: character '漢' (U+6F22) at position 0 is not in the model's vocabulary (INVALID_ARGUMENT)",
        "/save": "/save needs a file, as in: /save scene.token",
        f"/save {tmp_path}": f"cannot write {tmp_path}: ",
        f"/save {tmp_path}/no/where": f"cannot write {tmp_path}/no/where: there is no folder {tmp_path}/no",
        f"/load {tmp_path}/nothing": f"cannot read {tmp_path}/nothing: No such file or directory",
        f"/load {ROOT}/pyproject.toml": "this is not a resume token",
        "/back": "there is no fork to return from",
    }
    flags = ["--target", server.target, "--seed", 7, "--max-chars", 40]
    status, out, errors = chat_of(["To be", *lines, ""], *flags)
    said = errors.splitlines()
    assert status == 1
    for sentence, expected in zip(said, lines.values(), strict=True):
        assert sentence.startswith(f"({expected}")
        assert sentence.endswith(")")
    assert (0, out, "") == chat_of(["To be", ""], *flags)
    assert not list(tmp_path.iterdir())


def test_save_load_fork_and_back(server, tmp_path):
    file = tmp_path / "here is.token"
    flags = ["--target", server.target, "--seed", 7, "--max-chars", 40]
    status, out, errors = chat_of(
        ["To be", f"/save {file}", "", "/fork", "", "/fork", "", "/back", "/back", "", f"/load {file}", ""], *flags
    )
    turns = [out[i : i + 40] for i in range(0, len(out), 40)]
    assert status == 0
    assert len(turns) == 6
    first, second, fork, fork_of_fork, back, loaded = turns
    assert loaded == second  # what follows the saved place
    assert len({first, second, fork, fork_of_fork, back}) == 5
    with server.client() as client:
        assert first + second + back == "".join(client.generate("\nTo be\n", seed=7, max_chars=120))
        assert second == "".join(client.generate(resume_token=file.read_bytes(), max_chars=40))
    assert list(tmp_path.iterdir()) == [file]
    said = errors.splitlines()
    assert said[0] == f"(saved this position to {file})"
    assert re.fullmatch(r"\(fork 1, with seed \d+; /back returns to this position\)", said[1])
    assert re.fullmatch(r"\(fork 2, with seed \d+; /back returns to this position\)", said[2])
    assert said[3] == f"(back at: …{('To be' + chr(10) + first + second + fork)[-60:]!r})"
    assert said[4] == f"(back at: …{('To be' + chr(10) + first + second)[-60:]!r})"
    assert said[5] == "(at character 40 of that text)"
    status, again, _ = chat_of([""], "--target", server.target, "--max-chars", 40, "--load", file)
    assert (status, again) == (0, second)


def test_a_script_from_windows_is_the_same(server):
    flags = ("--target", server.target, "--max-chars", "40")
    done = [
        subprocess.run(
            [sys.executable, "-W", "error", "-m", "rill", "chat", *flags],
            cwd=ROOT,
            input=script,
            capture_output=True,
            timeout=60,
            check=False,
        )
        for script in (b"/seed 7\nTo be\\\n\nor not", b"\xef\xbb\xbf/seed 7\r\nTo be\\\r\n\r\nor not")
    ]
    assert [one.returncode for one in done] == [0, 0]
    assert done[0].stdout == done[1].stdout
    assert len(done[0].stdout.decode()) == 120


def test_a_stop_ends_a_turn(server):
    _, whole, _ = chat_of(["To be"], "--target", server.target, "--seed", 7, "--max-chars", 400)
    stop = whole[100:103]
    flags = ["--target", server.target, "--seed", 7, "--max-chars", 400, "--stop", stop]
    assert chat_of(["To be"], *flags) == (0, whole[: whole.index(stop)], "")
    _, out, _ = chat_of(["To be", ""], *flags, "--include-stop")
    assert out.startswith(whole[: whole.index(stop) + 3])


def test_what_it_does_not_begin_with(server, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.touch()
    cases = [
        (["--target", "127.0.0.1:1", "--retry-seconds", "0"], 1, "UNAVAILABLE"),
        (["--target", ","], 2, "target must be HOST:PORT"),
        (["--target", server.target, "--temperature", "-1"], 2, "temperature must be"),
        (["--target", server.target, "--seed", "-1"], 2, "seed must be"),
        (["--target", server.target, "--model", "nobody"], 1, "NOT_FOUND"),
        (["--target", server.target, "--retry-seconds", "-1"], 2, "retry_seconds must be"),
    ]
    for arguments, status, message in cases:
        assert main(["chat", *arguments]) == status
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert message in errors
    for arguments, message in [
        (["--load", str(empty)], "is empty"),
        (["--load", str(tmp_path / "nothing")], "No such file"),
        (["--max-chars", "-1"], "must be a number of at least 0"),
    ]:
        with pytest.raises(SystemExit):
            main(["chat", *arguments])
        assert message in capsys.readouterr().err


def test_standard_input_that_is_not_utf8(server):
    done = subprocess.run(
        [sys.executable, "-m", "rill", "chat", "--target", server.target],
        cwd=ROOT,
        input=b"caf\xe9\n",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, b"error: standard input is not UTF-8\n")


@contextmanager
def servers(folder, tmp_path, keys):
    """Servers of the same model, with these keys; they drain at once."""
    with ExitStack() as stack:
        started = []
        for key in keys:
            file = tmp_path / f"key-{key}"
            file.write_bytes(bytes([key]) * 32)
            arguments = ("--resume-key-file", file, "--drain-seconds", 0)
            started.append(stack.enter_context(run_server(folder, *arguments)))
        yield started


@contextmanager
def chat_with(client, turn=TURN):
    said = []
    chat = Chat(client, "", turn, 30.0, said.append)
    yield chat, said


async def written(chat, then=None):
    """A turn of the model; `then` is done when it has begun."""
    made = ""
    async with aclosing(chat.write()) as pieces:
        async for piece in pieces:
            made += piece
            if then and len(made) > 20:
                then()
                then = None
    return made


async def test_servers_that_drain_change_nothing(tiny_folder, server, tmp_path):
    """One while it writes, one between two turns: the text goes on elsewhere, as it would have."""
    turn = {**TURN, "max_chars": 300, "chars_per_second": 1000.0}
    with servers(tiny_folder, tmp_path, (1, 1, 1)) as (one, two, three):
        async with AsyncClient(",".join(each.target for each in (one, two, three))) as client:
            with chat_with(client, turn) as (chat, said):
                await chat.begin(b"", {"seed": 7, "temperature": 0.9})
                made = await written(chat, then=one.process.terminate)
                assert len(said) == 1
                two.process.terminate()
                await asyncio.to_thread(two.process.wait, 20)
                assert (await chat.feed("ROMEO\n")).chars == 6
                made += await written(chat)
                await chat.close()
    assert len(said) == 2
    assert all(sentence.startswith("interrupted (") for sentence in said)
    with server.client() as client:
        messages = list(client.stream(request(prompt="\n", seed=7, temperature=0.9, max_chars=300)))
        rest = client.generate("ROMEO\n", resume_token=messages[-1].resume_token, max_chars=300)
        assert made == joined(messages) + "".join(rest)


async def test_a_token_that_no_server_takes(tiny_folder, tmp_path):
    """The other server has another key: it reads the text once more, and writes on with other draws."""
    with servers(tiny_folder, tmp_path, (1, 2)) as (one, other):
        async with AsyncClient(f"{one.target},{other.target}") as client:
            with chat_with(client) as (chat, said):
                await chat.begin(b"", {"seed": 7, "temperature": 0.9})
                await chat.feed("To be\n")
                made = await written(chat)
                one.stop(signal.SIGKILL)
                await chat.update(temperature=0.8)
                more = await written(chat)
                await chat.close()
                assert chat.at.text == "To be\n" + made + more
        assert len(said) == 2
        assert said[1].endswith("it has read the text once more instead, and writes on as it likes")
        with Client(other.target) as client:
            prompt = "\nTo be\n" + made
            assert more == "".join(client.generate(prompt, seed=7, temperature=0.8, max_chars=40))


async def test_a_server_that_is_lost_while_it_pauses(tiny_folder, server, tmp_path):
    """The turn is over all the same; what was shown of it stays."""

    def pause():
        one.process.send_signal(signal.SIGSTOP)
        chat.pause()
        one.process.kill()

    turn = {**TURN, "max_chars": 0, "chars_per_second": 1000.0}
    with servers(tiny_folder, tmp_path, (1, 1)) as (one, other):
        async with AsyncClient(f"{one.target},{other.target}") as client:
            with chat_with(client, turn) as (chat, said):
                await chat.begin(b"", {"seed": 7})
                made = await asyncio.wait_for(written(chat, then=pause), 30)
                assert (await chat.feed("a")).chars == 1
                assert chat.at.text == made + "a"
                assert chat.at.position == len(made)
                await chat.close()
    assert len(said) == 1
    with server.client() as client:
        assert made == "".join(client.generate(seed=7, max_chars=len(made)))


async def test_tokens_follow_a_long_turn(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rill.client.interaction.SNAPSHOT_EVERY", 100)
    turn = {**TURN, "max_chars": 0, "chars_per_second": 2000.0}
    with servers(tiny_folder, tmp_path, (1, 1)) as (one, other):
        async with AsyncClient(f"{one.target},{other.target}") as client:
            with chat_with(client, turn) as (chat, _):
                await chat.begin(b"", {"seed": 7})
                made, lost = "", False
                async with aclosing(chat.write()) as pieces:
                    async for piece in pieces:
                        made += piece
                        assert len(made) == chat.at.position + len(chat.at.ahead)
                        if len(made) > 600 and not lost:
                            lost = True
                            assert chat.at.position > 300
                            one.stop(signal.SIGKILL)
                        if len(made) > 1500:
                            chat.pause()
                await chat.close()
        with Client(other.target) as client:
            assert made == "".join(client.generate(seed=7, max_chars=len(made)))


async def test_what_fails_leaves_the_text_where_it_was(server, tmp_path):
    async with AsyncClient(server.target) as client:
        with chat_with(client, {**TURN, "chars_per_second": 400.0}) as (chat, _):
            await chat.begin(b"", {"seed": 7})
            made = await written(chat)
            before = chat.at
            for act, argument in (
                (chat.feed, "漢"),
                (lambda bias: chat.update(logit_bias=bias), {"漢": 1.0}),
                (chat.load, b"nothing"),
            ):
                with pytest.raises(ServerError) as caught:
                    await act(argument)
                assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
                assert chat.at == replace(before, token=chat.at.token)  # which is sealed anew
            # Given up in the midst of a turn: what was shown is generated once more, and the text goes on from there.
            with pytest.raises(asyncio.CancelledError):
                await written(chat, then=asyncio.current_task().cancel)
            asyncio.current_task().uncancel()
            shown = chat.at.text
            assert chat.at.ahead
            made = shown + await written(chat)
            await chat.close()
    with server.client() as client:
        assert made == "".join(client.generate(seed=7, max_chars=len(made)))


async def test_no_server_for_too_long(tiny_folder):
    with run_server(tiny_folder) as server:
        async with AsyncClient(server.target, retry_seconds=0.5) as client:
            chat = Chat(client, "", TURN, 0.5, lambda sentence: None)
            await chat.begin(b"", {"seed": 7})
            await written(chat)
            before = chat.at
            server.stop(signal.SIGKILL)
            with pytest.raises(ServerError) as caught:
                await chat.feed("a")
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert chat.at == before
            assert await chat.token() == before.token
            await chat.close()
