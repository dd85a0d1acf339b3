"""Check that the texts of a bundle are the same on this machine, however they are generated.

    rill verify bundles/shakespeare bundles/shakespeare-int8
    rill verify --target HOST:PORT,HOST:PORT --model shakespeare

Texts, some with a constraint, are read alone, in a crowd, in messages of other sizes, and resumed from tokens. Two
private servers, with engine rounds of different lengths, serve each bundle. Exit status: 0 all texts are equal, 1
something differs, 2 something could not be verified.
"""

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, replace

import grpc
import grpc.aio

from rill.addresses import split_addresses
from rill.cli.flags import add_source, check_source
from rill.cli.json_output import json_of
from rill.cli.local_server import StartError, local_server
from rill.cli.models import find_generator
from rill.cli.verify.checks import Finding, Json, Subject, VerifyError, findings_of, with_constraints
from rill.client.errors import ServerError
from rill.client.security import Security
from rill.client.security_files import security_of
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

ROUND_MILLISECONDS = (10.0, 0.3)  # of the two servers
ANSWER_SECONDS = 60.0  # at most, for a server's list of models
NO_CONSTRAINTS = "without constraints: the bundle or its server is older than they are"
# gRPC's client would read far ahead of a slow reader.
CHANNEL_OPTIONS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="a bundle folder")
    parser.add_argument("--bundle", action="append", default=[], metavar="FOLDER", help="the same; may be repeated")
    parser.add_argument("--chars", type=_count, default=2000, help="characters of each text (default: 2000)")
    parser.add_argument("--streams", type=_count, default=200, help="streams of the crowd (default: 200)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    add_source(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ValueError."""
    bundles = [*options.bundles, *options.bundle]
    if not bundles and not options.target:
        raise ValueError("give at least one BUNDLE to verify, or --target")
    check_source(options, bundles)
    report: Json = {"ok": True, "models": [], "errors": []}
    for bundle in bundles or [None]:
        try:
            with _servers(bundle, options) as (targets, security):
                asyncio.run(_verify_all(targets, options, security, report))
        except (StartError, VerifyError) as error:
            message = f"{bundle}: {error}" if bundle and bundle not in str(error) else str(error)
            print(f"error: {message}", file=sys.stderr, flush=True)
            report["errors"].append(message)
        except asyncio.CancelledError:  # SIGTERM
            return 143
    has_difference = not all(model["ok"] for model in report["models"])
    report["ok"] = not report["errors"] and not has_difference
    if options.json:
        print(json_of(report))
    return 0 if report["ok"] else 1 if has_difference else 2


@contextmanager
def _servers(bundle: str | None, options: argparse.Namespace) -> Iterator[tuple[list[str], Security]]:
    """Yield each HOST:PORT of --target, or of two servers of the bundle, with one key and different rounds."""
    if bundle is None:
        yield split_addresses(options.target), security_of(options)
        return
    with tempfile.NamedTemporaryFile() as key, ExitStack() as stack:
        key.write(secrets.token_bytes(32))
        key.flush()
        flags = ("--device", options.device or "auto", "--round-milliseconds")
        servers = [local_server(bundle, *flags, str(limit), key=key.name) for limit in ROUND_MILLISECONDS]
        yield [stack.enter_context(server) for server in servers], Security()


async def _verify_all(targets: Sequence[str], options: argparse.Namespace, security: Security, report: Json) -> None:
    """Verify the model on these servers, and add the findings to the report. Raises VerifyError."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    def print_line(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    async with _subjects(targets, options.model, options, security) as subjects:
        if len(subjects) > 1:
            groups = "; ".join(" and ".join(subject.servers) for subject in subjects)
            print_line(f"the servers differ in model or numerics, so they are verified separately: {groups}")
        for subject in subjects:
            report["models"].append(await _verify(subject, print_line))


async def _verify(subject: Subject, print_line: Callable[[str], None]) -> Json:
    """Return one subject's part of the report; each line is printed as soon as it is known. Raises VerifyError."""
    findings, subject = [], await with_constraints(subject)
    if not subject.takes_constraints:
        print_line(f"{subject.info.name}  {subject.info.precision}  {subject.info.model_id[:12]}  {NO_CONSTRAINTS}")
    async for finding in findings_of(subject):
        print_line(_line(subject.info, finding))
        findings.append(asdict(finding) | {"ok": not finding.differences})
    names = ("name", "precision", "model_id", "provider", "numerics")
    return {
        **{name: getattr(subject.info, name) for name in names},
        "targets": list(subject.servers),
        "constraints": subject.takes_constraints,
        "ok": all(finding["ok"] for finding in findings),
        "checks": findings,
    }


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


@asynccontextmanager
async def _subjects(
    targets: Sequence[str], model: str, options: argparse.Namespace, security: Security
) -> AsyncIterator[list[Subject]]:
    """Connect to the model on these servers, and group those with the same model and numerics. Raises VerifyError."""
    async with AsyncExitStack() as stack:
        groups: dict[tuple[str, str], Subject] = {}
        for target in targets:
            channel = await stack.enter_async_context(security.aio_channel(target, CHANNEL_OPTIONS))
            stub = security.stub(channel)
            info = await _info(stub, target, model)
            key = (info.model_id, info.numerics)
            subject = groups.get(key, Subject(info, {}, options.chars, options.streams))
            groups[key] = replace(subject, servers={**subject.servers, target: stub})
        yield list(groups.values())


async def _info(stub: TextGenerationStub, target: str, name: str) -> pb.ModelInfo:
    """Ask `target` for its model of that name, or its first if that is empty. Raises VerifyError."""
    try:
        answer = await stub.ListModels(pb.ListModelsRequest(), timeout=ANSWER_SECONDS)
    except grpc.aio.AioRpcError as error:
        failure = ServerError.from_rpc(error)
        where = "" if target in str(failure) else f"{target}: "
        raise VerifyError(f"{where}{failure} ({failure.code.name})") from None
    try:
        return find_generator(answer, name)
    except ValueError as error:
        raise VerifyError(f"{target}: {error}") from None


def _count(text: str) -> int:
    if not 2 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 2 to 1,000,000, not {text}")
    return int(text)
