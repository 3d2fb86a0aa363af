"""An S3 server on loopback that also takes writes, conditional ones too: moto's, with the real protocol."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


class Server:
    """One server at one address. What it holds stays in this process while it is stopped."""

    def __init__(self) -> None:
        self.port = 0  # any that is free; the same one when it is started again
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What says to boto and s3fs where it is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def moto_bucket(monkeypatch: pytest.MonkeyPatch, name: str, server: Server | None = None) -> Iterator[str]:
    """The URL of an empty bucket; the environment says where it is, also to processes that are started meanwhile."""
    server = server or Server()
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    for key in PROXIES:
        monkeypatch.delenv(key, raising=False)
    boto3.client("s3").create_bucket(Bucket=name)
    fsspec.filesystem("s3").clear_instance_cache()
    yield f"s3://{name}"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()
