"""Built engines under load: every text and every log probability is what it is alone, cold and warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import q2export
from q2export.plugins.kernel_build import CPU_LIBRARY, CPU_RECORD, recorded
from q2export.runtime.results import GenerationResult
from q2export.runtime.scheduler import Scheduler, SchedulerOptions
from tests.helpers.checkpoints import CHECKPOINTS

pytestmark = pytest.mark.skipif(not CPU_LIBRARY.is_file(), reason=f"CPU kernels: {recorded(CPU_RECORD)}")

TEXT = "class Account:\n    def close(self, reason):\n        return self.owner\n\n"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (
        (TEXT * 3)[: 5 + 13 * each] + str(each % 3),
        {"max_new_tokens": 6 + each, "logprobs": 2, "do_sample": each % 2 == 1, "seed": each},
    )
    for each in range(16)
]


def shown(result: GenerationResult) -> tuple[Any, ...]:
    return result.token_ids, result.text, result.logprobs, result.finish_reason


@pytest.fixture(
    scope="module", params=[("qwen2-tiny", "cpu"), ("qwen2-tiny", "cpu-int4"), ("qwen2-moe-tiny", "cpu-int4")]
)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, profile = request.param
    folder = tmp_path_factory.mktemp("serving") / "package"
    return q2export.build(CHECKPOINTS / model, folder, profile=profile, parity=False).package


def test_sixteen_at_once_are_what_each_is_alone(package: Path) -> None:
    engine = q2export.load(package, threads=1)
    alone = [shown(engine.generate(prompt, **options)) for prompt, options in REQUESTS]
    with Scheduler(engine) as scheduler:
        for hits in (1, len(REQUESTS)):
            several = [scheduler.submit(prompt, **options) for prompt, options in REQUESTS]
            assert [shown(each.result()) for each in several] == alone
            assert scheduler.statistics().prefix_hits >= hits
    with Scheduler(engine, SchedulerOptions(rows=3, kv_tokens=260, speculate=4)) as scheduler:
        several = [
            scheduler.submit(prompt, priority=place % 2, **options)
            for place, (prompt, options) in enumerate(REQUESTS)
        ]
        assert [shown(each.result()) for each in several] == alone
