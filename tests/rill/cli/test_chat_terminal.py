"""`rill chat` in a terminal: what a person types, and what keys do while the model writes."""

import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager

import pytest
from servers import ROOT, started, wait_until

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal is a Unix thing", allow_module_level=True)
import pty

WHERE = "\x1b[6n"  # a question about the cursor
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # what the editor sends when it begins and when it ends


class Screen(threading.Thread):
    """A terminal with `rill chat` in it. `shown` is all that it received; it reports its cursor position."""

    def __init__(self, target, *arguments):
        super().__init__()
        self.shown = ""
        self._mine, its = pty.openpty()
        termios.tcsetwinsize(its, (24, 100))
        self.modes = termios.tcgetattr(its)
        self._its = its
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "rill", "chat", "--target", target, *map(str, arguments)],
            cwd=ROOT,
            stdin=its,
            stdout=its,
            stderr=its,
            env=os.environ | {"TERM": "xterm"},
            start_new_session=True,
        )
        self.start()

    def run(self):
        raw, answered = b"", 0
        while b"\x00" not in raw:
            raw += os.read(self._mine, 65536)
            self.shown = raw.decode(errors="ignore").replace("\r\n", "\n").replace(WHERE, "")
            asked = raw.count(WHERE.encode())
            os.write(self._mine, b"\x1b[1;1R" * (asked - answered))
            answered = asked

    def type(self, keys):
        os.write(self._mine, keys.encode())

    def turns(self):
        """Return what is between two lines that are typed; the last one may still grow."""
        return [turn.split(PASTE_ON)[0] for turn in self.shown.split(PASTE_OFF)[1:]]

    def prompts(self):
        """Count how often a line could be typed."""
        return self.shown.count(PASTE_ON)

    def wait_for_prompt(self, count):
        wait_until(lambda: self.prompts() >= count)

    def line(self, text):
        """Type a line, and wait for the next prompt; return what was shown between them."""
        count = self.prompts()
        self.type(f"{text}\r")
        self.wait_for_prompt(count + 1)
        return self.turns()[-1]

    def begin(self, text=""):
        """Type a line that lets the model write endlessly, and wait for some text."""
        count = len(self.turns())
        self.type(f"{text}\r")
        wait_until(lambda: len(self.turns()) > count and len(self.turns()[-1]) > 30)

    def press(self, key):
        """Press a key that ends the turn; return the whole turn, without the newline that ends its last line."""
        count = self.prompts()
        self.type(key)
        self.wait_for_prompt(count + 1)
        return self.turns()[-1]

    def give_up(self):
        """Press Ctrl-C until a line can be typed again."""
        count = self.prompts()
        while self.prompts() == count:
            self.type("\x03")
            time.sleep(0.1)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.write(self._its, b"\x00")
        self.join()
        os.close(self._its)
        os.close(self._mine)


@contextmanager
def screen(target, *arguments):
    opened = Screen(target, *arguments)
    try:
        opened.wait_for_prompt(1)
        yield opened
    finally:
        opened.close()


def plain(text):
    """Remove newlines: a turn that ends within a line is shown with one more."""
    return text.replace("\n", "")


def follows(turn, text, position):
    """Check that the turn continues the plain text; return the position after it."""
    assert plain(turn) == text[position : position + len(plain(turn))]
    return position + len(plain(turn))


def test_esc_and_ctrl_c_pause_and_enter_continues(server):
    """The model writes endlessly; the turns that both keys end, and what follows, are one text."""
    flags = ["--seed", 7, "--temperature", 0.9, "--max-chars", 0, "--chars-per-second", 300]
    with screen(server.target, *flags) as chat, server.client() as client:
        assert chat.shown.startswith(
            "(tiny: Enter lets the model continue, Esc pauses it, /help explains more, Ctrl-D ends)\n"
        )
        text = plain("".join(client.generate("\nTo be\n", seed=7, temperature=0.9, max_chars=20_000)))
        chat.begin("To be")
        position = follows(chat.press("\x1b"), text, 0)
        chat.begin()
        position = follows(chat.press("\x03"), text, position)
        chat.begin()
        chat.type("\x1b[A")  # an arrow is not an Esc
        chat.type("/top-k 1\r")  # for the next line
        length = len(chat.turns()[-1])
        wait_until(lambda: len(chat.turns()[-1]) > length + 20)
        prompts, turns = chat.prompts(), len(chat.turns())
        chat.type("\x1b")
        chat.wait_for_prompt(prompts + 2)
        position = follows(chat.turns()[turns - 1], text, position)
        chat.begin()
        chat.process.send_signal(signal.SIGINT)  # as Ctrl-C from elsewhere
        chat.wait_for_prompt(prompts + 3)
        greedy = chat.turns()[-1]
        assert not text.startswith(plain(greedy), position)
        assert "top_k 1" in chat.shown
        assert re.search(r"tiny · [1-9][\d,]* characters · temperature 0.9 · seed 7", chat.shown)
        assert re.search(r"yours: \d+\.\d\d bits a character", chat.shown)
        chat.type("\x04")
        assert chat.process.wait(timeout=20) == 0
        assert termios.tcgetattr(chat._its) == chat.modes


def test_what_is_typed_at_the_prompt(server, tmp_path):
    file = tmp_path / "here.token"
    with screen(server.target, "--seed", 7, "--max-chars", 40, "--chars-per-second", 0) as chat:
        with server.client() as client:
            text = plain("".join(client.generate("\nTo be\n", seed=7, max_chars=80)))
        middle = follows(chat.line("To be"), text, 0)
        chat.type("nonsense\x03")  # Ctrl-C begins the line again
        chat.wait_for_prompt(3)
        assert "character '漢' (U+6F22) at position 0" in chat.line("漢")
        assert chat.line(f"/save {file}") == f"(saved this position to {file})\n"
        assert "fork 1, with seed" in chat.line("/fork")
        assert plain(chat.line("")) not in text
        assert "back at: …" in chat.line("/back")
        second = chat.line("")
        assert follows(second, text, middle) == len(text)
        assert "at character 40 of that text" in chat.line(f"/load {file}")
        assert chat.line("") == second
        assert "there is no /nope" in chat.line("/nope")
        assert "/save FILE     write this position to a file" in chat.line("/help")
        chat.type("/quit\r")
        assert chat.process.wait(timeout=20) == 0


def test_a_server_that_is_killed_and_started_again(tiny_folder, server, tmp_path):
    """While the model writes: one line says so, and the text goes on as it would have."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    flags = ["--seed", 7, "--max-chars", 0, "--chars-per-second", 300]
    with started(tiny_folder, key) as killed:
        opened = Screen(killed.target, *flags)
        opened.wait_for_prompt(1)
        opened.begin("To be")
    try:
        wait_until(lambda: "(interrupted (" in opened.shown)
        with started(tiny_folder, key, killed.port) as again:
            length = len(opened.shown)
            wait_until(lambda: len(opened.shown) > length + 50)
            turn = opened.press("\x1b")
            shown = re.sub(r"\(interrupted \([^\n]*\); trying to continue for up to 30 s\)\n", "", turn)
            assert len(turn) > len(shown) + 50
            more = opened.line("/seed 8")
            assert more == ""
            opened.begin()
            again.process.send_signal(signal.SIGSTOP)
            opened.give_up()  # a server that does not answer
        opened.type("\r")
        wait_until(lambda: opened.shown.count("(interrupted (") == 2)
        opened.give_up()  # one that is not there
        assert opened.shown.count("(given up)") == 2
    finally:
        opened.close()
    with server.client() as client:
        text = plain("".join(client.generate("\nTo be\n", seed=7, max_chars=2 * len(shown))))
    assert follows(shown, text, 0) > 30
