# The service in a container. It runs without root rights and holds neither torch nor the offline half.
#
#   docker build -t faster-rcnn-service .                             for an NVIDIA GPU (the cuda extra brings the CUDA libraries)
#   docker build -t faster-rcnn-service:cpu --build-arg EXTRAS= .     for the CPU; the image is 2 GB smaller
#
# Both also build on arm64. The image brings CUDA 13 and cuDNN 9 but not the driver: the host needs driver 580 or later and
# the NVIDIA Container Toolkit. The base image needs glibc 2.34, as Debian 12 has.
#
# A tag can be moved to another image; a digest cannot. To build on exactly one base image, name its digest:
#
#   docker buildx imagetools inspect python:3.12-slim                 prints it
#   docker build --build-arg BASE_DIGEST=sha256:… .
ARG BASE_IMAGE=python:3.12-slim
ARG BASE_DIGEST=
FROM ${BASE_IMAGE}${BASE_DIGEST:+@}${BASE_DIGEST}

ARG EXTRAS=cuda
# A certificate bundle for pip, needed behind a proxy that inspects TLS.
ARG PIP_CERT

WORKDIR /app

# Install the dependencies first. They rarely change and make up most of the image, so Docker can cache this layer.
COPY pyproject.toml ./
# The versions are those that pyproject.toml allows.
# hadolint ignore=DL3013
RUN mkdir service && touch LICENSE README.md service/__init__.py \
    && pip install --no-cache-dir --root-user-action=ignore ".${EXTRAS:+[$EXTRAS]}" \
    && rm -r LICENSE README.md service build ./*.egg-info

COPY pyproject.toml LICENSE README.md ./
COPY service service
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps --force-reinstall . \
    && rm -r pyproject.toml LICENSE README.md service build ./*.egg-info

COPY model_store model_store

ENV HOST=0.0.0.0 \
    PORT=8000 \
    MODEL_STORE=/app/model_store \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

EXPOSE 8000
USER 10001:10001
# http.client, because urllib would ask a proxy named in the environment. /readyz needs no key.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
