"""The parts of the OpenAPI document that FastAPI cannot read from signatures: bodies, images, headers, problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.http import gate, npz
from service.http.query import without_null
from service.http.schemas import ProblemAnswer

PROBLEMS = {
    400: "Not an image, a broken image, or a body that cannot be read. With strict=true also an image that is damaged "
    "but can be decoded; reason is damaged_image",
    401: "No valid key; the service asks for one (header Authorization: Bearer KEY, or X-API-Key: KEY)",
    404: "Unknown model, version or image id",
    408: "The body did not arrive in time",
    413: "Too many bytes or pixels; the problem names the limit",
    415: "Unsupported Content-Type or Content-Encoding",
    422: "A bad or unknown parameter",
    429: "Too many requests are in flight, this one would wait longer than its timeout, or the key has reached a limit "
    "(reason key_limit); try again after Retry-After seconds",
    500: "An internal error. reason is engine (the model failed on this image; others are not affected) or "
    "internal (the server log has the details under request_id)",
    503: "No answer is possible now; try again after Retry-After seconds. reason is loading, no_model (the store "
    "is empty), draining (shutting down), out_of_memory (for this image) or failed (the engine is dead)",
    504: "No answer before the deadline",
}

REQUEST_ID = {
    "X-Request-ID": {
        "description": "the request's own X-Request-ID if it has 1 to 64 characters of `A-Z a-z 0-9 . _ -`, else a new "
        "id; it also appears in problem documents and in the log of an internal error",
        "schema": {"type": "string"},
    }
}
RETRY_AFTER = {
    "Retry-After": {
        "description": "seconds after which to try again; with 429 it follows the current rate",
        "schema": {"type": "integer"},
    }
}
SERVER_TIMING = {
    "Server-Timing": {
        "description": "milliseconds in each stage: read, decode, queue (waiting for a decoding thread and for an "
        "engine), inference, total (from admission to the result), encode; for example `queue;dur=1.25, …`",
        "schema": {"type": "string"},
    }
}
IMAGE_ID = {
    "Image-Id": {
        "description": "the answer's `image.id`, the SHA-256 of the upload, also beside a drawn image",
        "schema": {"type": "string"},
    }
}
IMAGE_WARNINGS = {
    "Image-Warnings": {
        "description": "only for an image that is damaged, or whose values do not fit the model: the `reason` of each "
        "of the answer's `warnings`, separated by commas",
        "schema": {"type": "string"},
    }
}
ANSWER_TRUNCATED = {
    "Answer-Truncated": {
        "description": "only if a limit on their number may have cut the detections or proposals: the answer's "
        "`truncated`, separated by commas",
        "schema": {"type": "string"},
    }
}

# A PNG file of 160 x 120 pixels: a red disc and a blue square.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAKAAAAB4BAMAAACHjORcAAAAElBMVEXk5dni4dfh4dfh4dZAaL27LDSO2CWuAAABw0lEQVR42u2Z"
    "wWrCQBCGJxtLb5LYs3Qb6aF4kTyKD+qLiFY8FYprjGcp9daDk15ENDuD2d0I0k4uyS4/X/7Zyc4OJMqg3UuBAAUoQAEKUIACbBto"
    "Nmmado0zMGIO+s1IaQDA1VK7AeOUmsUyf0kAAKKnx4+kBWA5PlF6jkQSuBmfDXoPP6FJwfxi+NoNBOK2lodBERZyOa5/CS5BEw5z"
    "a8bFou0Qh/bH6mDRdrglVIOAkDGnVIV/yOqNkjWP2XJYkrLmaakDcRRY5eohV0Na1zjm+qtjRqd9Q+bWKvYF5pyw8ANi8NnTWDi6"
    "k1MvZrOJbTvUdxKyAG8J9Nx6h+A33zzkomUgaxgXDYGd2nhxfYt90dMpDcTre5npedcJCewzvNXp6ZsBvif0ojFZWfpmWS2CqiHV"
    "25CyyvsYZRbR+DskGy1cBhSHOaE66ABgn7BYhpQvNfffd/TmtS2udBDQsvi5D6zY/YlvihmguggaZzoUCGpanPHcinqHnM2meKwp"
    "5uB4SDDybDcxAGDMbO/GYxwCqOfdDAAy518FHd67328H6W0EKEABClCAAhTgXwBWx3vk3BJVa6YD9AVKUgQowH8B/AWUSGDPK9n4"
    "5wAAAABJRU5ErkJggg=="
)

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image (JPEG, PNG, WebP, BMP, or the first frame of a GIF), sent in one of three ways.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "the file; the field may also be named `file`",
                        }
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "byte",
                            "description": "the file, in base64 or as a data: URL",
                        }
                    },
                },
                "example": {"image": EXAMPLE_IMAGE},
            },
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

# The examples of each upload route. The page at /docs replaces BASE with its own address.
BASE = "http://127.0.0.1:8000"
CURL = {
    "detect": [
        f'curl -F image=@image.jpg "{BASE}/detect"',
        f'curl --data-binary @image.jpg -H "Content-Type: image/jpeg" "{BASE}/detect?score_threshold=0.7"',
        f'curl -F image=@image.jpg -H "Accept: image/png" -o drawn.png "{BASE}/detect"',
    ],
    "proposals": [f'curl -F image=@image.jpg "{BASE}/proposals?max_proposals=50"'],
}

IMAGE = {"schema": {"type": "string", "format": "binary"}}
NPZ = {
    npz.MEDIA_TYPE: {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": "read it with `numpy.load(io.BytesIO(body))`. It holds the members of the JSON answer "
            "except timing as arrays, with float32 numbers. A nested member has both names, such as `proposals_boxes`. "
            "`warnings` and `truncated` hold the words. "
            "`label_indices` start at 0",
        }
    }
}


def upload(route: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that accepts an image."""
    return BODY | {"x-codeSamples": [{"lang": "shell", "source": line} for line in CURL[route]]}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems."""
    schema = {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
    return {
        status: {
            "description": PROBLEMS[status],
            "content": {"application/problem+json": schema},
            "headers": RETRY_AFTER if status in (429, 503) else {},
        }
        for status in statuses
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, built once."""
    if not app.openapi_schema:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        made.setdefault("components", {}).setdefault("schemas", {})["ProblemAnswer"] = ProblemAnswer.model_json_schema()
        longest: float = app.state.runtime.settings.request_timeout
        if app.state.runtime.keys:
            _ask_for_keys(made)
        for operations in made["paths"].values():
            for operation in operations.values():
                _complete(operation, longest)
        app.openapi_schema = made
    return app.openapi_schema


def _ask_for_keys(made: dict[str, Any]) -> None:
    """Documents that every path but the probes needs a key."""
    made["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in made["paths"].items():
        for operation in operations.values() if path not in gate.PROBES else ():
            for sample in operation.get("x-codeSamples", []):
                sample["source"] = sample["source"].replace("curl ", 'curl -H "Authorization: Bearer $KEY" ')
            operation["security"] = [{"bearer": []}, {"header": []}]
            refusals = {str(status): each for status, each in problems(401, 429).items()}
            operation["responses"] = refusals | operation["responses"]


def _complete(operation: dict[str, Any], longest_timeout: float) -> None:
    """Adds what the signature of a route does not tell, in place. `longest_timeout`: seconds."""
    for parameter in operation.get("parameters", []):
        parameter["schema"] = without_null(parameter["schema"])
        if parameter["name"] == "timeout":
            parameter["schema"]["maximum"] = longest_timeout
        if parameter["name"] == "image_id":
            parameter["required"] = True  # OpenAPI cannot describe a GET with a body, which would replace it
    for response in operation["responses"].values():
        response["headers"] = response.get("headers", {}) | REQUEST_ID
