"""`rill verify`: are the texts of a bundle the same on this machine, however they come about (`checks`)?

    rill verify bundles/shakespeare bundles/shakespeare-int8
    rill verify --target HOST:PORT,HOST:PORT --model shakespeare

Two processes serve each bundle, with rounds of different lengths. Exit status: 0 all texts are equal, 1 something
differs, 2 something could not be verified.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import grpc
import grpc.aio

from rill.cli.security_flags import add_security, security_of
from rill.cli.verify.checks import Finding, Json, Subject, VerifyError, findings_of
from rill.client.security import Security
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

ROUND_MILLISECONDS = (10.0, 0.3)  # of the two servers
START_SECONDS = 60.0  # at most, until a server listens
# gRPC's client would read far ahead of a slow reader.
CHANNEL_OPTIONS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]


def _line(info: pb.ModelInfo, finding: Finding) -> str:
    verdict = f"ok   {finding.seconds:.1f} s"
    if finding.differences:
        more = f" (and {len(finding.differences) - 1} more)" * (len(finding.differences) > 1)
        verdict = f"DIFFERS: {finding.differences[0]}{more}   {finding.seconds:.1f} s"
    logprobs = f", log-probabilities within {finding.logprob_difference:.1g}" * (finding.logprob_difference > 0)
    return (
        f"{info.name}  {info.precision}  {info.model_id[:12]}  {info.numerics}  {finding.check:7}  "
        f"{finding.texts:,} texts, {finding.characters:,} characters{logprobs}: {verdict}"
    )


async def _verify(subject: Subject, say: Callable[[str], None]) -> Json:
    """One subject's part of the report; each line is said as soon as it is known. Raises VerifyError."""
    findings = []
    async for finding in findings_of(subject):
        say(_line(subject.info, finding))
        findings.append(asdict(finding) | {"ok": not finding.differences})
    names = ("name", "precision", "model_id", "provider", "numerics")
    return {
        **{name: getattr(subject.info, name) for name in names},
        "targets": list(subject.servers),
        "ok": all(finding["ok"] for finding in findings),
        "checks": findings,
    }


@asynccontextmanager
async def _subjects(
    targets: Sequence[str], model: str, options: argparse.Namespace, security: Security
) -> AsyncIterator[list[Subject]]:
    """The model on these servers: those with the same model and numerics together. Raises VerifyError."""
    async with AsyncExitStack() as stack:
        together: dict[tuple[str, str], Subject] = {}
        for target in targets:
            channel = await stack.enter_async_context(security.aio_channel(target, CHANNEL_OPTIONS))
            stub = security.stub(channel)
            info = await _info(stub, target, model)
            key = (info.model_id, info.numerics)
            subject = together.get(key, Subject(info, {}, options.chars, options.streams))
            together[key] = replace(subject, servers={**subject.servers, target: stub})
        yield list(together.values())


async def _info(stub: TextGenerationStub, target: str, name: str) -> pb.ModelInfo:
    """What `target` says of its model of that name; of its first if that is empty. Raises VerifyError."""
    try:
        answer = await stub.ListModels(pb.ListModelsRequest(), timeout=START_SECONDS)
    except grpc.aio.AioRpcError as error:
        raise VerifyError(f"{target}: {error.details()} ({error.code().name})") from None
    info: pb.ModelInfo
    for info in answer.models:
        if name in ("", info.name):
            if not info.streamable:
                raise VerifyError(f"{info.name} tags or is bidirectional: it makes no texts that could be compared")
            return info
    raise VerifyError(f"{target} serves no model {name!r}, but {', '.join(info.name for info in answer.models)}")


@asynccontextmanager
async def _own_servers(bundle: str, device: str) -> AsyncIterator[list[str]]:
    """HOST:PORT of two servers of the bundle, one key, rounds of different lengths. Raises VerifyError."""
    with tempfile.NamedTemporaryFile() as key:
        key.write(secrets.token_bytes(32))
        key.flush()
        arguments = [bundle, "--port", "0", "--device", device, "--resume-key-file", key.name]
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(_own_server(*arguments, "--round-milliseconds", str(milliseconds)))
                for milliseconds in ROUND_MILLISECONDS
            ]


@asynccontextmanager
async def _own_server(*arguments: str) -> AsyncIterator[str]:
    """HOST:PORT of a server process, which ends with the context, whatever happens. Raises VerifyError."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rill.serve", *arguments), stdout=asyncio.subprocess.PIPE, stderr=log
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode()
            if not line.startswith("rill: listening on "):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines() or ["the server did not start"]
                raise VerifyError(said[-1].removeprefix("error: "))
            yield line.split()[3]
        except TimeoutError:
            raise VerifyError(f"the server did not listen within {START_SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:
                # Nobody else uses it: nothing to drain. (`process.kill` would take its exit status from asyncio.)
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            await process.wait()


async def _report(options: argparse.Namespace, say: Callable[[str], None]) -> Json:
    """Everything, one bundle after the other; what cannot be verified is an error in it, and does not stop the rest."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    report: Json = {"ok": True, "models": [], "errors": []}
    for bundle in options.bundles or [None]:
        try:
            async with AsyncExitStack() as stack:
                if bundle is None:
                    security = security_of(options)
                    targets = [target.strip() for target in options.target.split(",")]
                else:
                    security = Security()
                    targets = await stack.enter_async_context(_own_servers(bundle, options.device))
                subjects = await stack.enter_async_context(_subjects(targets, options.model, options, security))
                if len(subjects) > 1:
                    each = "; ".join(" and ".join(subject.servers) for subject in subjects)
                    say(f"the servers have other models or numerics, so other texts; each by itself: {each}")
                for subject in subjects:
                    report["models"].append(await _verify(subject, say))
        except VerifyError as error:
            message = f"{bundle}: {error}" if bundle and bundle not in str(error) else str(error)
            print(f"error: {message}", file=sys.stderr, flush=True)
            report["errors"].append(message)
    report["ok"] = not report["errors"] and all(model["ok"] for model in report["models"])
    return report


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if bool(options.bundles) == bool(options.target):
        raise ValueError("verify takes either bundles or --target")
    if options.model and options.bundles:
        raise ValueError("--model goes with --target")
    say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    try:
        report = asyncio.run(_report(options, say))
    except asyncio.CancelledError:  # SIGTERM
        return 143
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    return 0 if report["ok"] else 1 if not all(model["ok"] for model in report["models"]) else 2


def add_verify(commands: Any) -> None:
    """Make `verify` one of the commands of `rill`."""
    parser = commands.add_parser(
        "verify",
        help="check that a bundle's texts are the same alone, in a crowd, chunked and resumed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="a bundle folder, served here for the purpose")
    parser.add_argument("--target", metavar="HOST:PORT[,HOST:PORT…]", help="running servers, instead of bundles")
    parser.add_argument("--model", default="", help="with --target: a served model's name (default: the first)")
    parser.add_argument("--device", default="auto", help="of the servers: auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--chars", type=_count, default=2000, help="characters of each text (default: 2000)")
    parser.add_argument("--streams", type=_count, default=200, help="streams of the crowd (default: 200)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    add_security(parser)


def _count(text: str) -> int:
    if not 2 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 2 to 1,000,000, not {text}")
    return int(text)
