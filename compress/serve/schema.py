"""What is asked and answered, for OpenAPI: the records, the bodies that may be sent, and the errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .decode import FORM, PICTURES, RAW
from .guard import PROBLEM

_ANSWERED: dict[str, Any] = {
    "model": "k49",
    "hash": "09f72768dd964a1a6e4f0c4a3c1f6b0c8a5d8f3b2e7a9c4d1e6f5b8a7c3d2e10",
    "timing": {"decode_ms": 0.042, "wait_ms": 0.61, "compute_ms": 1.31, "batch": 1},
}
_READ: dict[str, Any] = {"label": "B", "index": 1, "probability": 0.94}
Fraction = Annotated[float, Field(ge=0, le=1)]


class Problem(BaseModel):
    """Why not, in one sentence (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(examples=["Bad Request"])
    status: int = Field(examples=[400])
    detail: str = Field(examples=["the body is empty; send a picture, or raw uint8 of the network's shape"])


class Drawing(BaseModel):
    """How the pictures that the network was trained on are drawn, so that strokes become such pictures."""

    ink: Literal["light", "dark"]
    extent: float = Field(description="of the longer side of the ink, as a fraction of the picture's")
    thickness: float = Field(description="of a stroke, as a fraction of the picture's shorter side")
    centred: Literal["mass", "box"]
    known: bool = Field(description="measured on the images beside the model; else what is usual")


class ModelAbout(BaseModel):
    """A model, as it is loaded now."""

    name: str = Field(examples=["k49"])
    ready: bool
    hash: str = Field(description="SHA-256 of its file", examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    shape: tuple[int, int, int] = Field(description="height, width and channels of the uint8 image that it takes", examples=[(28, 28, 1)])
    classes: list[str]
    size: int = Field(description="bytes of its file")
    latency_ms: float = Field(description="of one image alone, the fastest of several on loading")
    batch: int = Field(description="images that are computed at once, where that was measured to pay")
    drawing: Drawing | None
    error: str = Field(description="why a newer version of the file could not be loaded; empty where there is none")


class Models(BaseModel):
    """All models."""

    models: list[ModelAbout]


class Prediction(BaseModel):
    """Of one image."""

    label: str = Field(examples=["A"])
    index: int = Field(description="of the label among the model's classes")
    probability: Fraction
    probabilities: list[Fraction] = Field(description="in the order of the model's classes; a sigmoid's need not sum to 1")
    pixels: str | None = Field(default=None, description="with seen=true: the image that was read, uint8 (H, W, C) as base64")


class Timing(BaseModel):
    """Where the time went, in milliseconds; wait is what was neither decoding nor computing. The computing is that of the whole batch."""

    decode_ms: float
    wait_ms: float
    compute_ms: float
    batch: int = Field(description="images computed at once")


class Answered(BaseModel):
    """What the model whose file has this hash made of the request."""

    model: str
    hash: str
    timing: Timing


class Predictions(Answered):
    """One prediction for each image, in their order."""

    model_config = {"json_schema_extra": {"examples": [_ANSWERED | {"predictions": [_READ | {"probabilities": [0.05, 0.94, 0.01]}]}]}}
    predictions: list[Prediction]


class Explanation(Answered):
    """Evidence of each pixel (H, W) for the label, in logits: positive where covering it costs the label."""

    model_config = {"json_schema_extra": {"examples": [_ANSWERED | _READ | {"evidence": [[0.0, 1.25], [0.5, -0.25]]}]}}
    label: str
    index: int
    probability: Fraction
    evidence: list[list[float]]


class State(BaseModel):
    """Whether it lives, or takes requests."""

    status: Literal["ok"]


def body(several: bool) -> dict[str, Any]:
    """The bodies that predict (``several`` images) and explain take."""
    picture = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
    files: dict[str, Any] = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1} if several else {}
    files = files or {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": files}, "required": ["image"]}
    raw = {"type": "string", "format": "binary", "description": "uint8 (N, H, W, C) of the model's shape", "minLength": 1}
    content = dict.fromkeys(PICTURES, picture) | {RAW: {"schema": raw}, FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an operation."""
    told = {
        400: "The body is not what it should be.",
        401: "No bearer token, or another one.",
        403: "A page of a site that may not ask.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "A type of body that is not read here.",
        421: "A name that is not this host's.",
        422: "A parameter is not what it should be.",
        429: "Too many wait; Retry-After says when to try again.",
        500: "The model gives no numbers for this.",
        503: "Not ready, too slow, or its process ended.",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {status: {"description": told[status], "content": {PROBLEM: {"schema": schema}}} for status in statuses}
