"""The options of a server from flags, environment and file: precedence, and what is refused."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import fields

import pytest
from servers import run_server

from rill.serve.config import ServerConfig, options_of


@pytest.fixture
def read(tmp_path, monkeypatch, capsys):
    """Read options from flags, the environment and a file; returns the error message instead if there is one."""
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
            usage, message = capsys.readouterr().err.splitlines()
            assert usage.startswith("usage: rill serve ")
            return message

    return options


def test_the_defaults(read):
    options = read("b")
    assert options.config == ServerConfig(bundles=["b"], resume_key_file=[], http_allowed_host=[], http_cors=[])
    assert not options.check


def test_flags_come_before_the_environment_and_that_before_the_file(read):
    file = 'max-streams = 3\nmax-waiting = 3\nmax-chars = 3\nhost = "::1"\n'
    config = read("b", "--max-streams", 1, file=file, max_streams="2", max_waiting="2").config
    assert (config.max_streams, config.max_waiting, config.max_chars, config.host) == (1, 2, 3, "::1")


def test_every_kind_of_value_can_stand_in_a_file(read):
    file = """
        bundle = ["b", "c"]  # after those on the command line
        no-reflection = true
        no-access-log = false
        resume-key-file = ["new", "old"]
        resume-ttl = 60
        round-milliseconds = 2.5
        tls-cert = "a file.pem"
    """
    config = read("a", file=file).config
    assert list(config.bundles) == ["a", "b", "c"]
    assert (config.reflection, config.access_log) == (False, True)
    assert list(config.resume_key_file) == ["new", "old"]
    assert (config.resume_ttl, config.round_seconds, config.tls_cert) == (60, 0.0025, "a file.pem")


def test_every_kind_of_value_can_stand_in_the_environment(read):
    config = read(bundle="[a, b]", no_reflection="true", resume_key_file="[new, old]", drain_seconds="1.5").config
    assert list(config.bundles) == ["a", "b"]
    assert not config.reflection
    assert list(config.resume_key_file) == ["new", "old"]
    assert config.drain_seconds == 1.5


def test_the_file_may_come_from_windows(read):
    assert read("b", file="\ufeffport = 7\r\nmax-streams = 8\r\n").config.port == 7


def test_the_file_may_be_named_in_the_environment(read, tmp_path):
    (tmp_path / "other.toml").write_text("port = 7\n")
    assert read("b", config=str(tmp_path / "other.toml")).config.port == 7


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"file": "max-strems = 3"}, "--max-strems"),
        ({"file": 'max-streams = "many"'}, "argument --max-streams: invalid int value: 'many'"),
        ({"file": "max-streams = 0"}, "--max-streams must be from 1 to 1000000, not 0"),
        ({"file": "[serve]\nport = 1"}, "serve is not a string, a number"),
        ({"file": "port 1"}, "not valid TOML"),
        ({"file": "no-reflection = 'perhaps'"}, "no-reflection"),
        ({"max_strems": "3"}, "RILL_SERVE_MAX_STREMS does not name an option; did you mean RILL_SERVE_MAX_STREAMS?"),
        ({"prot": "tcp://10.0.0.1:1"}, "RILL_SERVE_PROT does not name an option; did you mean RILL_SERVE_PORT?"),
        ({"port": "many"}, "argument --port: invalid int value: 'many'"),
        ({"service_host": "a name"}, "RILL_SERVE_SERVICE_HOST does not name an option"),
        ({"max_streams": "0"}, "--max-streams must be from 1"),
        ({"stall_seconds": "nan"}, "--stall-seconds must be a finite number"),
        ({"config": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_invalid_options_are_named(read, how, message):
    assert message in read("b", **how)


@pytest.mark.parametrize("service", ["", "GRPC_", "METRICS_", "HOST_", "A_PORT_"])
@pytest.mark.parametrize("address", ["10.96.12.7", "fd00::1"])
def test_the_addresses_of_services_are_no_options(read, service, address):
    """As Kubernetes sets them in each program of a namespace for services named rill-serve, rill-serve-metrics, …"""
    links = {
        "service_host": address,
        "service_port": "50051",
        "service_port_grpc": "50051",
        "port": f"tcp://{address}:50051",
        "port_50051_tcp": f"tcp://{address}:50051",
        "port_50051_tcp_proto": "tcp",
        "port_50051_tcp_port": "50051",
        "port_50051_tcp_addr": address,
        "port_53_udp": f"udp://{address}:53",
        "name": "/web/rill-serve",
    }
    options = read("b", max_streams="7", **{f"{service}{name}": value for name, value in links.items()})
    assert (options.config.port, options.config.metrics_port, options.config.max_streams) == (50051, None, 7)


@pytest.mark.parametrize("asked", ["flag", "joined flag", "environment", "file"])
def test_errors_are_json_where_json_is_asked_for(asked, tmp_path, monkeypatch, capsys):
    (tmp_path / "rill.toml").write_text('log-format = "json"\n')
    flags = {
        "flag": ["--log-format", "json"],
        "joined flag": ["--log-format=json"],
        "file": ["--config", str(tmp_path / "rill.toml")],
    }.get(asked, [])
    if asked == "environment":
        monkeypatch.setenv("RILL_SERVE_LOG_FORMAT", "json")
    with pytest.raises(SystemExit, match="2"):
        options_of(["b", "--max-strems=3", *flags], None)
    output, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    error = json.loads(line)
    assert output == ""
    assert error.keys() == {"time", "level", "message"}
    assert error["level"] == "error"
    assert error["message"] == "unrecognized arguments: --max-strems=3; did you mean --max-streams?"


def test_every_line_of_a_server_that_does_not_start_is_json(tiny_folder, run_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments in (["nowhere"], [tiny_folder, "--port", port], [tiny_folder, "--port", port, "--engines", 2]):
            done = run_command("rill.serve", *arguments, "--log-format", "json")
            assert done.returncode == 2
            *_, last = [json.loads(line) for line in done.stderr.splitlines()]
            assert last["level"] == "error"


def test_nothing_to_serve_is_an_error(read):
    assert "give at least one BUNDLE" in read("--port", 1)


def test_help_is_quick_and_complete():
    """It loads neither gRPC nor a model runtime. Seconds are of the processor: the machine may be busy."""
    program = """
import resource, sys
from rill.serve.command import main
try:
    main(["--help"])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, *{"grpc", "numpy", "onnxruntime", "prometheus_client"} & set(sys.modules))
"""
    command = [sys.executable, "-c", program]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert min(float(output.splitlines()[-1]) for output in outputs) <= 0.5  # no module follows the number
    flags = re.findall(r"^  --(\S+)", outputs[0], re.MULTILINE)
    options = {option.name.replace("_", "-") for option in fields(ServerConfig)} - {"bundles"}
    assert {flag.removeprefix("no-") for flag in flags} == options | {"bundle", "config", "check-config"}


# --check-config


def test_a_valid_configuration_is_reported_without_listening(tiny_folder, tmp_path, run_command):
    """The port may be in use: usually a server is running when one checks a new configuration."""
    (tmp_path / "rill.toml").write_text(f'bundle = ["{tiny_folder}"]\nmax-streams = 8\n')
    with run_server(tiny_folder) as server:
        port = server.port
        done = run_command("rill.serve", "--config", tmp_path / "rill.toml", "--check-config", "--port", port)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "the configuration is valid: models: tiny; provider: CPUExecutionProvider"
    assert str(tmp_path / "rill.toml") in done.stdout
    assert "max-streams" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["--tls-cert", "c.pem"], "--tls-cert and --tls-key go together"),
        (["--auth-token-file", "tokens"], "--auth-token-file tokens does not exist"),
        (["--resume-key-file", "key"], "--resume-key-file key"),
        (["--device", "cuda:9"], "--device cuda:9"),
    ],
    ids=["bundle", "certificate", "tokens", "key", "device"],
)
def test_a_fault_is_one_sentence(arguments, message, tiny_folder, run_command):
    done = run_command("rill.serve", tiny_folder, *arguments, "--check-config")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
