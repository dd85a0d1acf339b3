r"""Write a text in turns with a model.

    rill chat --bundle bundles/demo
    rill chat --target HOST:PORT --model shakespeare --temperature 0.7
    rill chat --load scene.token
    printf '/seed 7\nROMEO:\n\n' | rill chat --max-chars 200

Enter lets the model read what you typed, with the newline, and continue for --max-chars characters or up to a --stop;
Enter alone lets it continue. Esc or Ctrl-C pauses it, Ctrl-D ends. In a line, \n is a newline, \\ a backslash, and a \
at the end omits the newline: the model continues within the line. With --regex, --choice or --json-schema each answer
matches that: Enter alone continues an answer that is not complete, and otherwise begins another.

    /temp X    /top-p X    /top-k N    /min-p X    /seed N      how characters are chosen from now on
    /regex R       from now on each answer matches this regular expression as a whole; without R, none has to
    /save FILE     write this position to a file, as a resume token
    /load FILE     continue from such a file instead
    /fork          continue with another seed; /back returns to this position, and to the text as it would have been
    /new           begin a new text, with another seed
    /help          this page        /quit          the end        //...          a line that begins with /

When a server drains or is lost, the text continues at the next address of --target. Without a terminal, standard input
is read line by line, and standard output has what the model writes, nothing else; the exit status is 1 if a line was
refused. Remarks are in parentheses on standard error.
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

from rill.cli.chat.conversation import Chat
from rill.cli.files import read_token, token_file, write_token
from rill.cli.flags import Connection, add_connection, add_sampling, add_unconstrained, connected, constraint_of
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.retry import is_away
from rill.texts import text_argument

READING_SPEED = 60  # characters a second
NUMBERS: dict[str, tuple[str, type]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "seed": ("seed", int),
}
HIDDEN = ("logit_bias", "choices", "json_schema", "terminator")  # in the line below the one that is typed
_ESCAPES = {"\\n": "\n", "\\\\": "\\", "\\\n": ""}


class UsageError(ValueError):
    """A line cannot be understood; the message is a sentence for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--load", type=read_token, default=b"", metavar="FILE", help="continue from what /save wrote")
    add_unconstrained(parser, "--load")
    parser.add_argument("--max-chars", type=_count, default=400, help="of each turn; 0 is endless (default: 400)")
    parser.add_argument(
        "--chars-per-second",
        type=float,
        help=f"pace; 0 is as fast as possible (default: {READING_SPEED:g} in a terminal, 0 elsewhere)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: the server draws one)")
    add_sampling(parser)
    add_connection(parser)


def _count(text: str) -> int:
    if not 0 <= int(text) < 2**62:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError and ValueError if it cannot begin."""
    with connected(options) as connection:
        return asyncio.run(_chat(options, connection))


async def _chat(options: argparse.Namespace, connection: Connection) -> int:
    turn = {name: getattr(options, name) for name in ("max_chars", "stop", "include_stop", "chars_per_second")}
    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    sampling = {name: getattr(options, name) for name in names} | {"logit_bias": dict(options.logit_bias)}
    sampling |= constraint_of(options)
    loop = ChatLoop()
    if turn["chars_per_second"] is None:
        turn["chars_per_second"] = READING_SPEED if loop.is_terminal else 0
    async with AsyncClient(**connection._asdict()) as client:
        chat = Chat(client, options.model, turn, connection.retry_seconds, loop.report)
        try:
            await chat.begin(options.load, sampling)
            return await loop.run(chat)
        finally:
            await chat.close()


class Reader(Protocol):
    """Where lines come from."""

    async def line(self) -> str | None:
        """Return the next line; None if there are no more."""

    def watched(self, interrupt: Callable[[], None]) -> AbstractContextManager[object]:
        """Call `interrupt` when the user wants to stop what happens inside the context."""


class _Pipe:
    """Standard input that is not a terminal. Ctrl-C ends the program."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait for the line
        # Python on Unix would keep the line ends of files from Windows.
        sys.stdin.reconfigure(encoding="utf-8-sig", newline=None)  # type: ignore[union-attr]

    async def line(self) -> str | None:
        try:
            line = sys.stdin.readline()  # nothing else is to be done until then
        except UnicodeDecodeError:
            raise ValueError("standard input is not UTF-8") from None
        return line.removesuffix("\n") if line else None

    def watched(self, interrupt: Callable[[], None]) -> AbstractContextManager[object]:
        return nullcontext()


class ChatLoop:
    """Read lines, and do what they say."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._is_midline = False  # on the screen
        self._model = ""
        self._typed: float | None = None  # bits a character of the line that the model read last
        self._has_newline = True  # in the model's vocabulary

    def report(self, sentence: str) -> None:
        """Print a sentence on a line of its own."""
        self._end_line()
        print(f"({sentence})", file=sys.stderr, flush=True)

    async def run(self, chat: Chat) -> int:
        """Read until there are no more lines; returns the exit status."""
        reader = await self._reader(chat)
        self._look_for_newline(chat)
        status = 0
        while (line := await reader.line()) is not None and line.strip() != "/quit":
            try:
                await self._interruptible(self._answer(chat, line), chat, reader)
            except ServerError as error:
                if is_away(error) and not self.is_terminal:
                    raise
                self.report(f"{error} ({error.code.name})")
                status = 1
            except (ValueError, argparse.ArgumentTypeError) as error:
                self.report(str(error))
                status = 1
            self._end_line()
        return 0 if self.is_terminal else status

    async def _reader(self, chat: Chat) -> Reader:
        if not self.is_terminal:
            return _Pipe()
        from rill.cli.chat.terminal import Terminal  # noqa: PLC0415  # other commands need no editor

        self._model = chat.info.name or chat.info.model_id[:12]
        self.report(f"{self._model}: Enter lets the model continue, Esc pauses it, /help explains more, Ctrl-D ends")
        return Terminal(lambda: self._status(chat))

    async def _interruptible(self, answer: Any, chat: Chat, reader: Reader) -> None:
        """Await an answer until the user interrupts it: a turn is paused, anything else is given up."""
        task = asyncio.create_task(answer)
        given_up = asyncio.Event()

        def interrupt() -> None:
            if not chat.pause():
                given_up.set()

        giving_up = asyncio.create_task(given_up.wait())
        with reader.watched(interrupt):
            await asyncio.wait([task, giving_up], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await chat.close()  # nothing may wait for a server that does not answer
                task.cancel()
                await asyncio.wait([task])
        giving_up.cancel()
        if given_up.is_set() and (task.cancelled() or task.exception()):
            self.report("given up")
        else:
            task.result()

    async def _answer(self, chat: Chat, line: str) -> None:
        """Do what a line says."""
        line = text_argument(line)
        if line.startswith("/") and not line.startswith("//"):
            await self._command(chat, *_split(line))
            return
        if text := text_of(line, self._has_newline):
            fed = await chat.feed(text)
            self._typed = -fed.logprob / log(2) / fed.chars
        async with aclosing(chat.write()) as pieces:
            async for piece in pieces:
                print(piece, end="", flush=True)
                self._is_midline = not piece.endswith("\n")
        if chat.has_ended:
            self.report("the text ends here: /new begins another, /fork tries another seed")
        elif chat.matches is False:
            self.report("the answer does not match yet" + ("" if chat.at.is_answered else ": Enter continues it"))
        elif chat.matches and not chat.constraint:
            self.report("the text is complete by the constraint of its token: /regex alone removes that")

    async def _command(self, chat: Chat, name: str, argument: str) -> None:
        match name:
            case _ if name in NUMBERS:
                parameter, kind = NUMBERS[name]
                await chat.update(**{parameter: _number(name, kind, argument)})
            case "regex":
                await chat.update(**({"regex": argument} if argument else {"unconstrained": True}))
            case "save":
                path = token_file(str(_path(name, argument)))
                try:
                    write_token(path, await chat.token())
                except OSError as error:
                    raise UsageError(f"cannot write {path}: {error.strerror}") from None
                self.report(f"saved this position to {path}")
            case "load":
                await chat.load(read_token(str(_path(name, argument))))
                self.report(f"at character {chat.at.position:,} of that text")
                self._look_for_newline(chat)
            case "fork":
                count = await chat.fork()
                self.report(f"fork {count}, with seed {chat.at.sampling['seed']}; /back returns to this position")
            case "back" if await chat.back():
                self.report(f"back at: …{chat.at.text[-60:]!r}")
            case "back":
                raise UsageError("there is no fork to return from")
            case "new":
                self.report(f"a new text, with seed {await chat.begin_again()}")
            case "help":
                print(__doc__, file=sys.stderr, flush=True)
            case _:
                raise UsageError(f"there is no /{name}; /help lists the commands, and // begins a line with /")

    def _look_for_newline(self, chat: Chat) -> None:
        """Find out whether lines are read with their newlines."""
        symbols, special = chat.info.vocabulary, (chat.info.start_symbol, *chat.info.end_symbols)
        has_newline = not symbols or ("\n" in symbols and "\n" not in special)
        if self._has_newline and not has_newline:
            self.report("the model has no newline: it reads lines without theirs")
        self._has_newline = has_newline

    def _end_line(self) -> None:
        if self._is_midline and sys.stdout.isatty():
            print(flush=True)
        self._is_midline = False

    def _status(self, chat: Chat) -> str:
        """Describe the chat, for the line below the one that is typed."""
        parts = [self._model, f"{chat.at.position:,} characters"]
        parts += [f"{name} {value}" for name, value in chat.at.sampling.items() if name not in HIDDEN]
        if self._typed is not None:
            parts.append(f"yours: {self._typed:.2f} bits a character")
        return " · ".join(parts)


def text_of(line: str, has_newline: bool = True) -> str:
    """Return the text that a line lets the model read, with its newline if the model has one."""
    line = line[1:] if line.startswith("//") else line
    if not has_newline:
        return re.sub(r"\\(n|\\|\Z)", lambda found: _ESCAPES.get(found[0], ""), line)
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
