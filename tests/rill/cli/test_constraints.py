"""Commands whose texts must match: what the flags and the lines of an input say, and what is said where they cannot."""

import json
import re
import signal
import subprocess
import sys

import pytest
from servers import ROOT, run_server, wait_until

from rill.cli.main import main

CODE = "[a-f]{4}(?: [A-F]{3}){8}"


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def rill(server, capsys):
    """Run a command at the server; returns its status, its output and the lines on standard error."""

    def run(command, *arguments):
        try:
            status = main([command, *map(str, arguments), "--target", server.target])
        except SystemExit as error:
            status = error.code
        out, errors = capsys.readouterr()
        return status, out, errors

    return run


# ---- rill generate


def test_generate_prints_what_matches(rill, tmp_path):
    status, out, errors = rill("generate", "To be", "--regex", CODE, "--seed", 7)
    assert (status, errors) == (0, "")
    assert re.fullmatch(CODE, out)
    status, out, errors = rill("generate", "--choice", "Ay", "--choice", "No")
    assert out in ("Ay", "No")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["abc"]}')
    model_has_no_quotes = "json_schema: no text of this model matches"
    assert model_has_no_quotes in rill("generate", "--json-schema", schema)[2]
    status, out, errors = rill("generate", "--regex", CODE, "--max-chars", 5)
    assert (status, len(out)) == (0, 5)
    assert errors == "\nthe text does not match yet: --max-chars 5 ended it after 5 characters\n"
    status, out, errors = rill("generate", "--regex", CODE, "--stop", " ")
    assert (status, len(out)) == (0, 4)
    assert errors == "\nthe text does not match yet: a stop string ended it after 4 characters\n"
    status, out, errors = rill("generate", "--regex", CODE, "--max-chars", 5, "--json")
    assert errors == ""
    assert json.loads(out.splitlines()[-1])["usage"]["matches"] is False
    assert "matches" not in json.loads(rill("generate", "--max-chars", 5, "--json")[1].splitlines()[-1])["usage"]


def test_generate_continues_and_removes_a_constraint(rill, tmp_path):
    token = tmp_path / "token"
    _, whole, _ = rill("generate", "To be", "--regex", CODE, "--seed", 7)
    _, first, _ = rill("generate", "To be", "--regex", CODE, "--seed", 7, "--max-chars", 9, "--save-token", token)
    _, rest, errors = rill("generate", "--resume-token", token)
    assert (first + rest, errors) == (whole, "")
    _, out, _ = rill("generate", "--resume-token", token, "--unconstrained", "--max-chars", 50)
    assert len(out) == 50
    _, out, _ = rill("generate", "--resume-token", token, "--regex", CODE)
    assert re.fullmatch(CODE, out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--regex", "a", "--choice", "b"], "give --regex or --choice, not both: a text has one constraint"),
        (["--choice", "b", "--json-schema", "SCHEMA"], "give --choice or --json-schema, not both"),
        (["--terminator", "b"], "--terminator goes with --regex, --choice or --json-schema"),
        (["--unconstrained"], "--unconstrained goes with --resume-token: another text has no constraint"),
        (["--json-schema", "TEXT"], "argument --json-schema: TEXT is not JSON: Expecting value at line 1, column 1"),
        (["--json-schema", "NUMBER"], "argument --json-schema: NUMBER must be a JSON object, not 3"),
        (["--json-schema", "nothing.json"], "argument --json-schema: cannot read nothing.json: No such file"),
        (["--regex", "a(?=b)"], "error: regex: the regex has a look-ahead"),
        (["--regex", "漢"], "error: regex: no text of this model matches: no symbol of the model has '漢'"),
    ],
)
def test_flags_that_make_no_sense(rill, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    for name, content in (("SCHEMA", "{}"), ("TEXT", "three"), ("NUMBER", "3")):
        (tmp_path / name).write_text(content)
    status, out, errors = rill("generate", *flags)
    assert status in (1, 2)
    assert out == ""
    assert message in errors


# ---- rill batch


def test_batch_writes_whether_texts_match(rill, tmp_path):
    lines = [
        {"prompt": "a", "id": "flags"},
        {"prompt": "a", "id": "own", "regex": "[A-C]{3}", "n": 3},
        {"prompt": "a", "id": "cut", "regex": "[A-C]{30}"},
        {"prompt": "a", "id": "choice", "choices": ["Ay", "No"]},
        {"prompt": "a", "id": "free", "unconstrained": True},
        {"prompt": "漢", "id": "refused"},
    ]
    prompts, out = write_lines(tmp_path / "prompts.jsonl", *lines), tmp_path / "texts.jsonl"
    command = ["batch", prompts, "--out", out, "--regex", "[a-f]+", "--terminator", "", "--max-chars", 20]
    status, _, errors = rill(*command)
    assert (status, "1 refused" in errors) == (1, True)
    flags, *own, cut, choice, free, refused = lines_of(out)
    assert re.fullmatch("[a-f]{20}", flags["text"])
    assert (flags["finish_reason"], flags["matches"]) == ("LENGTH", True)
    assert [*flags][-4:] == ["chars", "finish_reason", "matches", "logprob"]
    assert all(re.fullmatch("[A-C]{3}", line["text"]) and line["matches"] for line in own)
    assert (len(cut["text"]), cut["finish_reason"], cut["matches"]) == (20, "LENGTH", False)
    assert choice["text"] in ("Ay", "No")
    assert "matches" not in free
    assert "漢" in refused["error"]
    whole = out.read_bytes()
    assert rill(*command)[2] == f"{out} is complete: 7 texts, 1 refused (their lines say why)\n"
    _, _, errors = rill(*command, "--terminator", "\n")
    assert f"{out} has texts of other parameters" in errors
    assert out.read_bytes() == whole


def test_samples_that_match_in_every_form(rill, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = {}
    for name in ("x.jsonl", "x.parquet", "x.smi"):
        out = tmp_path / name
        flags = ["--samples", 40, "--out", out, "--regex", "[a-c]{2}", "--unique", "--no-logprob"]
        status, _, errors = rill("batch", *flags)
        assert (status, "dropped (not unique)" in errors) == (0, True)
        match name:
            case "x.jsonl":
                texts[name] = [line["text"] for line in lines_of(out)]
            case "x.parquet":
                table = parquet.read_table(out)
                assert {*table["matches"].to_pylist()} == {True}
                texts[name] = table["text"].to_pylist()
            case _:
                texts[name] = out.read_text().split()
    first, *others = texts.values()
    assert all(re.fullmatch("[a-c]{2}", text) for text in first)
    assert others == [first] * 2
    assert len({*first}) == len(first) <= 9


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ([{"prompt": "a", "regex": "(?=b)"}], [], 'PROMPTS, line 2: "regex": the regex has a look-ahead at position 0'),
        ([{"prompt": "a", "choices": ["漢"]}], [], 'PROMPTS, line 2: "choices": no text of this model matches'),
        ([{"prompt": "a"}], ["--regex", "(?<=a)b"], "error: --regex: the regex has a look-behind"),
        ([{"prompt": "a"}], ["--choice", "漢"], "error: --choice: no text of this model matches"),
        ([{"prompt": "a", "regex": "b", "logit_bias": {"b": "-inf"}}], [], 'PROMPTS, line 2: "regex": logit_bias bans'),
        (
            [{"prompt": "a", "regex": "a", "choices": ["b"]}],
            [],
            'PROMPTS, line 2: has "regex" and "choices"; a text has',
        ),
        ([{"prompt": "a"}], ["--regex", "a", "--choice", "b"], "give --regex or --choice, not both"),
    ],
)
def test_what_cannot_be_matched_is_refused_before_any_work(rill, tmp_path, monkeypatch, lines, flags, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "PROMPTS", {"prompt": "a", "unconstrained": True}, *lines)
    status, _, errors = rill("batch", "PROMPTS", "--out", "OUT", *flags)
    assert (status, [path.name for path in tmp_path.iterdir()]) == (2, ["PROMPTS"])
    assert message in errors
    if flags:
        status, _, errors = rill("batch", "--samples", 5, "--out", "OUT", *flags)
        assert (status, message in errors) == (2, True)


@pytest.mark.long
def test_batch_continues_after_kill_9_of_the_command_and_of_a_server(tiny_folder, tmp_path):
    """The same file, byte for byte."""
    patterns = ["(?:[A-Z][a-z]{1,9}[.] ){1,}", "[a-f]{4}( [A-F]{3}){8}", "[a-z ,.]{3,200}", "[A-Za-z]{2}|x{150,}"]
    lines = [{"prompt": "a", "regex": patterns[at % 4], "n": 4} for at in range(60)]
    prompts = write_lines(tmp_path / "prompts.jsonl", *lines, {"prompt": "b", "choices": ["Ay", "No"], "n": 9})
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    flags, outs = ["--max-chars", "300", "--temperature", "0.9"], [tmp_path / name for name in ("whole", "broken")]
    command = [sys.executable, "-W", "error", "-m", "rill", "batch", prompts, *flags, "--streams", "8"]

    def batch(out, *targets):
        arguments = [*command, "--out", out, "--target", ",".join(target.target for target in targets)]
        return subprocess.Popen([*map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def some(count):
        part = tmp_path / "broken.part"
        wait_until(lambda: part.exists() and part.read_bytes().count(b"\n") >= count, 30)

    arguments = (tiny_folder, "--resume-key-file", key)
    with run_server(*arguments) as one, run_server(*arguments) as other:
        with batch(outs[0], other) as undisturbed:
            assert undisturbed.wait(120) == 0, undisturbed.stderr.read()
        with batch(outs[1], one, other) as killed:
            some(30)
            killed.kill()
        with batch(outs[1], one, other) as going_on:
            some(100)
            one.process.send_signal(signal.SIGKILL)
            assert going_on.wait(120) == 0, going_on.stderr.read()
    assert outs[0].read_bytes() == outs[1].read_bytes()
    for line in lines_of(outs[1])[:240]:
        pattern = patterns[(line["line"] - 1) % 4]
        assert line["matches"] == bool(re.fullmatch(pattern, line["text"]))
        assert line["matches"] or line["finish_reason"] == "LENGTH"


# ---- rill chat


def chat(target, lines, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rill", "chat", "--target", target, "--seed", "7", *map(str, arguments)],
        cwd=ROOT,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_each_answer_of_a_chat_matches(server, tmp_path):
    token = tmp_path / "token"
    status, out, errors = chat(server.target, ["To be", "", "or not"], "--choice", "Ay.", "--choice", "No.")
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"(?:Ay\.|No\.){3}", out)
    lines = ["To be", "", "", "/regex [A-C]{2}", "", "x", "/regex (?=a)", "", "/regex", "", f"/save {token}"]
    status, out, errors = chat(server.target, lines, "--regex", "[a-f]{7}", "--max-chars", 5)
    incomplete, refused = "(the answer does not match yet: Enter continues it)", "(regex: the regex has a look-ahead"
    assert status == 1
    assert re.fullmatch("[a-f]{7}[a-f]{5}[A-C]{2}[A-C]{2}[A-C]{2}.{5}", out, re.DOTALL), out
    said = errors.splitlines()
    assert said[:2] == [incomplete] * 2
    assert said[2].startswith(refused)
    assert len(said) == 4


def test_a_chat_goes_on_in_the_constraint_of_a_token(server, tmp_path):
    token = tmp_path / "token"
    _, first, _ = chat(server.target, ["To be", f"/save {token}"], "--regex", "[a-f]{7}", "--max-chars", 4)
    status, out, errors = chat(
        server.target, ["", "", "/regex", "", "/fork", "/back"], "--load", token, "--max-chars", 9
    )
    assert re.fullmatch("[a-f]{7}", first + out[:3])
    assert (status, len(out)) == (0, 12)
    complete = "(the text is complete by the constraint of its token: /regex alone removes that)"
    assert errors.splitlines()[:2] == [complete] * 2
    status, out, errors = chat(server.target, [""], "--load", token, "--unconstrained", "--max-chars", 9)
    assert (status, len(out), errors) == (0, 9, "")
