"""The files of the page at /: all that it asks for is there, with the right types, and nothing else is."""

import re
from urllib.parse import urljoin

import httpx

NAMES = re.compile(r"""(?:src|href)="([^"]+)"|from "([^"]+)"|import "([^"]+)";""")


def test_everything_that_the_page_names_is_there(gateway):
    seen, waiting = {}, [f"{gateway.url}/"]
    with httpx.Client() as client:
        while waiting:
            url = waiting.pop()
            if url in seen:
                continue
            answer = client.get(url)
            assert answer.status_code == 200, url
            seen[url] = answer.headers["content-type"].partition(";")[0]
            names = [next(filter(None, found.groups())) for found in NAMES.finditer(answer.text)]
            waiting += [urljoin(url, name) for name in names]
            assert "unsafe" not in answer.headers["content-security-policy"]
    assert all(url.startswith(gateway.url) for url in seen)
    types = {url.rpartition(".")[2]: kind for url, kind in seen.items() if url.rpartition("/")[2]}
    assert types == {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_nothing_else_is_sent(gateway):
    for path in ("/playground/../__init__.py", "/__init__.py", "/playground/", "/shared", "/standalone/model.js"):
        assert httpx.get(f"{gateway.url}{path}").status_code == 404
