"""Find unusual lines in the log of a real web server.

    python examples/log_anomalies.py anomalies/

Serves a folder with the standard library's http.server and asks it for pages, so that it writes a log. A small model
learns the lines of ordinary requests by heart (`rill train --lines`); then each line of a log with a few attacks in it
is scored (`rill score --per-line`): unusual lines take more bits a symbol. Prints the most unusual lines and the AUC,
the probability that an attack has more bits than an ordinary line. Takes about a minute. Needs
`pip install 'rill-text[serve-cpu,train-cpu]'`.
"""

import http.client
import json
import random
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = ["index.html", "about.html", "style.css", "blog/2026/first.html", "blog/2026/second.html", "img/logo.png"]
ATTACKS = [
    "/../../etc/passwd",
    "/index.php?id=1%27%20OR%20%271%27=%271",
    "/cgi-bin/.%2e/.%2e/bin/sh",
    "/wp-login.php",
    "/.git/config",
    "/about.html?q=%3Cscript%3Ealert(1)%3C/script%3E",
    "/img/..%2f..%2fsecret.png",
    "/shell?cd+/tmp;rm+-rf+*;wget+evil",
]


def log_of(folder: Path, requests: list[tuple[str, str]]) -> list[str]:
    """Serve `folder` while a client makes `requests`, methods and targets; return the server's log, a line for each."""
    lines: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            lines.append(f"{self.address_string()} {format % values}")

        def log_error(self, format: str, *values: object) -> None:  # the request has a line of its own
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for method, target in requests:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.putrequest(method, target, skip_host=False)
            connection.endheaders()
            connection.getresponse().read()
            connection.close()
    finally:
        server.shutdown()
        server.server_close()
    return lines


def ordinary(count: int, seed: int) -> list[tuple[str, str]]:
    """Requests as visitors make them: a missing page now and then."""
    drawn = random.Random(seed)
    targets = ["/", *(f"/{page}" for page in PAGES), "/favicon.ico"]
    return [("HEAD" if drawn.random() < 0.05 else "GET", drawn.choice(targets)) for _ in range(count)]


def rill(*arguments: object) -> str:
    """Run a command of Rill; return what it printed."""
    command = [sys.executable, "-P", "-m", "rill", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def auc(higher: list[float], lower: list[float]) -> float:
    """The share of pairs in which the first has more; of equal ones a half."""
    wins = sum((one > other) + (one == other) / 2 for one in higher for other in lower)
    return wins / (len(higher) * len(lower))


def main(name: str = "anomalies") -> None:
    """Make both logs, train, export, score, and rank."""
    folder = Path(name)
    site = folder / "site"
    for page in PAGES:
        (site / page).parent.mkdir(parents=True, exist_ok=True)
        (site / page).write_text("A page.\n")
    (folder / "ordinary.log").write_text("\n".join(log_of(site, ordinary(1500, seed=0))) + "\n")
    attacks = [("GET", target) for target in ATTACKS]
    requests = ordinary(300, seed=1)
    for number, attack in enumerate(attacks):
        requests.insert(35 * (number + 1), attack)
    (folder / "mixed.log").write_text("\n".join(log_of(site, requests)) + "\n")

    run = folder / "run"
    learning = ("--lines", "--min-count", 2, "--hidden", 64, "--steps", 400)
    rill("train", "--corpus", folder / "ordinary.log", *learning, "--out", run)
    rill("export", run, "--out", folder / "bundles", "--force")
    scored = rill("score", "--per-line", "--json", "--bundle", folder / "bundles" / "run", folder / "mixed.log")

    lines = [json.loads(line) for line in scored.splitlines()]
    bits = [line["bits_per_symbol"] for line in lines]
    are_attacks = [request in attacks for request in requests]
    for bit, line in sorted(zip(bits, (line["text"] for line in lines), strict=True), reverse=True)[:10]:
        print(f"{bit:6.3f} bits a symbol   {line}")
    of_attacks, of_others = (
        [bit for bit, attack in zip(bits, are_attacks, strict=True) if attack is wanted] for wanted in (True, False)
    )
    print(f"AUC {auc(of_attacks, of_others):.4f}: {len(attacks)} attacks among {len(lines)} lines")


if __name__ == "__main__":
    main(*sys.argv[1:])
