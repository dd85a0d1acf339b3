r"""`rill chat`: a text that you and the model write by turns.

    rill chat --model shakespeare --temperature 0.7
    rill chat --load scene.token
    printf '/seed 7\nROMEO:\n\n' | rill chat --max-chars 200

Enter lets the model read what you typed, the newline too, and write on for --max-chars characters or up to a --stop;
Enter alone lets it go on. Esc or Ctrl-C pauses it where it is, Ctrl-D ends. In a line, \n is a newline more, \\ a
backslash, and a \ at the end leaves the newline away: the model goes on in the midst of the line.

    /temp X    /top-p X    /top-k N    /min-p X    /seed N      how characters are chosen from here on
    /save FILE     write this place into a file, as a resume token
    /load FILE     go on from such a file instead
    /fork          go on with another seed; /back returns to this place, and the text as it would have been
    /help          this page        /quit          the end        //...          a line that begins with /

When a server drains or is lost, the text goes on at the next address of --target. Without a terminal, standard input is
read line by line and standard output is what the model writes, nothing else; the exit status is 1 if a line was
refused. What is said about it, and in a terminal too, comes in parentheses on standard error.
"""

import argparse
import asyncio
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from math import log
from pathlib import Path
from typing import Any, Protocol

from rill.cli.chat.conversation import AWAY, Chat
from rill.cli.flags import add_sampling
from rill.cli.security_flags import add_security, security_of
from rill.cli.token_file import read_token, write_token
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.retry import RETRY_SECONDS

READING_SPEED = 60  # characters a second
NUMBERS: dict[str, tuple[str, type]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "seed": ("seed", int),
}
_ESCAPES = {"\\n": "\n", "\\\\": "\\", "\\\n": ""}


class UsageError(ValueError):
    """A line has no meaning; the message is a sentence for the user."""


def add_chat(commands: Any) -> None:
    """Make `chat` one of the commands of `rill`."""
    parser = commands.add_parser(
        "chat",
        help="write a text by turns with a model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    parser.add_argument("--target", default="127.0.0.1:50051", metavar="HOST:PORT[,HOST:PORT…]", help="the server")
    parser.add_argument("--model", default="", help="a served model's name (default: the server's first)")
    parser.add_argument("--load", type=read_token, default=b"", metavar="FILE", help="go on from what /save wrote")
    parser.add_argument("--max-chars", type=_count, default=400, help="of each turn; 0 is endless (default: 400)")
    parser.add_argument(
        "--chars-per-second",
        type=float,
        help=f"pace; 0 is as fast as it comes (default: {READING_SPEED:g} in a terminal, 0 elsewhere)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: the server draws one)")
    add_sampling(parser)
    parser.add_argument(
        "--retry-seconds",
        type=float,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="how long to look for a server when one is lost; 0 is not at all (default: %(default)g)",
    )
    add_security(parser)


def _count(text: str) -> int:
    if not 0 <= int(text) < 2**62:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError and ValueError if it cannot begin."""
    return asyncio.run(_chat(options))


async def _chat(options: argparse.Namespace) -> int:
    turn = {name: getattr(options, name) for name in ("max_chars", "stop", "include_stop", "chars_per_second")}
    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    sampling = {name: getattr(options, name) for name in names} | {"logit_bias": dict(options.logit_bias)}
    talk = Talk()
    if turn["chars_per_second"] is None:
        turn["chars_per_second"] = READING_SPEED if talk.is_terminal else 0
    security = security_of(options)
    async with AsyncClient(options.target, retry_seconds=options.retry_seconds, security=security) as client:
        chat = Chat(client, options.model, turn, options.retry_seconds, talk.say)
        try:
            await chat.begin(options.load, sampling)
            return await talk.run(chat)
        finally:
            await chat.close()


class Reader(Protocol):
    """Where lines come from."""

    async def line(self) -> str | None:
        """The next one; None if there are no more."""

    def watched(self, interrupt: Callable[[], None]) -> AbstractContextManager[object]:
        """While inside, somebody who wants it to stop has `interrupt` called."""


class _Pipe:
    """Standard input that is no terminal. Ctrl-C ends the program."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's waits for the line
        sys.stdin.reconfigure(encoding="utf-8-sig")  # type: ignore[union-attr]

    async def line(self) -> str | None:
        try:
            line = sys.stdin.readline()  # nothing else is to be done meanwhile
        except UnicodeDecodeError:
            raise ValueError("standard input is not UTF-8") from None
        return line.removesuffix("\n") if line else None

    def watched(self, interrupt: Callable[[], None]) -> AbstractContextManager[object]:
        return nullcontext()


class Talk:
    """What is typed, and what is answered to it."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._is_midline = False  # on the screen
        self._model = ""
        self._typed: float | None = None  # bits a character of the line that the model read last

    def say(self, sentence: str) -> None:
        """On a line of its own."""
        self._end_line()
        print(f"({sentence})", file=sys.stderr, flush=True)

    async def run(self, chat: Chat) -> int:
        """Until there are no more lines; returns the exit status."""
        reader = await self._reader(chat)
        status = 0
        while (line := await reader.line()) is not None and line.strip() != "/quit":
            try:
                await self._interruptible(self._answer(chat, line), chat, reader)
            except ServerError as error:
                if error.code in AWAY and not self.is_terminal:
                    raise
                self.say(f"{error} ({error.code.name})")
                status = 1
            except (ValueError, argparse.ArgumentTypeError) as error:
                self.say(str(error))
                status = 1
            self._end_line()
        return 0 if self.is_terminal else status

    async def _reader(self, chat: Chat) -> Reader:
        if not self.is_terminal:
            return _Pipe()
        from rill.cli.chat.terminal import Terminal  # noqa: PLC0415  # other commands need no editor

        self._model = await chat.model_name()
        self.say(f"{self._model}: Enter lets the model go on, Esc pauses it, /help says more, Ctrl-D ends")
        return Terminal(lambda: self._status(chat))

    async def _interruptible(self, answer: Any, chat: Chat, reader: Reader) -> None:
        """To its end, or up to where the user wants no more of it: a turn is paused, all else given up."""
        task = asyncio.create_task(answer)
        given_up = asyncio.Event()

        def interrupt() -> None:
            if not chat.pause():
                given_up.set()

        giving_up = asyncio.create_task(given_up.wait())
        with reader.watched(interrupt):
            await asyncio.wait([task, giving_up], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await chat.close()  # so that nothing waits for a server that does not answer
                task.cancel()
                await asyncio.wait([task])
        giving_up.cancel()
        if given_up.is_set() and (task.cancelled() or task.exception()):
            self.say("given up")
        else:
            task.result()

    async def _answer(self, chat: Chat, line: str) -> None:
        """Do what a line says."""
        if line.startswith("/") and not line.startswith("//"):
            await self._command(chat, *_split(line))
            return
        if text := text_of(line):
            fed = await chat.feed(text)
            self._typed = -fed.logprob / log(2) / fed.chars
        async with aclosing(chat.write()) as pieces:
            async for piece in pieces:
                print(piece, end="", flush=True)
                self._is_midline = not piece.endswith("\n")

    async def _command(self, chat: Chat, name: str, argument: str) -> None:
        match name:
            case _ if name in NUMBERS:
                parameter, kind = NUMBERS[name]
                await chat.update(**{parameter: _number(name, kind, argument)})
            case "save":
                path = _path(name, argument)
                try:
                    write_token(path, await chat.token())
                except OSError as error:
                    raise UsageError(f"cannot write {path}: {error.strerror}") from None
                self.say(f"this place is in {path}")
            case "load":
                await chat.load(read_token(str(_path(name, argument))))
                self.say(f"at character {chat.at.position:,} of that text")
            case "fork":
                count = await chat.fork()
                self.say(f"fork {count}, with seed {chat.at.sampling['seed']}; /back returns to this place")
            case "back" if await chat.back():
                self.say(f"back at: …{chat.at.text[-60:]!r}")
            case "back":
                raise UsageError("there is no fork to come back from")
            case "help":
                print(__doc__, file=sys.stderr, flush=True)
            case _:
                raise UsageError(f"there is no /{name}; /help lists what there is, and // begins a line with /")

    def _end_line(self) -> None:
        if self._is_midline and sys.stdout.isatty():
            print(flush=True)
        self._is_midline = False

    def _status(self, chat: Chat) -> str:
        """For the line below the one that is typed."""
        parts = [self._model, f"{chat.at.position:,} characters"]
        parts += [f"{name} {value}" for name, value in chat.at.sampling.items() if name != "logit_bias"]
        if self._typed is not None:
            parts.append(f"yours: {self._typed:.2f} bits a character")
        return " · ".join(parts)


def text_of(line: str) -> str:
    """What a line lets the model read."""
    line = line[1:] if line.startswith("//") else line
    return re.sub(r"\\(n|\\|\n\Z)", lambda found: _ESCAPES[found[0]], line + "\n") if line else ""


def _split(line: str) -> tuple[str, str]:
    name, _, argument = line[1:].partition(" ")
    return name, argument.strip()


def _number(name: str, kind: type, argument: str) -> float:
    try:
        value: float = kind(argument)
    except ValueError:
        example = 7 if kind is int else 0.7
        raise UsageError(
            f"/{name} needs {'a whole' if kind is int else 'a'} number, as in: /{name} {example}"
        ) from None
    if kind is int and not 0 <= value < (2**64 if name == "seed" else 2**32):
        raise UsageError(f"/{name} must be from 0 to 2^{64 if name == 'seed' else 32} - 1, not {argument}")
    return value


def _path(name: str, argument: str) -> Path:
    if not argument:
        raise UsageError(f"/{name} needs a file, as in: /{name} scene.token")
    return Path(argument).expanduser()
