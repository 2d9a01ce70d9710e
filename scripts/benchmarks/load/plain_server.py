"""A plain server: what one would write first with FastAPI and ONNX Runtime, and what this service is compared with.

One route that runs in FastAPI's thread pool, one session with ONNX Runtime's own options, nothing else. Started by
uvicorn with its own options, one worker or two; MODEL_DIR names the model.
"""

import os
from typing import Annotated

import onnxruntime
from fastapi import Body, FastAPI

from benchmarks.load.decode_and_detect import Found, detect
from benchmarks.sessions import session_on
from service.engine.engine import pick_provider
from service.engine.model import load_model

model = load_model(os.environ["MODEL_DIR"])
session = session_on(pick_provider(), model.graph, onnxruntime.SessionOptions())
app = FastAPI()


@app.post("/detect")
def answer(data: Annotated[bytes, Body(media_type="image/jpeg")]) -> Found:
    return detect(session, model.card, [data])[0]
