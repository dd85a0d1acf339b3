"""The modules of the playground that need no browser: snippets, branches, tokens, settings, figures."""

import base64
import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from google.protobuf import json_format
from hypothesis import strategies as st
from node import drawn, modules, run_node

from rill.client.requests import generate_request
from rill.v1 import rill_pb2 as pb

WELL_FORMED = st.characters(exclude_categories=["Cs"])
HOSTILE = "'\"\\\n\r\t$`!#%&{} a\u202e\u200b\u0301\x07\x7f😀"
TEXTS = st.text(WELL_FORMED, max_size=20) | st.text(st.sampled_from(HOSTILE), max_size=12)
NUMBERS = st.floats(0, 2).map(lambda value: round(value, 2))
CONSTRAINTS = (
    st.builds(lambda text: {"regex": text}, TEXTS)
    | st.builds(lambda text: {"jsonSchema": json.dumps({"const": text}, ensure_ascii=False)}, TEXTS)
    | st.builds(lambda texts: {"choices": {"text": texts}}, st.lists(TEXTS, min_size=1, max_size=3))
)
CASES = st.fixed_dictionaries({
    "model": TEXTS.filter(bool),
    "prompt": TEXTS,
    "token": st.just("") | st.binary(min_size=1, max_size=40).map(lambda token: base64.b64encode(token).decode()),
    "settings": st.fixed_dictionaries({
        "temperature": NUMBERS,
        "topP": st.floats(0.01, 1).map(lambda value: round(value, 2)),
        "topK": st.integers(0, 50),
        "minP": st.floats(0, 1).map(lambda value: round(value, 2)),
        "seed": st.integers(0, 2**64 - 1).map(str),
        "constraint": st.sampled_from([None, "{}"]) | CONSTRAINTS.map(json.dumps),
        "stop": st.lists(TEXTS.filter(bool).filter(lambda text: "\0" not in text), max_size=3),
        "pace": st.sampled_from([0, 20, 400]),
        "length": st.integers(0, 10**5),
    }),
    "isProtected": st.booleans(),
})  # fmt: skip
NOTHING_SET = dict.fromkeys(("temperature", "topP", "topK", "minP", "seed", "stop", "constraint")) | {
    "pace": 0,
    "length": 40,
}
BASE = "http://127.0.0.1:8080/it's/"
ENDLESS = 2**53 - 1  # max_tokens has no word for a text without an end
TARGET = "127.0.0.1:50051"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return modules(tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def cases():
    of_a_token = {"model": "m", "prompt": "", "token": "AAAA", "settings": NOTHING_SET, "isProtected": False}
    return [*drawn(CASES, 150), of_a_token]


@pytest.fixture(scope="module")
def snippets(folder, cases):
    program = """
    import * as snippets from "./playground/snippets.js";
    report(data.cases.map((request) => ({
      curl: snippets.curl(request, data.base),
      openai: snippets.openai(request, data.base),
      rill: snippets.rill(request, data.target),
      grpcurl: snippets.grpcurl(request, data.target),
    })));
    """
    return run_node(folder, program, {"cases": cases, "base": BASE, "target": TARGET})


def arguments_in_a_shell(name, commands):
    """What a POSIX shell passes to `name` in each command."""
    function = name + "() { printf '%s\\0' \"$@\"; printf '\\001\\0'; }"
    script = "\n".join([function, *commands])
    done = subprocess.run(["sh"], input=script.encode(), capture_output=True, check=True, env={"RILL_TOKEN": "s3 cret"})
    assert not done.stderr
    words = done.stdout.decode().split("\0")
    calls = [[]]
    for word in words[:-1]:
        if word == "\001":
            calls.append([])
        else:
            calls[-1].append(word)
    return calls[:-1]


def constraint_of_completion(constraint, has_token):
    match json.loads(constraint or "null"):
        case None:
            return {}
        case {"regex": regex}:
            return {"structured_outputs": {"regex": regex}}
        case {"choices": {"text": texts}}:
            return {"structured_outputs": {"choice": texts}}
        case {"jsonSchema": schema}:
            return {"structured_outputs": {"json": schema}}
    return {"response_format": {"type": "text"}} if has_token else {}


def expected_completion(case):
    settings = case["settings"]
    body = {
        "model": case["model"],
        "prompt": "" if case["token"] else case["prompt"],
        "max_tokens": settings["length"] or ENDLESS,
        "temperature": settings["temperature"],
        "top_p": settings["topP"],
        "top_k": settings["topK"],
        "min_p": settings["minP"],
        "seed": None if settings["seed"] is None else int(settings["seed"]),
        "stop": settings["stop"] or None,
        "chars_per_second": settings["pace"] or None,
        "stream": True,
        "resume_token": case["token"].replace("+", "-").replace("/", "_").rstrip("=") or None,
        **constraint_of_completion(settings["constraint"], bool(case["token"])),
    }
    return {name: value for name, value in body.items() if value is not None}


def expected_request(case):
    settings = case["settings"]
    request = pb.GenerateRequest(
        prompt="" if case["token"] else case["prompt"],
        model="" if case["token"] else case["model"],
        resume_token=base64.b64decode(case["token"]),
        max_chars=settings["length"],
        stop=settings["stop"] or [],
        chars_per_second=settings["pace"],
    )
    for field, name in (("temperature", "temperature"), ("top_p", "topP"), ("top_k", "topK"), ("min_p", "minP")):
        if settings[name] is not None:
            setattr(request.sampling, field, settings[name])
    if settings["seed"] is not None:
        request.sampling.seed = int(settings["seed"])
    request.sampling.SetInParent()
    constraint = settings["constraint"]
    if constraint is not None and (constraint != "{}" or case["token"]):
        request.sampling.constraint.SetInParent()
        json_format.Parse(constraint, request.sampling.constraint)
    return request


def test_curl_sends_the_request_in_a_shell(snippets, cases):
    calls = arguments_in_a_shell("curl", [snippet["curl"] for snippet in snippets])
    for call, case in zip(calls, cases, strict=True):
        header, url, *_ = call
        assert (header, url) == ("-N", f"{BASE}v1/completions")
        assert json.loads(call[-1]) == expected_completion(case)
        assert ("authorization: Bearer s3 cret" in call) == case["isProtected"]


def test_grpcurl_sends_the_request_in_a_shell(snippets, cases):
    calls = arguments_in_a_shell("grpcurl", [snippet["grpcurl"] for snippet in snippets])
    for call, case in zip(calls, cases, strict=True):
        assert call[-2:] == [TARGET, "rill.v1.TextGeneration/Generate"]
        message = call[call.index("-d") + 1]
        assert json_format.Parse(message, pb.GenerateRequest()) == expected_request(case)


def run_python(source, monkeypatch, **names):
    """Run a snippet with a stand-in for the package that it imports."""
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, "snippet", "exec"), {})


def test_the_snippet_for_openai_runs(snippets, cases, monkeypatch):
    sent = []

    class OpenAI:
        def __init__(self, base_url, api_key):
            sent.append((base_url, api_key))
            self.completions = SimpleNamespace(create=self.create)

        def create(self, extra_body=None, **body):
            assert set(body) <= {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream"}
            sent.append({**body, **(extra_body or {})})
            return []

    monkeypatch.setenv("RILL_TOKEN", "s3 cret")
    for snippet, case in zip(snippets, cases, strict=True):
        sent.clear()
        run_python(snippet["openai"], monkeypatch, openai={"OpenAI": OpenAI})
        assert sent[0] == (f"{BASE}v1", "s3 cret" if case["isProtected"] else "none")
        assert sent[1] == expected_completion(case)


def test_the_snippet_for_the_client_runs(snippets, cases, monkeypatch):
    sent = []

    class Client:
        def __init__(self, target, security=None):
            assert target == TARGET
            self.security = security

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def generate(self, prompt="", **parameters):
            sent.append((self.security, generate_request(prompt, **parameters)))
            return []

    monkeypatch.setenv("RILL_TOKEN", "s3 cret")
    for snippet, case in zip(snippets, cases, strict=True):
        sent.clear()
        run_python(snippet["rill"], monkeypatch, rill={"Client": Client, "Security": lambda token: token})
        security, request = sent[0]
        assert security == ("s3 cret" if case["isProtected"] else None)
        expected = expected_request(case)
        request.ClearField("resume_every")
        assert request == expected


def test_snippets_show_no_character_that_cannot_be_seen(snippets):
    for snippet in snippets:
        for text in snippet.values():
            assert not set(text) & set("\u202e\u200b\u0301\x07\x7f\r\t")


def test_tokens_are_read_in_either_alphabet(folder):
    tokens = [token for token in drawn(st.binary(max_size=50), 100) if token]
    given = []
    for token in tokens:
        standard = base64.b64encode(token).decode()
        url = base64.urlsafe_b64encode(token).decode()
        given.append([standard, url, url.rstrip("="), f"  {standard[:10]}\n{standard[10:]} "])
    texts = drawn(st.text(WELL_FORMED, max_size=20), 50)
    program = """
    import { encodeText, toStandardAlphabet, toUrlAlphabet } from "./playground/base64.js";
    const fails = (text) => { try { toStandardAlphabet(text); return false; } catch { return true; } };
    report({
      standard: data.given.map((forms) => forms.map(toStandardAlphabet)),
      url: data.given.map(([standard]) => toUrlAlphabet(standard)),
      texts: data.texts.map(encodeText),
      refused: ["a token!", "AAAAA", "ä", "A=AA"].map(fails),
    });
    """
    read = run_node(folder, program, {"given": given, "texts": texts})
    assert read["standard"] == [[forms[0]] * 4 for forms in given]
    assert read["url"] == [forms[2] for forms in given]
    assert read["texts"] == [base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") for text in texts]
    assert all(read["refused"])


def test_a_fork_shares_the_beginning_and_its_tokens(folder):
    program = """
    import { Branches } from "./playground/branches.js";
    const branches = new Branches();
    const first = branches.begin("seed 1");
    first.entries = Array.from("ab", (text) => ({ text, given: true }));
    first.promptLength = 2;
    first.change({ seed: "1", temperature: 1 });
    first.entries.push(...Array.from("cde", (text) => ({ text })));
    first.change({ temperature: 2 });
    first.entries.push(...Array.from("fgh", (text) => ({ text })));
    [[2, "two", 0], [8, "eight", 6], [5, "five", 3], [5, "changed", 3]].forEach((mark) => first.mark(...mark));
    const fork = branches.fork(6, "another");
    fork.entries.push({ text: "X" });
    const nested = branches.fork(1, "a third");
    const seen = {
      marks: [first, fork, nested].map(({ marks }) => marks.map(({ index, token }) => [index, token])),
      texts: [first, fork, nested].map((branch) => branch.text()),
      before: [1, 2, 4, 5, 7, 8].map((index) => first.markBefore(index)?.token ?? null),
      depths: branches.all.map((branch) => branches.depth(branch)),
      sampling: [1, 2, 5, 8].map((index) => first.samplingAt(index)),
      changes: [fork, nested].map(({ changes }) => changes.length),
      prompts: branches.all.map(({ promptLength }) => promptLength),
    };
    first.truncate(4);
    report({ ...seen, cut: [first.text(), first.marks.length, fork.text()] });
    """
    assert run_node(folder, program, None) == {
        "marks": [[[2, "two"], [5, "changed"], [8, "eight"]], [[2, "two"], [5, "changed"]], []],
        "texts": ["abcdefgh", "abcdefX", "a"],
        "before": [None, "two", "two", "changed", "changed", "eight"],
        "depths": [0, 1, 2],
        "sampling": [{}, {"seed": "1", "temperature": 1}, *[{"seed": "1", "temperature": 2}] * 2],
        "changes": [2, 0],
        "prompts": [2, 2, 1],
        "cut": ["abcd", 1, "abcdefX"],
    }


def test_settings_are_read_and_refused(folder):
    program = """
    import { readLines } from "./playground/constraint.js";
    import { DEFAULTS, faultOf, samplingOf, stopsOf } from "./playground/settings.js";
    const fault = (change) => faultOf({ ...DEFAULTS, ...change });
    const [used, unused] = [true, false].map((usesStops) => ({ usesStops, entries: [] }));
    report({
      stops: readLines("one\\n\\\\n\\n\\na\\\\\\\\n\\\\x"),
      good: [{}, { seed: "18446744073709551615" }, { seed: null, stop: null }, { length: 0 }].map(fault),
      bad: [{ seed: "18446744073709551616" }, { seed: "-1" }, { seed: "" }, { seed: "1e3" }, { length: 1.5 },
            { length: NaN }, { stop: Array(33).fill("a") }].map(fault),
      sampling: samplingOf({ ...DEFAULTS, topP: null }),
      sent: [stopsOf(null, used), stopsOf([], unused), stopsOf([], used), stopsOf(["a"], used)],
      long: stopsOf([], { ...used, hasLongSymbols: true, entries: [{ text: "Cl" }, { text: "\\n", given: true }] }),
    });
    """
    read = run_node(folder, program, None)
    assert read["stops"] == ["one", "\n", "a\\n\\x"]
    assert read["good"] == ["", "", "", ""]
    assert all(fault.endswith(".") for fault in read["bad"])
    assert read["sampling"] == {"temperature": 1, "topK": 0, "minP": 0, "seed": "0", "constraint": {}}
    assert read["sent"] == [[], [], ["\0"], ["a"]]
    assert read["long"] == ["Cl" * 200]  # which can be cut into symbols


def test_a_constraint_is_read_and_refused(folder):
    program = """
    import { constraintOf, faultOfConstraint, KINDS } from "./playground/constraint.js";
    const examples = Object.entries(KINDS).flatMap(([kind, { examples }]) => {
      return examples.map(([, text]) => constraintOf(kind, text));
    });
    report({
      read: data.written.map(([kind, text]) => JSON.parse(constraintOf(kind, text))),
      good: [null, "{}", ...examples].map(faultOfConstraint),
      bad: data.bad.map(([kind, text]) => faultOfConstraint(constraintOf(kind, text))),
    });
    """
    written = {
        ("", "a"): {},
        ("regex", ""): {},
        ("regex", "a b \\n\n"): {"regex": "a b \\n"},
        ("choices", "yes\n\n a\\nb"): {"choices": {"text": ["yes", " a\nb"]}},
        ("choices", "\n"): {},
        ("jsonSchema", " {} \n"): {"jsonSchema": "{}"},
        ("jsonSchema", " "): {},
    }
    bad = [
        ("jsonSchema", "{"),
        ("jsonSchema", "[]"),
        ("jsonSchema", "null"),
        ("regex", "\ud800"),
        ("choices", "\udfff"),
    ]
    read = run_node(folder, program, {"written": list(written), "bad": bad})
    assert read["read"] == list(written.values())
    assert read["good"] == [""] * 8
    assert all(fault.endswith(".") for fault in read["bad"])


def test_a_text_is_split_into_its_symbols(folder):
    program = """
    import { symbolsOf } from "./playground/symbols.js";
    report(data.map(([text, lengths]) => symbolsOf(text, lengths)));
    """
    cases = [("Cl😀", None), ("Cl😀", []), ("CCl[nH]😀", [1, 2, 4, 1]), ("", [])]
    assert run_node(folder, program, cases) == [["C", "l", "😀"], ["C", "l", "😀"], ["C", "Cl", "[nH]", "😀"], []]


def test_the_first_difference_is_found_while_texts_grow(folder):
    program = """
    import { Difference } from "./playground/difference.js";
    const entries = (text) => Array.from(text, (text) => ({ text }));
    const difference = new Difference();
    const found = [["", ""], ["ab", "a"], ["abc", "abc"], ["abcd", "abcx"], ["abcde", "abcxe"]]
      .map(([one, other]) => difference.find(entries(one), entries(other)));
    difference.reset();
    report([...found, difference.find(entries("x"), entries("y"))]);
    """
    assert run_node(folder, program, None) == [None, None, None, 3, 3, 0]


def test_speed_is_that_of_the_last_second(folder):
    program = """
    import { Meter } from "./playground/meter.js";
    const meter = new Meter();
    const before = [meter.firstCharacter, meter.rate(0), meter.average];
    meter.begin(1000);
    for (let time = 1100; time <= 4100; time += 100) meter.add(time < 3000 ? 1 : 20, time);
    report({ before, first: meter.firstCharacter, rate: meter.rate(4100), average: meter.average });
    """
    seen = run_node(folder, program, None)
    assert seen["before"] == [None, None, None]
    assert seen["first"] == 100
    assert seen["rate"] == pytest.approx(210, abs=20)
    assert seen["average"] == pytest.approx((19 + 12 * 20) / 3)
