# The service in a container. It runs without root rights and holds neither torch nor the offline half.
#
#   docker build -t faster-rcnn-service .                             for an NVIDIA GPU (the cuda extra brings the CUDA libraries)
#   docker build -t faster-rcnn-service:cpu --build-arg EXTRAS= .     for the CPU; the image is 2 GB smaller
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

ARG EXTRAS=cuda
# A certificate bundle for pip, needed behind a proxy that inspects TLS.
ARG PIP_CERT

WORKDIR /app

# Install the dependencies first. They rarely change and make up most of the image, so Docker can cache this layer.
COPY pyproject.toml ./
RUN mkdir service && touch LICENSE README.md service/__init__.py \
    && pip install --no-cache-dir --root-user-action=ignore ".${EXTRAS:+[$EXTRAS]}" \
    && rm -r LICENSE README.md service build *.egg-info

COPY pyproject.toml LICENSE README.md ./
COPY service service
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps --force-reinstall . \
    && rm -r pyproject.toml LICENSE README.md service build *.egg-info

COPY model_store model_store

ENV HOST=0.0.0.0 \
    PORT=8000 \
    MODEL_STORE=/app/model_store \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=4)"]
CMD ["python", "-m", "service"]
