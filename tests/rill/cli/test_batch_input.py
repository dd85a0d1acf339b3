"""The input of `rill batch`: what a line may contain, and how faults are reported."""

import json
import math
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.cli.batch.input import KEYS, LONGEST_LINE, MOST_CONSTRAINTS, PromptError, check, read
from rill.cli.batch.line_breaks import possible_breaks
from rill.client.requests import generate_request
from rill.v1 import rill_pb2 as pb

DEFAULTS = {"max_chars": 10, "temperature": 0.5, "stop": ["x"], "include_stop": False, "seed": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts") / "prompts.jsonl"


def prompts_of(path, *lines, defaults=DEFAULTS):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return list(read(path, check(path, defaults), defaults, lambda text: True))


def test_a_line_replaces_the_defaults_key_by_key(path):
    first, second = prompts_of(
        path,
        {"prompt": "é漢😀"},
        {"prompt": "", "id": "b", "max_chars": 3, "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.25, "seed": 7,
         "stop": ["ab", "c"], "include_stop": True, "logit_bias": {"e": "-inf", "é": 1.5}},
    )  # fmt: skip
    assert (first.line, first.id, first.request.prompt, first.request.max_chars) == (1, 1, "é漢😀", 10)
    assert (list(first.request.stop), first.request.include_stop) == (["x"], False)
    assert first.request.sampling.temperature == 0.5
    assert not any(first.request.sampling.HasField(name) for name in ("top_k", "top_p", "min_p"))
    request, sampling = second.request, second.request.sampling
    assert (second.line, second.id, request.max_chars, sampling.seed) == (2, "b", 3, 7)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 5, 0.5, 0.25)
    assert (list(request.stop), request.include_stop) == (["ab", "c"], True)
    assert sampling.logit_bias == {"e": -math.inf, "é": 1.5}


def test_seeds_depend_on_the_base_and_the_line(path):
    def seeds(base):
        prompts = prompts_of(path, *[{"prompt": "same"}] * 50, defaults={**DEFAULTS, "seed": base})
        return [prompt.request.sampling.seed for prompt in prompts]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1), *seeds(2**64 - 1)}) == 150
    assert max(seeds(0)) < 2**53
    assert seeds(0)[:2] == [4311062187307671, 3533322918161014]  # texts of earlier runs stay the same


def test_a_text_as_stop_is_one_stop(path):
    (prompt,) = prompts_of(path, {"prompt": "a", "stop": "the"})
    assert list(prompt.request.stop) == ["the"]


def test_what_editors_on_windows_save(path):
    lines = b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b\\r\\n"}\r\n\r\n  \r\n'
    assert [prompt.request.prompt for prompt in prompts_of(path, lines)] == ["a", "b\r\n"]
    for mark, encoding in (("\ufeff", "utf-16-le"), ("\ufeff", "utf-16-be"), ("", "utf-16-le"), ("", "utf-16-be")):
        with pytest.raises(PromptError, match=r"prompts.jsonl is UTF-16; save it as UTF-8$"):
            prompts_of(path, f'{mark}{{"prompt": "a"}}\n'.encode(encoding))
    with pytest.raises(PromptError, match="line 2: is not JSON"):
        prompts_of(path, b'{"prompt": "a"}\r\n\r\n\r\n{"prompt": "b"}\r\n')


def test_what_json_files_have(path):
    assert prompts_of(path) == []
    lines = b'\xef\xbb\xbf{"prompt": "a\\u2028b"}\r\n{"prompt":"a\xe2\x80\xa8b"}'  # no last line end
    assert [prompt.request.prompt for prompt in prompts_of(path, lines)] == ["a\u2028b"] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n{}", "is not JSON: Expecting value"),
        (b'{"prompt": "a"\n', "is not JSON: Expecting ',' delimiter at character"),
        (b'{"prompt": "\xff"}\n', "is not UTF-8: invalid start byte at byte 12"),
        (b"[" * 100_000, "is nested too deep"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "4300 digits"),
        (b'{"prompt": "a", "prompt": "b"}', 'has "prompt" twice'),
        (b'{"prompt": "a", "logit_bias": {"e": 1, "e": 2}}', 'has "e" twice'),
        ("a", 'must be an object like {"prompt": "…"}, not "a"'),
        ([], "must be an object"),
        ({}, 'has no "prompt"'),
        ({"id": 1}, 'has no "prompt"'),
        ({"prompt": "a", "temprature": 1}, 'unknown key "temprature"; the keys are prompt, id, n, max_chars'),
        ({"prompt": "a", "logprobs": 1}, 'unknown key "logprobs"'),
        ({"prompt": None}, '"prompt" must be a text, not null'),
        ({"prompt": "a\ud800"}, '"prompt" has half of a surrogate pair at position 1'),
        ({"prompt": "a", "id": 1.5}, '"id" must be a whole number, not 1.5'),
        ({"prompt": "a", "id": "\udfff"}, '"id" has half of a surrogate pair'),
        ({"prompt": "a", "max_chars": True}, '"max_chars" must be a whole number, not true'),
        ({"prompt": "a", "max_chars": 0}, '"max_chars" must be from 1 to'),
        ({"prompt": "a", "temperature": "1"}, '"temperature" must be a number of at least 0, not "1"'),
        ({"prompt": "a", "temperature": math.nan}, '"temperature" must be a number of at least 0, not NaN'),
        ({"prompt": "a", "temperature": 10**400}, '"temperature" must be a number'),
        ({"prompt": "a", "top_k": -1}, '"top_k" must be from 0 to 4294967295, not -1'),
        ({"prompt": "a", "top_p": 0}, '"top_p" must be a number above 0 and up to 1, not 0'),
        ({"prompt": "a", "top_p": 1e-50}, '"top_p" must be a number above 0 and up to 1, not 1e-50'),  # 0 as a float32
        ({"prompt": "a", "min_p": 1.01}, '"min_p" must be a number from 0 to 1, not 1.01'),
        ({"prompt": "a", "seed": 2**64}, '"seed" must be from 0 to'),
        ({"prompt": "a", "seed": None}, '"seed" must be a whole number, not null'),
        ({"prompt": "a", "stop": 5}, '"stop" must be a text or a list of texts, not 5'),
        ({"prompt": "a", "stop": ""}, '"stop" has an empty text'),
        ({"prompt": "a", "stop": [1]}, '"stop" must be a text, not 1'),
        ({"prompt": "a", "stop": [""]}, '"stop" has an empty text'),
        ({"prompt": "a", "regex": ["a"]}, '"regex" must be a text, not ["a"]'),
        ({"prompt": "a", "regex": None}, '"regex" must be a text, not null'),
        ({"prompt": "a", "choices": "yes"}, '"choices" must be a list of texts, and not empty, not "yes"'),
        ({"prompt": "a", "choices": []}, '"choices" must be a list of texts, and not empty, not []'),
        ({"prompt": "a", "choices": ["b", 1]}, '"choices" must be a text, not 1'),
        ({"prompt": "a", "json_schema": [1]}, '"json_schema" must be an object, or a text that has one, not [1]'),
        ({"prompt": "a", "json_schema": "{"}, '"json_schema" is not JSON: Expecting property name'),
        ({"prompt": "a", "json_schema": "3"}, '"json_schema" must be a JSON object, not 3'),
        ({"prompt": "a", "json_schema": {"const": math.nan}}, '"json_schema" is not JSON: '),
        ({"prompt": "a", "terminator": 1}, '"terminator" must be a text, not 1'),
        ({"prompt": "a", "terminator": "b"}, 'has a "terminator", and no "regex", "choices" or "json_schema"'),
        ({"prompt": "a", "regex": "b", "choices": ["c"]}, 'has "regex" and "choices"; a text has one constraint'),
        ({"prompt": "a", "regex": "b", "unconstrained": True}, 'has "regex" and "unconstrained"; a text has one'),
        ({"prompt": "a", "unconstrained": "yes"}, '"unconstrained" must be true or false, not "yes"'),
        ({"prompt": "a", "stop": ["b"] * 33}, '"stop" has 33 texts'),
        ({"prompt": "a", "include_stop": 1}, '"include_stop" must be true or false, not 1'),
        ({"prompt": "a", "logit_bias": [1]}, '"logit_bias" must be an object'),
        ({"prompt": "a", "logit_bias": {"": 1}}, '"logit_bias" has an empty symbol'),
        ({"prompt": "a", "n": 0}, '"n" must be from 1 to 1000000, not 0'),
        ({"prompt": "a", "n": 2.0}, '"n" must be a whole number, not 2.0'),
        ({"prompt": "a", "logit_bias": {"a": math.inf}}, '"logit_bias" "a": must be a number that a float32 holds'),
    ],
)
def test_a_fault_is_named_with_file_line_and_key(path, line, message):
    with pytest.raises(PromptError) as caught:
        prompts_of(path, {"prompt": "a"}, {"prompt": "b"}, line)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_deep_nesting_never_raises_another_error(path):
    """A few depths can be parsed, but not quoted in the message."""
    for depth in range(900, 1000):
        with pytest.raises(PromptError, match="line 1: "):
            prompts_of(path, b'{"prompt": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}")


def test_a_file_without_line_ends_is_not_read_whole(path):
    with path.open("wb") as file:
        file.truncate(LONGEST_LINE + 10)  # zeros
    with pytest.raises(PromptError, match="line 1: is longer than"):
        check(path, DEFAULTS)


def test_files_that_cannot_be_read(tmp_path):
    for file, message in [(tmp_path, "Is a directory"), (tmp_path / "none", "No such file")]:
        with pytest.raises(PromptError, match=f"cannot read {file}: {message}"):
            check(file, DEFAULTS)


def test_a_file_that_changes_is_noticed(path):
    path.write_text('{"prompt": "a"}\n' * 3)
    checked = check(path, DEFAULTS)
    for changed in ('{"prompt": "a"}\n' * 4, '{"prompt": "a"}\n' * 2, '{"prompt": "b"}\n' * 3):
        path.write_text(changed)
        with pytest.raises(PromptError, match="changed after it was checked"):
            list(read(path, checked, DEFAULTS, lambda text: True))


def test_only_wanted_lines_are_read(path):
    path.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(1, 10)))
    prompts = read(path, check(path, DEFAULTS), DEFAULTS, lambda text: text % 3 == 2)
    assert [(prompt.line, prompt.request.prompt) for prompt in prompts] == [(3, "3"), (6, "6"), (9, "9")]


texts = st.text("aé漢😀\ud800\n", max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), values, max_size=6))
def test_any_object_is_a_prompt_or_a_named_fault(path, line):
    with suppress(PromptError):
        (prompt,) = prompts_of(path, line)
        assert prompt.request.prompt == line["prompt"]
        assert prompt.id == line.get("id", 1)
        assert prompt.request.max_chars == line.get("max_chars", 10)


@given(st.binary(max_size=60))
def test_any_bytes_are_prompts_or_a_named_fault(path, raw):
    with suppress(PromptError):
        prompts_of(path, raw)


def test_a_line_has_its_own_constraint_or_that_of_the_flags(path):
    lines = [
        {"prompt": ""},
        {"prompt": "", "choices": ["b", "c"]},
        {"prompt": "", "json_schema": {"type": "integer"}, "terminator": ""},
        {"prompt": "", "unconstrained": True},
        {"prompt": "", "terminator": "\n", "unconstrained": False},
    ]
    choices = pb.Constraint.Choices(text=["b", "c"])
    defaults = {**DEFAULTS, "regex": "a*", "terminator": ";"}
    assert [prompt.request.sampling.constraint for prompt in prompts_of(path, *lines, defaults=defaults)] == [
        pb.Constraint(regex="a*", terminator=";"),
        pb.Constraint(choices=choices, terminator=";"),
        pb.Constraint(json_schema='{"type": "integer"}', terminator=""),
        pb.Constraint(),
        pb.Constraint(regex="a*", terminator="\n"),
    ]
    prompts = prompts_of(path, *lines[:2], lines[3], defaults={**DEFAULTS, "terminator": ";"})
    assert [prompt.request.sampling.HasField("constraint") for prompt in prompts] == [False, True, False]


def test_constraints_are_collected_once_with_their_biases(path):
    some = [{"prompt": "", "regex": regex, "temperature": t} for t, regex in enumerate(["a", "b", "a", "b"])]
    biased = {"prompt": "x", "regex": "a", "logit_bias": {"b": 1, "a": "-inf"}}
    prompts_of(path, *some, {"prompt": ""}, biased, biased)
    found = check(path, DEFAULTS).constraints
    assert list(found.values()) == [1, 2, 6]
    assert [pb.Sampling.FromString(raw).constraint.regex for raw in found] == ["a", "b", "a"]
    prompts_of(path, *({"prompt": "", "regex": str(number)} for number in range(MOST_CONSTRAINTS + 5)))
    assert len(check(path, DEFAULTS).constraints) == MOST_CONSTRAINTS


@pytest.mark.parametrize(
    ("parameters", "breaks"),
    [
        ({}, "\n\r"),
        ({"regex": "[A-Z]{3}-[0-9]+(x|y)?"}, ""),
        ({"regex": r"\[\.\]\(\w+\)\d"}, ""),
        ({"regex": "a.b"}, "\r"),
        ({"regex": r"a\.b"}, ""),
        *(
            ({"regex": regex}, "\n\r")
            for regex in ("a\nb", r"a\nb", "[^a]", r"\s", r"[\s]", r"\W", r"\x0a", "[\t- ]", r"[\t-a]", r"\012")
        ),
        ({"choices": ["a", "b\n"]}, "\n"),
        ({"choices": ["a", "b"]}, ""),
        ({"json_schema": {"const": "a\nb"}}, ""),
        ({"regex": "[^a]", "stop": "\n"}, "\r"),
    ],
)
def test_texts_that_may_have_line_breaks(parameters, breaks):
    assert "".join(possible_breaks(generate_request(**parameters))) == breaks
    if "regex" in parameters:  # where it says no, no text that matches has one
        pattern = re.compile(parameters["regex"])
        assert not any(pattern.fullmatch(f"a{each}b") for each in {*"\n\r"} - {*breaks})
