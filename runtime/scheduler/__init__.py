"""Continuous batching: requests join and leave at any step, and no text depends on its neighbours.

::

    with q2export.load("path/to/package") as engine, Scheduler(engine) as scheduler:
        answers = [scheduler.submit(prompt, max_new_tokens=50) for prompt in prompts]
        for event in answers[0]:
            print(event.text, end="")
"""

from __future__ import annotations

from q2export.runtime.scheduler.generation import ScheduledGeneration
from q2export.runtime.scheduler.options import SchedulerOptions, SchedulerStatistics
from q2export.runtime.scheduler.scheduler import Scheduler

__all__ = ["ScheduledGeneration", "Scheduler", "SchedulerOptions", "SchedulerStatistics"]
