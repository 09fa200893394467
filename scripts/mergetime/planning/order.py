"""What depends on the order of jobs: the longest chain, and the most disk that is in use at a time."""

from collections.abc import Callable, Collection, Sequence

from mergetime.planning.jobs import Job


def needed(jobs: Sequence[Job]) -> dict[Job, list[Job]]:
    """Each job to the jobs whose outputs it reads."""
    makers = {file: job for job in jobs for file in job.outputs}
    return {job: list(dict.fromkeys(makers[file] for file in job.inputs if file in makers)) for job in jobs}


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs so that each comes after those that it needs, and right after the last of them where that can be.

    So one worker goes: it evaluates a merge before it makes the next.
    """
    before = needed(jobs)
    read = {earlier for listed in before.values() for earlier in listed}
    done: dict[Job, None] = {}
    for last in [job for job in jobs if job not in read]:
        pending = [last]
        while pending:
            waiting = [job for job in before[pending[-1]] if job not in done]
            if waiting:
                pending.append(waiting[0])
            else:
                done[pending.pop()] = None
    return list(done)


def longest_chain_s(jobs: Sequence[Job], seconds: Callable[[Job], float]) -> float:
    """Wall seconds until the last job ends if every job starts as soon as it can, whatever the number of machines."""
    before = needed(jobs)
    ends: dict[Job, float] = {}
    for job in in_order(jobs):
        ends[job] = seconds(job) + max((ends[earlier] for earlier in before[job]), default=0.0)
    return max(ends.values(), default=0.0)


def serial_peak_bytes(
    jobs: Sequence[Job],
    written: Callable[[str], float],
    scratch: Callable[[Job], float],
    removed: Collection[str],
) -> float:
    """The most bytes on disk at a time if jobs run one by one, temporary files going with their last reader.

    Args:
        jobs: all jobs.
        written: bytes of an output.
        scratch: bytes that a job keeps only while it runs.
        removed: outputs that Snakemake removes.
    """
    readers = {file: 0 for job in jobs for file in job.outputs}
    for job in jobs:
        for file in job.inputs:
            if file in readers:
                readers[file] += 1
    disk = peak = 0.0
    for job in in_order(jobs):
        disk += sum(map(written, job.outputs))
        peak = max(peak, disk + scratch(job))
        for file in job.inputs:
            if file in readers:
                readers[file] -= 1
                disk -= written(file) if file in removed and not readers[file] else 0.0
    return peak
