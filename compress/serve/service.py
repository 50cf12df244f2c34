"""``compress serve``: loads the models, listens, and ends when it is told to, once what was accepted is answered.

::

    compress serve runs/k49/quantize/3f9a0c51be27 --port 8000
    compress serve small=board/k49 large=k49.onnx --host 0.0.0.0 --token-file token.txt

Refused before anything listens: a model that cannot be loaded, a port that is taken.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..artifacts.project import Console
from ..errors import CompressError
from .app import make_app
from .pool import LoadError, Model
from .settings import ServeConfig, Source

HEAD_SECONDS = 10.0  # for the head of a request, from its first byte or the connection's start
MOST_CONNECTIONS = 512
KEEP_ALIVE = 15


@dataclass(frozen=True, kw_only=True)
class Served:
    """What was done until it ended: requests answered as asked, refused, and images read; and where."""

    address: str
    answered: int
    refused: int
    images: int


class Patient(HttpToolsProtocol):
    """HTTP with an end to its patience, and with an answer for who stops sending before it comes."""

    body_seconds = 60.0  # for the rest of a request, also where it was answered before that came
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
            return
        self._late = self.loop.call_later(HEAD_SECONDS, transport.close)

    def on_message_begin(self) -> None:
        self._enough()
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._enough()
        self._late = self.loop.call_later(self.body_seconds, self.transport.close)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._enough()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enough()
        super().connection_lost(exc)

    def eof_received(self) -> Any:
        """Whether it stays open for the answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _enough(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """Ends by a signal as by a word: with what it had to do done, and no error."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {one: signal.signal(one, self.handle_exit) for one in (getattr(signal, name) for name in names)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def serve(sources: Sequence[Source], config: ServeConfig, console: Console) -> Served:
    """Serve until a signal comes; raises CompressError where a model or the port cannot be had."""
    listening = _socket(config)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    models = {source.name: Model(source, config, console.say) for source in sources}
    failed: list[LoadError] = []

    @asynccontextmanager
    async def living() -> AsyncIterator[None]:
        try:
            await asyncio.gather(*(model.start() for model in models.values()))
        except LoadError as error:
            failed.append(error)
            await asyncio.gather(*(model.stop() for model in models.values()))
            raise
        for name, model in models.items():
            about, batch = model.about, f", {model.about.batch} at once" if model.about.batch > 1 else ""
            console.say(f"{name}: {len(about.classes)} classes, {about.latency_ms:.3g} ms an image{batch}, {about.hash[:12]}")
        listening.listen(MOST_CONNECTIONS)  # who reads the next line may ask at once
        console.say(f"serves {address}; Ctrl-C ends it" + ("" if config.is_local or config.token else "; anybody who reaches it may ask"))
        try:
            yield
        finally:
            await asyncio.gather(*(model.stop() for model in models.values()))

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    how: dict[str, Any] = {"http": Patient, "ws": "none", "log_config": None, "access_log": False, "server_header": False}
    how |= {"timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": round(config.seconds) + 5, "lifespan": "on", "loop": "asyncio"}
    Patient.body_seconds = config.seconds + HEAD_SECONDS
    server = Server(uvicorn.Config(make_app(models, config, living), backlog=MOST_CONNECTIONS, proxy_headers=False, **how))
    with listening:
        try:
            asyncio.run(server.serve([listening]))
        except SystemExit:  # with which uvicorn ends where the models cannot be had
            if not failed:
                raise
    for error in failed:
        raise CompressError(str(error)) from error
    counts = [model.counts for model in models.values()]
    totals = [(status, count) for one in counts for (_, status), count in one.answers.items()]
    answered = sum(count for status, count in totals if status == 200)
    refused = sum(count for status, count in totals if status != 200)
    return Served(address=address, answered=answered, refused=refused, images=sum(one.images for one in counts))


def _socket(config: ServeConfig) -> socket.socket:
    with ExitStack() as opened:
        try:
            entries = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            *kind, _, where = entries[0]
            found = opened.enter_context(socket.socket(*kind))  # asyncio sets TCP_NODELAY where the protocol is said to be TCP
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
        except OSError as error:
            told = f"host (={config.host}) and port (={config.port}): {error.strerror}; name others with --host and --port"
            raise CompressError(told) from error
        opened.pop_all()
    return found
