"""A plain server, for comparison: the simplest one that FastAPI and ONNX Runtime allow.

It has one route, which runs in FastAPI's thread pool, and one session with ONNX Runtime's default options. It is
started by uvicorn with default options and one or two workers. MODEL_DIR names the model.
"""

import os
from typing import Annotated

import onnxruntime
from fastapi import Body, FastAPI

from benchmarks.load.decode_and_detect import Found, detect
from benchmarks.sessions import session_on
from service.engine.model import load_model
from service.engine.providers import pick_provider

model = load_model(os.environ["MODEL_DIR"])
session = session_on(pick_provider(), model.graph, onnxruntime.SessionOptions())
app = FastAPI()


@app.post("/detect")
def answer(data: Annotated[bytes, Body(media_type="image/jpeg")]) -> Found:
    return detect(session, model.card, [data])[0]
