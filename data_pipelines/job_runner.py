"""Run the jobs of an input on the cluster: start them, watch them, try again what may pass, and collect failures.

Invariant: a job is tried at most ATTEMPTS times, and none is started once FAILED_JOBS have failed.
"""

import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError, RayTaskError

from data_pipelines.encoder import EncoderPool
from data_pipelines.job import InputWork
from data_pipelines.judge import BadRecordJudge
from data_pipelines.progress import PipelineProgress
from data_pipelines.reports import ReportBoard
from data_pipelines.task import JobSummary, do_job
from data_pipelines.work import ShardJob
from janus_dist.config.streams import SPECS
from janus_dist.errors import ClusterError, JanusError
from janus_dist.launch.task_pool import cancel
from janus_dist.storage.lease import LeaseLostError

ATTEMPTS = 6
"""Attempts at a job; after the last one the other jobs continue and the run fails at its end."""
PAUSE_S = 4.0
"""Seconds before the second attempt; 4, 9, 16 and 25 times that before the next: a store may be down for minutes."""
FAILED_JOBS = 10
"""Failed jobs after which the run stops at once."""
EXAMPLE_JOBS = 32
"""Jobs that keep examples, spread evenly over all."""
JOBS_AHEAD = 2
"""Jobs submitted to Ray per core: those that wait for a core make an autoscaling cluster grow."""
ENCODED_CPUS = 0.5
"""Cores of a job that mostly waits for VQ ids: of two per core, one feeds the encoders while one starts or ends."""
POLL_S = 1.0
"""Longest wait, in seconds, for a job to finish before reports are read."""
READ_REPORTS_INTERVAL_S = 5.0
"""Seconds between two reads of the reports of running jobs."""

log = logging.getLogger("janus_dist")


@dataclass(frozen=True)
class Failure:
    """The reason why a job could not be done."""

    text: str
    error: BaseException


@dataclass
class Watcher:
    """A reader of running jobs' reports, for the console and for the judge."""

    board: ReportBoard
    progress: PipelineProgress
    judge: BadRecordJudge
    looked_at: float = field(default_factory=time.monotonic)

    def look(self, running: Iterable[ShardJob]) -> None:
        """Read the latest reports, READ_REPORTS_INTERVAL_S apart; a board that does not answer is read again later."""
        now = time.monotonic()
        if now - self.looked_at < READ_REPORTS_INTERVAL_S and not self.progress.is_due:
            return
        self.looked_at = now
        reports = self.board.read()
        if reports is not None:
            known = [job for job in running if job.number in reports]
            self.progress.running = [(job.number, job.size, reports[job.number]) for job in known]
            self.judge.watch(self.progress.reports, self.progress.share)


def finished_jobs(
    input_work: InputWork,
    jobs: Sequence[ShardJob],
    failures: list[Failure],
    progress: PipelineProgress,
    judge: BadRecordJudge,
) -> Iterator[tuple[ShardJob, JobSummary]]:
    """Do jobs on the cluster and yield each as it is done; append to `failures` why others could not be.

    Ends before all are done when those that run report too many bad records.
    """
    if not jobs:
        return
    encoders = EncoderPool.start(input_work.recipe) if SPECS[input_work.stream].draws_images else None
    tasks = _Tasks(input_work, jobs, failures, encoders, ReportBoard.start())
    watcher = Watcher(tasks.board, progress, judge)
    try:
        while tasks.has_jobs and len(failures) < FAILED_JOBS:
            tasks.start()
            watcher.look(tasks.running.values())
            if judge.too_many:
                return
            progress.say()
            for job, task in tasks.wait():
                progress.running = [entry for entry in progress.running if entry[0] != job.number]
                try:
                    yield job, ray.get(task)
                except (RayError, JanusError, OSError) as error:
                    tasks.note_error(job, error)
    finally:
        cancel(list(tasks.running))
        tasks.board.stop()
        if encoders is not None:
            encoders.stop()


class _Tasks:
    """Jobs as Ray tasks: those that wait, those that run, and those that pause before another attempt."""

    def __init__(
        self,
        input_work: InputWork,
        jobs: Sequence[ShardJob],
        failures: list[Failure],
        encoders: EncoderPool | None,
        board: ReportBoard,
    ):
        self.failures, self.encoders, self.board = failures, encoders, board
        self.cpus = ENCODED_CPUS if encoders else 1
        self.shared_work, self.waiting, self.attempts = ray.put(input_work), deque(jobs), Counter[int]()
        self.paused: list[tuple[float, ShardJob]] = []
        """(time of the next attempt by the monotonic clock, job)."""
        self.example_interval = max(1, len(jobs) // EXAMPLE_JOBS)
        self.running: dict[ray.ObjectRef, ShardJob] = {}

    @property
    def has_jobs(self) -> bool:
        """Return whether a job is not finished."""
        return bool(self.waiting or self.paused or self.running)

    def start(self) -> None:
        """Start as many of the jobs that wait as the cluster has room for."""
        now = time.monotonic()
        self.waiting.extend(job for resume_at, job in self.paused if resume_at <= now)
        self.paused = [(resume_at, job) for resume_at, job in self.paused if resume_at > now]
        while self.waiting and len(self.running) < JOBS_AHEAD * ray.cluster_resources().get("CPU", 1) / self.cpus:
            job = self.waiting.popleft()
            self.attempts[job.number] += 1
            with_examples = job.number % self.example_interval == 0
            task = do_job.options(num_cpus=self.cpus).remote(
                job, self.shared_work, self.encoders, with_examples, self.board
            )
            self.running[task] = job

    def wait(self) -> Iterator[tuple[ShardJob, ray.ObjectRef]]:
        """Wait up to POLL_S and yield the tasks that finished meanwhile, with their jobs."""
        if not self.running:
            time.sleep(POLL_S)
            return
        for task in ray.wait(list(self.running), timeout=POLL_S)[0]:
            yield self.running.pop(task), task

    def note_error(self, job: ShardJob, error: Exception) -> None:
        """Let a job pause before another attempt, or note its failure when no attempt may succeed."""
        if self.attempts[job.number] < ATTEMPTS and _is_transient(error):
            self.paused.append((time.monotonic() + PAUSE_S * self.attempts[job.number] ** 2, job))
        else:
            self.failures.append(_failure(job, error))


def _is_transient(error: Exception) -> bool:
    """Return whether another attempt may succeed: a store, a disk or a node may recover, our own errors do not."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, OSError | RayError | ClusterError) and not isinstance(cause, LeaseLostError)


def _failure(job: ShardJob, error: Exception) -> Failure:
    """Return why a job failed; log the traceback of an unexpected error."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, JanusError | OSError | RayError):
        log.error("%s", "".join(traceback.format_exception(error)))
    message = str(cause).strip().split("\n")[0]
    return Failure(f"job {job.number} ({job.units[0].path}): {type(cause).__name__}: {message}", cause)
