"""`rill tokenizer`: what it writes, and where it writes nothing."""

import json
import random

import outside
import pytest
from random_models import LETTERS, MOLECULES

from rill.cli import tokenizer as command
from rill.cli.main import main
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import CHARACTERS, LONGEST, UNKNOWN, UnknownCharacterError, Vocabulary

FILES = ["tokenizer.json", "tokenizer_config.json"]
WITH_UNKNOWN = ("<unk>", *LETTERS)


def run(server, *arguments):
    return main(["tokenizer", *map(str, arguments), "--target", server.target])


def test_it_writes_the_symbols_with_their_ids(server, tmp_path, capsys):
    out = tmp_path / "new"
    assert run(server, out) == 0
    assert capsys.readouterr().out == f"{out}: the 57 symbols of tiny\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", *FILES]
    model = json.loads((out / "tokenizer.json").read_text())["model"]
    assert {symbol: model["vocab"][symbol] for symbol in LETTERS} == {symbol: at for at, symbol in enumerate(LETTERS)}
    assert model["vocab"][model["unk_token"]] == len(LETTERS)  # which no server knows
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["bos_token"] == config["eos_token"] == "\n"
    assert "unk_token" not in config

    before = [(out / name).stat().st_mtime_ns for name in FILES]
    assert run(server, out) == 0
    assert capsys.readouterr().out == f"{out}: the 57 symbols of tiny (unchanged)\n"
    assert [(out / name).stat().st_mtime_ns for name in FILES] == before


def test_a_model_with_an_unknown_symbol_keeps_its_ids():
    vocabulary = Vocabulary(WITH_UNKNOWN)
    model = command.tokenizer(vocabulary)["model"]
    assert list(model["vocab"].values()) == list(range(len(WITH_UNKNOWN)))
    assert model["vocab"][model["unk_token"]] == 0
    assert command.tokenizer_config(vocabulary)["unk_token"] == "<unk>"


def test_a_model_without_a_newline_begins_behind_symbol_0():
    assert command.tokenizer_config(Vocabulary(("a", "b")))["bos_token"] == "a"


def test_a_model_that_cuts_texts_in_another_way_is_refused(server, tmp_path, monkeypatch, capsys):
    pattern = r"regex:[a-z]{1,9}|."
    for info, reason in [
        (pb.ModelInfo(name="words", vocabulary=["a", "the"]), "the vocabulary symbol 'the' is not one character"),
        (
            pb.ModelInfo(name="words", vocabulary=["<unk>", "the"], tokenizer=pattern),
            "it cuts texts by a pattern and",
        ),
        (
            pb.ModelInfo(name="words", vocabulary=["a"], tokenizer="regex:(a|){0,3}a"),
            "the pattern has a count of what may be",
        ),
        (pb.ModelInfo(name="words", vocabulary=["a"], tokenizer="bytes"), "tokenizer 'bytes' is not"),
    ]:
        monkeypatch.setattr(command, "find_generator", lambda *given, info=info: info)
        assert run(server, tmp_path / "new") == 2
        assert f"no tokenizer of this kind cuts texts as words does: {reason}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_replaced_only_by_force(server, tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text("of a large model")
    assert run(server, tmp_path) == 2
    assert f"{tmp_path / 'tokenizer.json'} exists and is of another tokenizer" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text() == "of a large model"
    assert run(server, tmp_path, "--force") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_nothing_is_left_of_a_folder_that_could_not_be_written(server, tmp_path, monkeypatch, capfd):
    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", fail)
    assert run(server, tmp_path / "new") == 1
    assert "No space left on device" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("", "the name is empty"),
        ("file", "it is not a folder"),
        ("none/new", "there is no folder"),
        ("file/new", "there is no folder"),
        ("n" * 300, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_server_is_asked(out, reason, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", str(tmp_path / out) if out else "", "--target", "127.0.0.1:1"])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


CHECK = r"""
import json, sys
from tokenizers import Tokenizer
from transformers import AutoTokenizer
folder, unknown = sys.argv[1], int(sys.argv[2])
raw, auto = Tokenizer.from_file(folder + "/tokenizer.json"), AutoTokenizer.from_pretrained(folder)
texts = json.load(sys.stdin)
answers = []
for text in texts:
    ids = raw.encode(text).ids
    assert auto(text).input_ids == auto.encode(text, add_special_tokens=False) == ids
    assert auto.decode(ids) == raw.decode(ids)
    answers.append([ids, raw.decode(ids)])
again = folder + "/again"
auto.save_pretrained(again)
assert AutoTokenizer.from_pretrained(again)(texts).input_ids == [ids for ids, _ in answers]
assert [auto.bos_token_id, auto.eos_token_id] == [raw.token_to_id(auto.bos_token), raw.token_to_id(auto.eos_token)]
assert raw.token_to_id("<unk>") == unknown
answers.append([auto.bos_token_id, auto.eos_token_id])
answers.append(auto.decode([auto.bos_token_id, auto.eos_token_id]))
print(json.dumps(answers))
"""
HARD = ["", "\n", "\n\n", " ", "  a  b\n\n c ", "é.\n.é", "<unk>", "a<unk>b"]
HARD += ["\u0301", "a\u0301", "a🙂b\r\nc", "\ufffd", "\0"]


# What is cut by the longest symbol, with a start and an end of one character each, and names of theirs in texts.
SYMBOLS = (UNKNOWN, *"^$abcé\n ", "ab", "abca", "<s", "漢字")
WHOLE = {
    "characters": Vocabulary(LETTERS),
    "characters with <unk>": Vocabulary(WITH_UNKNOWN),
    "characters with a start": Vocabulary(("^", *LETTERS, "$"), CHARACTERS, "^", ("$",)),
    "longest": Vocabulary(SYMBOLS, LONGEST, "^", ("$",)),
    "longest with names": Vocabulary(("<start>x", *"<star>x^", "^a", "<end>", "\n"), LONGEST, "^", ("<end>",)),
    "a pattern": MOLECULES,
    "a pattern of names": Vocabulary(("<b>", *"ab<>\n", "<a>"), r"regex:<\w{1,5}>|\W|[a-c]", "<b>"),
}


def test_a_start_or_end_symbol_that_a_text_may_have_gets_another_name():
    folder = command.tokenizer(WHOLE["longest"])
    assert list(folder["model"]["vocab"].items())[:4] == [("<unk>", 0), ("<start>", 1), ("<end>", 2), ("a", 3)]
    config = command.tokenizer_config(WHOLE["longest"])
    assert (config["bos_token"], config["eos_token"]) == ("<start>", "<end>")
    config = command.tokenizer_config(MOLECULES)
    assert (config["bos_token"], config["eos_token"]) == ("<start>", "<end>")
    assert command.tokenizer_config(WHOLE["a pattern of names"])["bos_token"] == "<start2>"


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(WHOLE))
def test_the_real_tokenizers_and_transformers_agree(name, server, tmp_path, monkeypatch):
    """Ids are the model's, texts come back exactly, and a character that the model lacks is told from all others."""
    vocabulary = WHOLE[name]
    environment = outside.python("tokenizers", "tokenizers>=0.22", "transformers>=5")
    info = pb.ModelInfo(
        name=name,
        vocabulary=vocabulary.symbols,
        tokenizer=vocabulary.tokenizer,
        start_symbol=vocabulary.start,
        end_symbols=vocabulary.ends,
    )
    monkeypatch.setattr(command, "find_generator", lambda *given: info)
    assert run(server, tmp_path / "out") == 0
    chance = random.Random(0)
    alphabet = [*vocabulary.symbols, "\n", " ", " ", "<start>", "<end>", "[", "é", "漢"]
    sizes = [chance.randrange(200) for _ in range(30)] + [chance.randrange(8) for _ in range(170)]
    texts = [*HARD, *("".join(chance.choices(alphabet, k=size)) for size in sizes)]

    unknown = len(vocabulary) if vocabulary.unknown_id is None else vocabulary.unknown_id
    (tmp_path / "check.py").write_text(CHECK)
    *answers, special, nothing = json.loads(
        environment.run(
            "python", "check.py", tmp_path / "out", unknown, cwd=tmp_path, stdin=json.dumps(texts)
        ).stdout.splitlines()[-1]
    )
    assert special == [vocabulary.start_id, vocabulary.end_ids[0] if vocabulary.ends else vocabulary.start_id]
    assert nothing == vocabulary.decode(special)
    for text, (found, decoded) in zip(texts, answers, strict=True):
        try:
            ids = vocabulary.encode(text)
        except UnknownCharacterError:
            assert unknown in found
            continue
        assert found == ids, text
        lost = vocabulary.unknown_character
        assert decoded == "".join(lost if one == unknown else vocabulary.symbols[one] for one in ids)
