"""A real server with S3's interface on 127.0.0.1, for stores at a URL."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

KEY = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class S3:
    """A server with one bucket in use. What it holds outlives `stop` and `start`.

    url       of the store, a folder in the bucket
    requests  its log: one line for each request that was answered
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[str] = []
        self.running = False
        self._log = _Lines(self.requests)
        self.start()
        self._client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.use_new_bucket()

    def use_new_bucket(self) -> None:
        """Goes on with an empty store, and starts the server again if it was stopped."""
        if not self.running:
            self.start()
        self.bucket = f"models-{uuid.uuid4().hex}"
        self.url = f"s3://{self.bucket}/store"
        self._client.create_bucket(Bucket=self.bucket)
        self.requests.clear()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return KEY | {"AWS_ENDPOINT_URL": self.endpoint}

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=True)
        self._server.start()
        _, self.port = self._server.get_host_and_port()
        logger = logging.getLogger("werkzeug")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self.running = True

    def stop(self) -> None:
        self._server.stop()
        self.running = False
        logging.getLogger("werkzeug").removeHandler(self._log)

    def put(self, path: str, data: bytes) -> None:
        """Writes an object. `path`: in the store, such as shapes/1/model.json."""
        self._client.put_object(Bucket=self.bucket, Key=f"store/{path}", Body=data)

    def get(self, path: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self.bucket, Key=f"store/{path}")["Body"].read()
        return body

    def remove(self, path: str) -> None:
        """Removes an object, or all below a path that ends with a slash."""
        found = self._client.list_objects_v2(Bucket=self.bucket, Prefix=f"store/{path}").get("Contents", [])
        for entry in found:
            self._client.delete_object(Bucket=self.bucket, Key=entry["Key"])

    def upload(self, folder: Path, path: str) -> None:
        """Writes the files of a version, model.json last."""
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "model.json"):
            self.put(f"{path}/{file.name}", file.read_bytes())


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())
