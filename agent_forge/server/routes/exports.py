"""/v1/exports: the files that exports have written, for download."""

from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel

from agent_forge.server.answers import Identity, errors
from agent_forge.server.making import exported_files
from agent_forge.server.routes.checkpoints import BYTES, PART, FileName
from agent_forge.server.security.authentication import needs
from agent_forge.server.service import RESERVED, Service

READ, MODELS = [Depends(needs("read"))], [Depends(needs("models"))]


class ExportedFile(BaseModel):
    """One file of an export."""

    name: str
    bytes: int


def router(service: Service) -> APIRouter:
    """Return the routes. An export has the id of its job, or the one reserved for its model."""
    routes = APIRouter(prefix="/exports", tags=["checkpoints"])

    def files_of(export_id: str) -> dict[str, Any]:
        return exported_files(service.supervisor.get(export_id.removeprefix(RESERVED)))

    @routes.get("/{export_id}", dependencies=READ, responses=errors(404), summary="List files")
    def listed(export_id: Identity) -> list[ExportedFile]:
        """List what an export has written; nothing while it still runs."""
        files = files_of(export_id)
        return [ExportedFile(name=name, bytes=file.stat().st_size) for name, file in files.items()]

    @routes.get(
        "/{export_id}/{name:path}", dependencies=MODELS, summary="Download a file",
        response_class=FileResponse, responses={**errors(404, 416), 200: BYTES, 206: PART},
    )  # fmt: skip
    def download(export_id: Identity, name: FileName) -> FileResponse:
        """Send a file, or the part that `Range` names."""
        file = files_of(export_id).get(name)
        if file is None:
            raise HTTPException(404, "the export has no such file; see its list of files")
        return FileResponse(file, media_type="application/octet-stream", filename=file.name)

    return routes
