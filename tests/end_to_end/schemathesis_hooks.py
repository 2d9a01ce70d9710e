"""Images for schemathesis. OpenAPI cannot say that the bytes of an upload must be an image, so it would send any."""

import base64
import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def encoded(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(out, format)
    return out.getvalue()


IMAGES = {format: encoded(format) for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF")}

schemathesis.openapi.format("binary", st.sampled_from(list(IMAGES.values())))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(image).decode() for image in IMAGES.values()]))
schemathesis.openapi.media_type("image/png", st.just(IMAGES["PNG"]))
schemathesis.openapi.media_type("image/jpeg", st.just(IMAGES["JPEG"]))
schemathesis.openapi.media_type("application/octet-stream", st.sampled_from(list(IMAGES.values())))
