"""`rill tokenizer`: what it writes, and where it writes nothing."""

import json
import random

import outside
import pytest
from random_models import LETTERS, make_run, save_bundle
from servers import run_server

from rill.cli import tokenizer as command
from rill.cli.main import main
from rill.vocabulary import Vocabulary

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


def test_symbols_longer_than_a_character_are_refused(server, tmp_path, monkeypatch, capsys):
    class Info:
        name, vocabulary = "words", ["a", "the"]

    monkeypatch.setattr(command, "find_generator", lambda *given: Info)
    assert run(server, tmp_path / "new") == 2
    assert "cuts texts as words does: the vocabulary symbol 'the' is not one character" in capsys.readouterr().err
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
assert (auto.bos_token, auto.eos_token) == ("\n", "\n")
assert auto.bos_token_id == auto.eos_token_id == raw.token_to_id("\n")
assert raw.token_to_id("<unk>") == unknown
print(json.dumps(answers))
"""
HARD = ["", "\n", "\n\n", " ", "  a  b\n\n c ", "é.\n.é", "<unk>", "a<unk>b"]
HARD += ["\u0301", "a\u0301", "a🙂b\r\nc", "\ufffd", "\0"]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("symbols", [LETTERS, WITH_UNKNOWN], ids=["without <unk>", "with <unk>"])
def test_the_real_tokenizers_and_transformers_agree(symbols, tmp_path):
    """Ids are the model's, texts come back exactly, and a character that the model lacks is told from all others."""
    environment = outside.python("tokenizers", "tokenizers>=0.22", "transformers>=5")
    save_bundle(make_run(symbols), tmp_path / "model")
    with run_server(tmp_path / "model") as server:
        assert run(server, tmp_path / "out") == 0
    chance = random.Random(0)
    alphabet = [*LETTERS, "\n", " ", " "]
    texts = [*HARD, *("".join(chance.choices(alphabet, k=chance.randrange(200))) for _ in range(50))]

    unknown = symbols.index("<unk>") if "<unk>" in symbols else len(symbols)
    (tmp_path / "check.py").write_text(CHECK)
    answers = json.loads(
        environment.run(
            "python", "check.py", tmp_path / "out", unknown, cwd=tmp_path, stdin=json.dumps(texts)
        ).stdout.splitlines()[-1]
    )
    ids = {symbol: at for at, symbol in enumerate(symbols)}
    lost = "\ufffd" if "<unk>" in symbols else ""
    for text, (found, decoded) in zip(texts, answers, strict=True):
        assert found == [ids.get(character, unknown) for character in text]
        assert decoded == "".join(character if character in ids else lost for character in text)
