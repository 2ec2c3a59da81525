"""What the service answers with: the fields of each answer, and the errors that every route knows."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from agent_forge.server.jobs import Job, JobState

ConfigField = Annotated[
    dict[str, Any] | list[str] | None,
    Field(
        description="Settings as a nested object, or as a list of KEY=VALUE overrides.",
        examples=[{"train": {"steps": 50}}, ["train.steps=50"]],
    ),
]
# Ids are never paths: letters, digits, "-" and "_" alone.
Identity = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Strict(BaseModel):
    """A request: a field that is not known is refused and not dropped."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(BaseModel):
    """What went wrong, in one line."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(BaseModel):
    """Every error has this form, which is OpenAI's too."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer besides success; what the wall refuses is added."""
    wall = (400, 401, 403, 405, 413, 415, 421, 422, 429, 500, 503)
    return {status: {"model": ErrorAnswer} for status in sorted({*wall, *statuses})}


class StartRequest(Strict):
    """Start a phase, or run-all."""

    phase_name: str = Field(max_length=100, examples=["bitnet"])
    config: ConfigField = None


class StartAnswer(BaseModel):
    """The job that will do it."""

    task_id: str
    status: JobState


class StatusAnswer(BaseModel):
    """How far a phase is. progress: percent, 0 to 100; phase: null when nothing was ever started."""

    phase: str | None
    progress: float
    message: str


class CreateRequest(Strict):
    """Create a model. type: import, merge, export, or a phase; params depend on it."""

    type: str = Field(max_length=100, examples=["merge"])
    params: dict[str, Any] = Field(default_factory=dict)


class CreateAnswer(BaseModel):
    """The model, or the id that is reserved for it while it is made."""

    model_id: str
    metadata: dict[str, Any]


class ModelAnswer(BaseModel):
    """One model. size: bytes as it would be shipped. encrypted: at rest, in every copy."""

    id: str
    name: str
    size: int
    metrics: dict[str, Any]
    parameters: int | None = None
    encrypted: bool = False


class JobAnswer(BaseModel):
    """A job. Times are seconds since the epoch; progress is percent."""

    id: str
    command: str
    state: JobState
    progress: float
    message: str
    overrides: list[str]
    sources: list[str]
    attempt: int
    created: float
    started: float | None
    ended: float | None
    results: dict[str, Any]
    error_code: int | None
    origin: str

    @classmethod
    def of(cls, job: Job) -> "JobAnswer":
        """Return what a client may see of a job: no directory, no setting of the server."""
        return cls(**{name: getattr(job, name) for name in cls.model_fields})


class PhasePart(BaseModel):
    """One phase of a pipeline. state: pending, running, done, rejected, failed or interrupted."""

    name: str
    state: str
    percent: float


class PipelineAnswer(JobAnswer):
    """A run of several phases."""

    phases: list[PhasePart]


class PipelineRequest(Strict):
    """Start a run of several phases; all eight by default."""

    phases: list[str] = Field(default_factory=list, max_length=100)
    sources: list[str] = Field(default_factory=list, max_length=100)
    experiment: str = Field("", max_length=100, examples=["smollm2"])
    config: ConfigField = None


class OrderRequest(Strict):
    """The jobs that shall run first, in this order."""

    ids: list[str] = Field(max_length=10_000)


class QueueRequest(Strict):
    """Pause the queue (what runs goes on), or let it go on after a job has failed."""

    paused: bool | None = None
    continue_on_error: bool | None = None


class QueueAnswer(BaseModel):
    """The queue: whether it is held, whether it goes on after a failure, who waits."""

    paused: bool
    continue_on_error: bool
    jobs: list[JobAnswer]


class ValidateAnswer(BaseModel):
    """Whether a config composes; if so, all settings and rough estimates, else why not."""

    valid: bool
    error: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    estimates: list[dict[str, Any]] = Field(default_factory=list)


class CheckpointAnswer(BaseModel):
    """One checkpoint, however many copies there are. Sizes are bytes. encrypted: every copy."""

    id: str
    name: str
    phase: str
    role: str
    status: str
    copies: int
    deployable_bytes: int
    file_bytes: int
    parents: list[str]
    metrics: dict[str, Any]
    seed: int
    time: float
    error: str = ""
    encrypted: bool = False


class FileAnswer(BaseModel):
    """One file of a checkpoint."""

    name: str
    bytes: int
    sha256: str


class LineageAnswer(BaseModel):
    """A checkpoint and all its ancestors and children that are known, and who is whose parent."""

    nodes: list[CheckpointAnswer]
    edges: list[dict[str, str]]


class TicketAnswer(BaseModel):
    """A ticket for one WebSocket: /ws?ticket=TICKET."""

    ticket: str
    expires_in: float


class ServiceAnswer(BaseModel):
    """What this server is."""

    name: Literal["agent-forge"] = "agent-forge"
    version: str
    parts: list[str]
    last_seq: int
