"""A real S3 API on loopback, and a line to it that can be cut, slowed and made to answer with errors."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import urllib.request

import boto3
from moto.server import ThreadedMotoServer

KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"
LOGIN = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
_BUSY = b"HTTP/1.1 %d Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Line:
    """Carries bytes between who connects to it and the server behind; ``state`` says how well.

    "well"; "reset": each connection is torn down; "hang": taken, and never answered; "gone": nobody listens;
    a number: each request is answered with this HTTP status.
    """

    def __init__(self, host, port):
        self._behind = (host, port)
        self.state = "well"
        self.refused = 0  # connections that the state was bad for
        self._listener = self._listening(0)
        self.port = self._listener.getsockname()[1]

    def become(self, state):
        before, self.state = self.state, state
        if state == "gone":
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        elif before == "gone":
            self._listener = self._listening(self.port)

    def close(self):
        if self.state != "gone":
            self.become("gone")

    def _listening(self, port):
        listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken):
        with taken, contextlib.suppress(OSError):
            while first := taken.recv(65536):
                if self.state != "well":
                    self.refused += 1
                    self._trouble(taken)
                    return
                self._exchange(taken, first)

    def _trouble(self, taken):
        if self.state == "hang":
            while taken.recv(65536):
                pass
        elif isinstance(self.state, int):
            taken.sendall(_BUSY % self.state)
        else:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _exchange(self, taken, first):
        """One connection to the server for each that is taken; both ends are watched until either closes."""
        with socket.create_connection(self._behind) as server:
            server.sendall(first)
            back = threading.Thread(target=_pump, args=(server, taken), daemon=True)
            back.start()
            while self.state == "well" and (data := taken.recv(65536)):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join()


def _pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


class Store:
    """The server, a line to it, and an empty bucket."""

    _numbers = itertools.count()

    def __init__(self, server_port, line):
        self._direct = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{server_port}", region_name="us-east-1",
            aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        )  # fmt: skip
        self.line = line
        self.bucket = f"bucket-{next(self._numbers)}"
        self._direct.create_bucket(Bucket=self.bucket)
        self.address = f"s3://{self.bucket}/team/run"

    @property
    def environment(self):
        """What a process needs to find the store."""
        return {**LOGIN, "S3_ENDPOINT": f"http://127.0.0.1:{self.line.port}"}

    def listed(self):
        pages = self._direct.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def body(self, key):
        return self._direct.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key, data):
        self._direct.put_object(Bucket=self.bucket, Key=key, Body=data)

    def record(self):
        """All that is in the bucket, in the order of the names."""
        return b"".join(self.body(key) for key in sorted(self.listed()))


@contextlib.contextmanager
def serving():
    """A server in this process; gives its port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/", timeout=30).close()
        yield port
    finally:
        server.stop()


@contextlib.contextmanager
def store_at(port, monkeypatch):
    """A store of its own at the server, by way of a line; the environment leads there."""
    line = Line("127.0.0.1", port)
    store = Store(port, line)
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    try:
        yield store
    finally:
        line.close()
