"""`GET /`: the page in the browser. Its files are read when the gateway starts, and nothing else can be asked for."""

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import rill.page

FOLDER = Path(rill.page.__file__).parent
TYPES = {  # those of a system may be wrong, and browsers run no script of another type
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}


def page_routes(folder: Path = FOLDER) -> Iterator[Route]:
    """Yield a route for each file: those of `playground` at /, index.html without its name too, `shared` at /shared."""
    for part, prefix in (("playground", "/"), ("shared", "/shared/")):
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder / part).as_posix()
            if not path.is_file() or path.name.startswith((".", "__")) or path.suffix == ".py":
                continue
            if prefix + name == "/index.html":
                yield Route("/", _endpoint(path))
            yield Route(prefix + name, _endpoint(path))


def _endpoint(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()
    kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache", "content-type": kind}

    async def file(request: Request) -> Response:
        """Return the file, or that the browser has it."""
        known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
        if tag in known or "*" in known:
            return Response(status_code=304, headers={name: headers[name] for name in ("etag", "cache-control")})
        return Response(content, headers=headers)

    return file
