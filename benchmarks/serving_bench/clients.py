"""Clients that ask one model for pictures side by side, over HTTP; beside them some are killed, and some send nonsense.

A request for a picture ends in one of four ways: with the picture, with an answer that is none, refused by the server,
or lost: without an answer in time, or with a connection that broke.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from serving_bench.memory import SAMPLES
from svdq_trt.serve.config import IMAGE
from tests.harness.triton_server import picture_inputs, tensors

#: a client that is killed: address, path and length of the header are its arguments, the body its input
_VICTIM = """
import http.client, sys
address, path, header = sys.argv[1:]
connection = http.client.HTTPConnection(address)
connection.request("POST", path, sys.stdin.buffer.read(), {"Inference-Header-Content-Length": header})
print("sent", flush=True)
connection.getresponse()
"""
#: what is wrong with a request -> inputs that differ from a right one's, and what its refusal has to say
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"steps": np.ones((1, 1), np.float32)}, "data-type is 'FP32'.* expects 'INT32'"),
    "no prompt": ({"prompt": None}, "prompt: missing"),
    "size": ({"width": np.full((1, 1), 1 << 20, np.int32)}, "width: 1048576, want"),
}


@dataclass
class Outcome:
    """How a run's requests ended.

    Attributes:
        answers: of each picture asked for, how often each answer came, by its digest. images: one of each answer.
        seconds: from each of these requests to its picture. refused, lost, spoilt: what was said of each of the others.
        malformed: those that were not refused as they should be. sent: malformed requests. killed: clients.
        memory: samples by name. wall_s: from the first request to the last answer.
    """

    answers: list[Counter[bytes]]
    images: dict[bytes, np.ndarray] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    sent: int = 0
    killed: int = 0
    memory: dict[str, list[float]] = field(default_factory=dict)
    wall_s: float = 0.0


@dataclass(frozen=True)
class Model:
    """A pipeline on a Triton server. Attributes: address: host:port. timeout: seconds, then a request is lost."""

    address: str
    name: str
    timeout: float

    def connect(self) -> triton.InferenceServerClient:
        """A client, for one thread."""
        return triton.InferenceServerClient(self.address, network_timeout=self.timeout)

    def picture(self, client: triton.InferenceServerClient, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Ask for a picture, and wait for it."""
        image: np.ndarray = client.infer(self.name, tensors("http", inputs)).as_numpy(IMAGE)[0]
        return image

    def statistics(self) -> dict[str, Any]:
        """Triton's, since the server was started."""
        with self.connect() as client:
            found: dict[str, Any] = client.get_inference_statistics(self.name)["model_stats"][0]
        return found

    def kill_client(self, inputs: dict[str, np.ndarray], after: float) -> None:
        """Start a process that asks for a picture, and kill it `after` seconds from its asking."""
        body, header = triton.InferenceServerClient.generate_request_body(tensors("http", inputs))
        words = [self.address, f"/v2/models/{self.name}/infer", str(header)]
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", _VICTIM, *words], stdin=pipe, stdout=pipe) as victim:
            assert victim.stdin is not None and victim.stdout is not None
            victim.stdin.write(body)
            victim.stdin.close()
            victim.stdout.readline()  # sent
            time.sleep(after)
            victim.kill()


class Load:
    """One run: `asked` are arguments of `picture_inputs`, which clients send in turn."""

    def __init__(self, model: Model, asked: Sequence[dict[str, Any]], requests: int) -> None:
        """Make `requests` requests."""
        self._model, self._asked, self._requests = model, asked, requests
        self._lock, self._begun, self._ended = threading.Lock(), 0, 0
        self._others: list[Future[None]] = []
        self.outcome = Outcome([Counter() for _ in asked])

    def run(self, clients: int, disturb: int = 0, look: Callable[[], dict[str, float]] = dict) -> Outcome:
        """Run all requests, once.

        Args:
            disturb: after so many requests each time, a client is killed and a malformed request is sent; 0: never.
            look: the memory now, by name; called SAMPLES times.
        """
        self._disturb_every, self._look = disturb, look
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._client, beside) for _ in range(clients)]
            for one in running:
                one.result()
            self.outcome.wall_s = time.perf_counter() - started
        for one in self._others:
            one.result()
        return self.outcome

    def _client(self, beside: ThreadPoolExecutor) -> None:
        with self._model.connect() as client:
            while (number := self._next()) < self._requests:
                if self._disturb_every and number % self._disturb_every == self._disturb_every // 2:
                    self._others.append(beside.submit(self._disturb, number // self._disturb_every))
                self._ask(client, number % len(self._asked))

    def _next(self) -> int:
        with self._lock:
            self._begun += 1
            return self._begun - 1

    def _ask(self, client: triton.InferenceServerClient, place: int) -> None:
        given = self._asked[place]
        started = time.perf_counter()
        try:
            image = self._model.picture(client, picture_inputs(**given))
        except InferenceServerException as error:
            return self._end("refused", str(error))
        except Exception as error:  # of sockets, of gevent, of HTTP
            return self._end("lost", repr(error))
        seconds = time.perf_counter() - started
        if image.dtype != np.uint8 or image.shape != (given["height"], given["width"], 3):
            return self._end("spoilt", f"{image.dtype} {image.shape}")
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        with self._lock:
            self.outcome.answers[place][digest] += 1
            self.outcome.images.setdefault(digest, image)
        self._end("seconds", seconds)

    def _end(self, kind: str, what: Any) -> None:
        """Count a request that ended, and look at the memory when it is time."""
        with self._lock:
            getattr(self.outcome, kind).append(what)
            self._ended += 1
            if self._ended * SAMPLES // self._requests > (self._ended - 1) * SAMPLES // self._requests:
                for name, value in self._look().items():
                    self.outcome.memory.setdefault(name, []).append(value)

    def _disturb(self, turn: int) -> None:
        kind = list(MALFORMED)[turn % len(MALFORMED)]
        changed, message = MALFORMED[kind]
        inputs = picture_inputs(**self._asked[0]) | changed
        got = self._refusal({name: value for name, value in inputs.items() if value is not None})
        if not re.search(message, got):
            self.outcome.malformed.append(f"{kind}: {got}")
        self.outcome.sent += 1
        usual = median(self.outcome.seconds or [0])  # killed at once, or after one to three quarters of it
        self._model.kill_client(picture_inputs(**self._asked[turn % len(self._asked)]), usual * (turn % 4) / 4)
        self.outcome.killed += 1

    def _refusal(self, inputs: dict[str, np.ndarray]) -> str:
        try:
            with self._model.connect() as client:
                self._model.picture(client, inputs)
        except InferenceServerException as error:
            return str(error)
        except Exception as error:  # as above
            return repr(error)
        return "served"
