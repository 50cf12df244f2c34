"""A model's queue and the workers that empty it: bounded, swapped for a new version of the file, mended when one dies.

Requests wait in one queue; a worker that is free takes as many as its batch pays for. Each poll looks whether the model's files changed:
once they stand still a worker with the new version is loaded beside the old one, takes over, and the old one ends after what it
computes. A version that cannot be loaded is said, and the old one goes on. A worker that dies, or computes long beyond the time of a
request, takes the requests that it had with it (503); the others wait for its successor.
"""

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import suppress

from .decode import Refused
from .frames import Answer, Hello, Job, Ready, frame, next_frame
from .metrics import Counts
from .settings import ServeConfig, Source, Stamp

POLL, GRACE, LONGEST_PAUSE = 1.0, 5.0, 30.0  # seconds
LOAD_SECONDS = 300.0
Say = Callable[[str], None]


class LoadError(Exception):
    """Why a model could not be loaded, in one line."""


class Waiting:
    """A job, when it came, and who waits for the answer."""

    def __init__(self, job: Job) -> None:
        self.job, self.since = job, time.perf_counter_ns()
        self.answer: asyncio.Future[tuple[Answer, int]] = asyncio.get_running_loop().create_future()


class WorkerProcess:
    """A worker that is loaded; ``about`` is what it said of its model."""

    def __init__(self, process: Process, about: Ready, stamp: Stamp) -> None:
        self.process, self.about, self.stamp = process, about, stamp
        self.retired = asyncio.Event()
        self.idle: asyncio.Task[None] | None = None  # who waits for work for it

    @classmethod
    async def start(cls, source: Source, max_pixels: int) -> "WorkerProcess":
        stamp = source.stamp()
        paths = os.pathsep.join(path or os.curdir for path in sys.path)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "compress.serve.worker", stdin=PIPE, stdout=PIPE, limit=2**20, start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(frame(Hello(source=source, max_pixels=max_pixels)))
            about = await asyncio.wait_for(next_frame(process.stdout, Ready), LOAD_SECONDS)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            about = Ready(error=f"{source.path}: its worker ended before the model was loaded ({type(error).__name__})")
        except asyncio.CancelledError:
            process.kill()
            raise
        worker = cls(process, about, stamp)
        if about.error:
            await worker.close()
            raise LoadError(about.error)
        return worker

    async def compute(self, jobs: list[Job], seconds: float) -> list[Answer] | None:
        """The answers, or None where the process died, or had to be ended as it took longer than ``seconds``."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                self.process.stdin.write(frame(jobs))
                await self.process.stdin.drain()
                return await next_frame(self.process.stdout, list[Answer])
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            with suppress(ProcessLookupError):
                self.process.kill()
            return None

    def retire(self) -> None:
        """Have it end after what it computes."""
        self.retired.set()
        if self.idle is not None:
            self.idle.cancel()

    async def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), GRACE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class Model:
    """One name, with its queue and its workers."""

    def __init__(self, source: Source, config: ServeConfig, say: Say) -> None:
        self.source, self.counts = source, Counts()
        self.about = Ready()
        self.error = ""  # of a newer version that could not be loaded
        self._config, self._say = config, say
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(config.queue)
        self._workers: set[WorkerProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace = 0.0  # seconds of a request, lately

    @property
    def ready(self) -> bool:
        return bool(self._workers)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def start(self) -> None:
        """Load it; raises LoadError where that fails."""
        workers = await self._load_all()
        self._take_on(workers)
        self._keep(self._watch(workers[0].stamp))

    def refuse_full(self) -> None:
        """Raise 429 where no more may wait."""
        if self._queue.full():
            seconds = max(1, round(self._queue.qsize() * self._pace / max(1, len(self._workers))))
            told = f"{self._queue.qsize()} requests wait for {self.source.name} already; try again in {seconds} s"
            raise Refused(429, told, **{"retry-after": str(seconds)})

    async def ask(self, job: Job) -> tuple[Answer, int]:
        """The answer, and the ns that it waited: whatever was not decoding and computing."""
        self.refuse_full()
        waiting = Waiting(job)
        self._queue.put_nowait(waiting)
        try:
            async with asyncio.timeout(max(0.0, job.deadline - time.monotonic())):
                return await waiting.answer
        except TimeoutError:
            raise Refused(503, f"it took longer than {self._config.seconds:g} s; try again later", **{"retry-after": "1"}) from None

    async def stop(self) -> None:
        """End the workers; nobody asks any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))
        self._workers.clear()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self) -> WorkerProcess:
        return await WorkerProcess.start(self.source, self._config.max_pixels)

    async def _load_all(self) -> list[WorkerProcess]:
        """As many as there should be, or none: then LoadError."""
        loads = (self._load() for _ in range(self._config.workers))
        found = await asyncio.gather(*loads, return_exceptions=True)
        workers = [one for one in found if isinstance(one, WorkerProcess)]
        if failed := [one for one in found if isinstance(one, BaseException)]:
            await asyncio.gather(*(worker.close() for worker in workers))
            raise failed[0]
        return workers

    def _take_on(self, workers: list[WorkerProcess]) -> None:
        """Have these do the work, in the place of all others."""
        old = list(self._workers)
        self._workers.update(workers)
        self.about, self.error = workers[0].about, ""
        for worker in workers:
            self._keep(self._work(worker))
        for worker in old:
            worker.retire()

    async def _work(self, worker: WorkerProcess) -> None:
        """Have it compute what waits, until it is retired or dies."""
        task = asyncio.current_task()
        while not worker.retired.is_set():
            worker.idle = task
            try:
                some = [await self._queue.get()]
            except asyncio.CancelledError:
                if worker.retired.is_set():
                    break
                raise
            worker.idle = None
            while len(some) < worker.about.batch and not self._queue.empty():
                some.append(self._queue.get_nowait())
            if (some := [one for one in some if not one.answer.done()]) and not await self._computed(worker, some):
                self._workers.discard(worker)
                self.counts.died += 1
                self._keep(self._replace())
                break
        self._workers.discard(worker)
        await worker.close()

    async def _computed(self, worker: WorkerProcess, some: list[Waiting]) -> bool:
        """Compute and hand out the answers; whether the worker lives."""
        begin = time.perf_counter_ns()
        answers = await worker.compute([one.job for one in some], self._config.seconds + GRACE)
        took = time.perf_counter_ns() - begin
        self._pace += 0.1 * (took / 1e9 / len(some) - self._pace)
        for place, one in enumerate(some):
            if one.answer.done():
                continue
            if answers is None:
                told = f"the process that computed this for {self.source.name} ended; send it again"
                one.answer.set_exception(Refused(503, told, **{"retry-after": "1"}))
            else:
                found = answers[place]
                waited = max(0, time.perf_counter_ns() - one.since - found.decode_ns - found.compute_ns)
                one.answer.set_result((found, waited))
        return answers is not None

    async def _replace(self) -> None:
        """One more worker in the place of one that died; tried again after longer and longer pauses."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                worker = await self._load()
            except LoadError as error:
                self._failed(str(error))
                pause = min(LONGEST_PAUSE, 2 * pause + 1)
                continue
            if len(self._workers) >= self._config.workers:  # a new version came meanwhile
                await worker.close()
                return
            self._workers.add(worker)
            self.about = worker.about
            self._say(f"{self.source.name}: a worker ended; another one took its place")
            self._keep(self._work(worker))
            return

    async def _watch(self, loaded: Stamp) -> None:
        """Look for a new version, and take it on once its files stand still."""
        last = loaded
        while True:
            await asyncio.sleep(POLL)
            now = self.source.stamp()
            if now in (loaded, ()) or now != last:
                last = now
                continue
            loaded = now
            try:
                workers = await self._load_all()
            except LoadError as error:
                self._failed(str(error))
                continue
            loaded = workers[0].stamp
            self._take_on(workers)
            self.counts.swapped += 1
            self._say(f"{self.source.name}: a new version, {self.about.hash[:12]}")

    def _failed(self, told: str) -> None:
        if told != self.error:
            self.error = told
            self._say(
                f"{self.source.name}: {told}; the version that was loaded goes on" if self._workers else f"{self.source.name}: {told}"
            )
