"""/v1/checkpoints: every checkpoint by its id, its manifest, files, card and lineage."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response

from agent_forge import checkpoint
from agent_forge.core.errors import CheckpointError
from agent_forge.server.answers import (
    CheckpointAnswer,
    FileAnswer,
    Identity,
    LineageAnswer,
    errors,
)
from agent_forge.server.checkpoints import Entry
from agent_forge.server.reading import forwarded
from agent_forge.server.records import without_paths
from agent_forge.server.routes.phases import without_assigned
from agent_forge.server.security.authentication import needs
from agent_forge.server.service import CONTROL, Service

READ, MODELS = [Depends(needs("read"))], [Depends(needs("models"))]
FileName = Annotated[str, PathParameter(max_length=300)]
BYTES: dict[str, Any] = {"content": {"application/octet-stream": {}}, "description": "The file."}
CARD: dict[str, Any] = {"content": {"text/markdown": {}}, "description": "The card."}
PART: dict[str, Any] = {
    "content": {"application/octet-stream": {}, "multipart/byteranges": {}},
    "description": "The bytes that `Range` names.",
}


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/checkpoints", tags=["checkpoints"])
    _add_list(routes, service)
    _add_files(routes, service)
    _add_words(routes, service)
    return routes


def _opened(service: Service, checkpoint_id: str) -> checkpoint.Checkpoint:
    path = service.registry.path_of(service.checkpoint_id(checkpoint_id))
    return checkpoint.open(path, verify=False)


def _add_list(routes: APIRouter, service: Service) -> None:
    """Add the routes of all checkpoints at once, and of one as a whole."""
    registry = service.registry

    @routes.get("", dependencies=READ, responses=errors(), summary="List checkpoints")
    def list_checkpoints(
        phase: Annotated[str | None, Query(max_length=100)] = None,
        status: Annotated[str | None, Query(max_length=20)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    ) -> list[CheckpointAnswer]:
        """List checkpoints, newest first, the damaged and missing ones too."""
        entries = [
            one for one in reversed(registry.list())
            if (phase is None or one.phase == phase) and (status is None or one.status == status)
        ]  # fmt: skip
        return [answer_of(one) for one in entries[offset : offset + limit]]

    @routes.get("/{checkpoint_id}", dependencies=READ, responses=errors(404), summary="One")
    def get(checkpoint_id: Identity) -> CheckpointAnswer:
        """Return a checkpoint; the reserved id of a model that is being made is one, too."""
        return answer_of(registry.get(service.checkpoint_id(checkpoint_id)))

    @routes.get(
        "/{checkpoint_id}/lineage", dependencies=READ, responses=errors(404), summary="Lineage"
    )
    def lineage(checkpoint_id: Identity) -> LineageAnswer:
        """Return the checkpoint with all ancestors and descendants that are known."""
        known = {one.id: one for one in registry.list()}
        start = service.checkpoint_id(checkpoint_id)
        if start not in known:
            raise CheckpointError(f"no checkpoint '{checkpoint_id}'")
        return _lineage(known, start)


def _add_files(routes: APIRouter, service: Service) -> None:
    """Add the routes of a checkpoint's files: listed, sent, and verified."""

    @routes.get(
        "/{checkpoint_id}/files", dependencies=READ, responses=errors(404), summary="List files"
    )
    def files(checkpoint_id: Identity) -> list[FileAnswer]:
        """List the files as they lie on the disk, encrypted ones too, with sizes and SHA-256."""
        listed = _opened(service, checkpoint_id).manifest.stored_files
        return [FileAnswer(name=name, **entry) for name, entry in listed.items()]

    @routes.get(
        "/{checkpoint_id}/files/{name:path}", dependencies=MODELS, summary="Download a file",
        response_class=FileResponse, responses={**errors(404, 416), 200: BYTES, 206: PART},
    )  # fmt: skip
    def download(checkpoint_id: Identity, name: FileName) -> FileResponse:
        """Send a file, or the part that `Range` names, so that a download can go on.

        Of an encrypted checkpoint the encrypted file: nothing is decrypted here.
        """
        source = _opened(service, checkpoint_id)
        entry = source.manifest.stored_files.get(name)
        file = whole_file(source.stored, name) if entry is not None else None
        if entry is None or file is None:
            raise HTTPException(404, "the checkpoint has no such file; see its list of files")
        return FileResponse(
            file, media_type="application/octet-stream", filename=file.name,
            headers={"x-sha256": entry["sha256"]},
        )  # fmt: skip

    @routes.post(
        "/{checkpoint_id}/verify", response_model=CheckpointAnswer, dependencies=READ,
        responses=errors(404, 507), summary="Verify every file",
    )  # fmt: skip
    def verify(checkpoint_id: Identity, shown: Request) -> Any:
        """Read every file of every copy and compare its SHA-256."""
        if CONTROL not in service.parts:
            path = f"/v1/checkpoints/{checkpoint_id}/verify"
            return forwarded(service.control, path, None, shown)
        return answer_of(service.registry.verify(service.checkpoint_id(checkpoint_id)))


def _add_words(routes: APIRouter, service: Service) -> None:
    """Add the routes of what a checkpoint says of itself: its manifest and its card."""
    registry = service.registry

    @routes.get(
        "/{checkpoint_id}/manifest", dependencies=READ, responses=errors(404), summary="Manifest"
    )
    def manifest(checkpoint_id: Identity) -> dict[str, Any]:
        """Return the manifest: settings, seed, parents, metrics, versions, hashes; no directory."""
        content = asdict(_opened(service, checkpoint_id).manifest)
        content["config"] = without_assigned(content["config"])
        content["parents"] = [
            {key: value for key, value in parent.items() if key != "path"}
            for parent in content["parents"]
        ]
        del content["host"]
        shown: dict[str, Any] = json.loads(without_paths(json.dumps(content), registry))
        return shown

    @routes.get(
        "/{checkpoint_id}/card", dependencies=READ, responses={**errors(404, 409), 200: CARD},
        summary="Model card", response_class=Response,
    )  # fmt: skip
    def card(checkpoint_id: Identity) -> Response:
        """Return the model card in Markdown."""
        from agent_forge.export import Exported
        from agent_forge.export import card as cards

        source = _opened(service, checkpoint_id)
        if source.manifest.encryption:
            raise HTTPException(409, "the checkpoint is encrypted; decrypt it to read its card")
        plain = Exported("hf", source.manifest.phase, files=[], size_bytes=0, lines=[])
        text = cards.text(source.path, source.path.name, plain)
        return Response(without_paths(text, registry), media_type="text/markdown")


def answer_of(entry: Entry) -> CheckpointAnswer:
    """Return what a client may see of a checkpoint."""
    return CheckpointAnswer(
        **{name: getattr(entry, name) for name in CheckpointAnswer.model_fields}
    )


def whole_file(folder: Path, name: str) -> Path | None:
    """Return a file of a folder by a name that was listed; None for a link and for what leads out.

    A manifest is a file that somebody else may have written, so its names are not trusted either.
    """
    root = folder.resolve()
    file = root / name
    is_inside = file.resolve() == file and file.is_relative_to(root)
    return file if is_inside and file.is_file() else None


def _lineage(known: dict[str, Entry], start: str) -> LineageAnswer:
    edges = {(parent, one.id) for one in known.values() for parent in one.parents}
    reached = {start}
    for direction in (0, 1):  # parents of parents, then children of children
        waiting = [start]
        while waiting:
            here = waiting.pop()
            next_ones = {edge[direction] for edge in edges if edge[1 - direction] == here} - reached
            reached |= next_ones
            waiting += next_ones
    return LineageAnswer(
        nodes=[answer_of(known[one]) for one in sorted(reached) if one in known],
        edges=[
            {"parent": parent, "child": child}
            for parent, child in sorted(edges) if parent in reached and child in reached
        ],
    )  # fmt: skip
