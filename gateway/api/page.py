"""`GET /`: the page in the browser. Its files are read when the gateway starts, and nothing else can be asked for."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import rill.page

FOLDER = Path(rill.page.__file__).parent
TYPES = {  # of files that are sent; those of a system may be wrong, and browsers run no script of another type
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}


def page_routes(folder: Path = FOLDER) -> Iterator[Route]:
    """Yield a route for each file, at the place that it has in the folder, and playground/index.html at /."""
    yield Route("/", _endpoint(folder / "playground" / "index.html"))
    for part in ("playground", "shared"):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.suffix in TYPES and path.name != "index.html":
                yield Route(f"/{path.relative_to(folder).as_posix()}", _endpoint(path))


def _endpoint(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache", "content-type": TYPES[path.suffix]}

    async def file(request: Request) -> Response:
        """Return the file, or that the browser has it."""
        known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
        if tag in known or "*" in known:
            return Response(status_code=304, headers={name: headers[name] for name in ("etag", "cache-control")})
        return Response(content, headers=headers)

    return file
