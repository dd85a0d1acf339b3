"""A web server for a folder, as plain as any."""

import functools
import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, more: Mapping[str, str], knows_wasm: bool, directory: str) -> None:
        self.more, self.knows_wasm = more, knows_wasm
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()

    def guess_type(self, path: str) -> str:  # type: ignore[override]
        return "text/plain" if path.endswith(".wasm") and not self.knows_wasm else super().guess_type(path)


@contextmanager
def static_server(folder: Path, headers: Mapping[str, str] = {}, knows_wasm: bool = True) -> Iterator[str]:
    """Serve a folder with these headers; yields its address, which ends with a slash."""
    handler = functools.partial(_Handler, more=headers, knows_wasm=knows_wasm, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
