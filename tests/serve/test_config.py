"""What a server is told by flags, environment and file: which of them counts, and what is refused."""

import os

import pytest
from servers import run_server

from rill.serve.config import ServerConfig, options_of


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Options from flags, the environment and a file; or what is said instead."""
    for name in os.environ:
        if name.startswith("RILL_SERVE_"):
            monkeypatch.delenv(name)

    def options(*flags, file="", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(f"RILL_SERVE_{name.upper()}", value)
        if file:
            (tmp_path / "rill.toml").write_text(file)
            flags = (*flags, "--config", tmp_path / "rill.toml")
        try:
            return options_of(list(map(str, flags)), None)
        except SystemExit:
            usage, said = capsys.readouterr().err.splitlines()
            assert usage.startswith("usage: ")
            return said

    return options


def test_without_a_word_it_is_the_default(told):
    options = told("b")
    assert options.config == ServerConfig(bundles=["b"], resume_key_file=[])
    assert not options.check


def test_flags_come_before_the_environment_and_that_before_the_file(told):
    file = 'max-streams = 3\nmax-waiting = 3\nmax-chars = 3\nhost = "::1"\n'
    config = told("b", "--max-streams", 1, file=file, max_streams="2", max_waiting="2").config
    assert (config.max_streams, config.max_waiting, config.max_chars, config.host) == (1, 2, 3, "::1")


def test_every_kind_of_value_can_stand_in_a_file(told):
    file = """
        bundle = ["b", "c"]  # after those on the command line
        no-reflection = true
        no-access-log = false
        resume-key-file = ["new", "old"]
        resume-ttl = 60
        round-milliseconds = 2.5
        tls-cert = "a file.pem"
    """
    config = told("a", file=file).config
    assert list(config.bundles) == ["a", "b", "c"]
    assert (config.reflection, config.access_log) == (False, True)
    assert list(config.resume_key_file) == ["new", "old"]
    assert (config.resume_ttl, config.round_seconds, config.tls_cert) == (60, 0.0025, "a file.pem")


def test_every_kind_of_value_can_stand_in_the_environment(told):
    config = told(bundle="[a, b]", no_reflection="true", resume_key_file="[new, old]", drain_seconds="1.5").config
    assert list(config.bundles) == ["a", "b"]
    assert not config.reflection
    assert list(config.resume_key_file) == ["new", "old"]
    assert config.drain_seconds == 1.5


def test_the_file_may_be_named_in_the_environment(told, tmp_path):
    (tmp_path / "other.toml").write_text("port = 7\n")
    assert told("b", config=str(tmp_path / "other.toml")).config.port == 7


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"file": "max-strems = 3"}, "--max-strems"),
        ({"file": 'max-streams = "many"'}, "argument --max-streams: invalid int value: 'many'"),
        ({"file": "max-streams = 0"}, "--max-streams must be from 1 to 1000000, not 0"),
        ({"file": "[serve]\nport = 1"}, "serve is not a string, a number"),
        ({"file": "port 1"}, "not valid TOML"),
        ({"file": "no-reflection = 'perhaps'"}, "no-reflection"),
        ({"max_strems": "3"}, "RILL_SERVE_MAX_STREMS"),
        ({"max_streams": "0"}, "--max-streams must be from 1"),
        ({"stall_seconds": "nan"}, "--stall-seconds must be a finite number"),
        ({"config": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_what_has_no_meaning_is_named(told, how, said):
    assert said in told("b", **how)


def test_nothing_to_serve_is_an_error(told):
    assert "give at least one BUNDLE" in told("--port", 1)


# --check-config


def test_what_can_be_served_is_said_without_listening(tiny_folder, tmp_path, run_command):
    """Also while a server has the port: that is when one asks."""
    (tmp_path / "rill.toml").write_text(f'bundle = ["{tiny_folder}"]\nmax-streams = 8\n')
    with run_server(tiny_folder) as server:
        port = server.port
        done = run_command("rill.serve", "--config", tmp_path / "rill.toml", "--check-config", "--port", port)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "the configuration is valid: models: tiny; provider: CPUExecutionProvider"
    assert str(tmp_path / "rill.toml") in done.stdout
    assert "max-streams" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["--tls-cert", "c.pem"], "--tls-cert and --tls-key go together"),
        (["--auth-token-file", "tokens"], "--auth-token-file tokens does not exist"),
        (["--resume-key-file", "key"], "--resume-key-file key"),
        (["--device", "cuda:9"], "--device cuda:9"),
    ],
    ids=["bundle", "certificate", "tokens", "key", "device"],
)
def test_what_cannot_be_served_is_one_sentence(arguments, said, tiny_folder, run_command):
    done = run_command("rill.serve", tiny_folder, *arguments, "--check-config")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
