"""The dashboard's pages: the files that `make dashboard` builds, sent to whoever asks.

Reads `dashboard/dist`; writes nothing. The files hold no data and need no key: the page asks for
one and sends it with every request for data. Names of assets change with their content, so browsers
keep them; the page itself is asked for again. The wall around adds the headers.
"""

import gzip
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import PlainTextResponse, Response

DIST = Path(__file__).with_name("dashboard") / "dist"
PUBLIC = ("/", "/assets/")
NOT_BUILT = "The dashboard is not built here. `make dashboard` builds it (it needs Node 20)."
FOR_EVER = "public, max-age=31536000, immutable"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
WORTH_PACKING = 1000  # bytes; the head of gzip makes shorter files longer
AssetName = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]


def router(folder: Path = DIST) -> APIRouter:
    """Return the routes of the pages, which are no part of the interface's description."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        """Send the page. Where it is not built, say how to build it."""
        file = folder / "index.html"
        if not file.is_file():
            return PlainTextResponse(NOT_BUILT, 404)
        return _sent(file, request, cache="no-cache")

    @routes.api_route("/assets/{name}", methods=["GET", "HEAD"])
    def asset(name: AssetName, request: Request) -> Response:
        """Send one file of the page."""
        file = folder / "assets" / name
        if file.is_symlink() or not file.is_file() or file.suffix not in TYPES:
            raise HTTPException(404, "the dashboard has no such file")
        # A name without a hash in it may get another content with the next version.
        return _sent(file, request, cache=FOR_EVER if "-" in file.stem else "no-cache")

    return routes


def _sent(file: Path, request: Request, *, cache: str) -> Response:
    content = file.read_bytes()
    headers = {"cache-control": cache, "vary": "accept-encoding"}
    takes_gzip = "gzip" in request.headers.get("accept-encoding", "")
    if takes_gzip and len(content) >= WORTH_PACKING:
        content = _packed(content)
        headers["content-encoding"] = "gzip"
    return Response(content, media_type=TYPES[file.suffix], headers=headers)


@lru_cache(maxsize=16)
def _packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
