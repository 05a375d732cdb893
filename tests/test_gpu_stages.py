"""``python -m benchmarks.gpu`` without a GPU: each stage's logic on the CPU, and what the runner survives."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.plan import STAGES, CampaignError, Stage, chosen
from benchmarks.gpu.pytest_run import read_report
from benchmarks.gpu.runner import Run, record_of, run_stages
from benchmarks.gpu.session import Session, StepFailed, StepSkipped, check_command, run_limited
from benchmarks.gpu.stages.profiler import parse
from benchmarks.gpu.summary import summary
from benchmarks.gpu.switches import SWITCHES, flip, is_on, patch

WORKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from benchmarks.gpu.session import Session, StepFailed
import json
path = Path({folder!r}) / (sys.argv[1] + ".json")
steps = json.loads(path.read_text())["steps"] if path.is_file() else {{}}
session = Session(sys.argv[1], path.parent, {{"commit": "abc"}}, dry=False, steps=steps, seconds=30)
with open(path.with_suffix(".starts"), "a") as starts:
    starts.write("x")
def fail():
    raise StepFailed("three tests fail", {{"failed": 3}})
session.step("first", lambda: {{"line": "fine"}})
if sys.argv[1] == "crashes":
    session.step("second", os.abort)
if sys.argv[1] == "hangs":
    session.step("second", time.sleep, 60)
if sys.argv[1] == "fails":
    session.step("second", fail)
session.step("third", lambda: {{"line": "fine, too"}})
sys.exit(0 if session.finish() else 1)
"""


@pytest.fixture
def run(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Stages whose worker is the script above."""
    folder = tmp_path / "results"
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(repository=str(repository), folder=str(folder)))
    monkeypatch.setattr(runner, "WORKER", [sys.executable, str(script)])
    return Run(folder, "abc", "python -m benchmarks.gpu")


def stage(name: str, limit: int = 30) -> Stage:
    return Stage(name, "a stage", limit, 0)


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_every_stage_passes_a_dry_run(name: str, tmp_path: Path) -> None:
    (chosen_stage,) = chosen([name])
    session = Session(name, tmp_path, {"commit": "abc", "gpu": None}, dry=True, steps={}, seconds=300)
    chosen_stage.load()(session)
    assert session.finish(), session.path.read_text()
    record = json.loads(session.path.read_text())
    assert record["dry"] and record["status"] == "passed"
    assert any(step["status"] == "passed" for step in record["steps"].values())
    for step in record["steps"].values():
        assert step["status"] == "passed" or len(step["error"]) > 10  # why it cannot be done dry
    assert "dry run: nothing here was measured" in summary([record])


def test_a_stage_survives_what_happens_to_another(run: Run) -> None:
    stages = [stage("crashes"), stage("hangs", limit=7), stage("fails"), stage("passes")]
    assert not run_stages(stages, run)
    records = {each.name: record_of(each, run.folder) for each in stages}
    steps = {name: record["steps"] for name, record in records.items() if record}
    # An abort costs one step: another process goes on behind it.
    assert records["crashes"]["status"] == "failed"  # type: ignore[index]
    assert "the process ended during this step" in steps["crashes"]["second"]["error"]
    assert steps["crashes"]["third"]["value"] == {"line": "fine, too"}
    # Out of time: what was found before stays.
    assert records["hangs"]["status"] == "timed out"  # type: ignore[index]
    assert steps["hangs"]["first"]["status"] == "passed" and "third" not in steps["hangs"]
    assert steps["hangs"]["second"]["error"] == "the stage timed out during this step"
    assert steps["fails"]["second"]["value"] == {"failed": 3}
    assert steps["fails"]["third"]["status"] == "passed"
    assert records["passes"]["status"] == "passed"  # type: ignore[index]
    page = (run.folder / "summary.md").read_text()
    assert "- second **failed**: three tests fail" in page


def test_what_has_passed_is_not_repeated(run: Run) -> None:
    def starts() -> int:
        return len((run.folder / "passes.starts").read_text())

    bundle = run.folder.parent / "bundle"
    assert run_stages([stage("passes")], replace(run, bundle=bundle)) and starts() == 1
    assert run_stages([stage("passes")], run) and starts() == 1
    assert run_stages([stage("passes")], replace(run, again=True)) and starts() == 2
    run_stages([stage("passes")], replace(run, commit="def"))
    assert starts() == 3
    with tarfile.open(bundle / "stages.tar.gz") as archive:
        assert archive.getnames() == ["passes.json", "passes.log"]
    assert len(list(bundle.iterdir())) <= 8
    assert not run_stages([replace(stage("fails"), least=60)], replace(run, seconds=10))
    assert not (run.folder / "fails.json").exists()


def test_tools_have_a_time_limit_and_may_be_absent(tmp_path: Path) -> None:
    assert run_limited(["sh", "-c", "echo out; echo err >&2; exit 3"], 20, {}, tmp_path).code == 3
    with pytest.raises(StepFailed, match="stopped after 1 s"):
        # The grandchild holds the pipe open: it has to go, too.
        run_limited(["sh", "-c", "sleep 60 & sleep 60"], 1, {}, tmp_path)
    with pytest.raises(StepSkipped, match="no-such-program cannot be run"):
        run_limited(["no-such-program"], 1, {}, tmp_path)
    with pytest.raises(StepSkipped, match="time is over"):
        run_limited(["true"], 0, {}, tmp_path)


@pytest.mark.parametrize(
    "command", [["python", "-m", "benchmarks.gpu.wrokers"], ["pytest", "tests/gpu/test_moo.py::test_x"]]
)
def test_a_dry_run_finds_what_is_misspelt(command: list[str], repository: Path) -> None:
    with pytest.raises(StepFailed, match="there is no"):
        check_command(command, repository)


def test_the_command_refuses_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--stage", "kernel", "--commit", "abc", "--output", str(tmp_path)]) == 1
    assert "there is no stage 'kernel'; did you mean 'kernels'" in capsys.readouterr().err
    monkeypatch.setattr("benchmarks.gpu.__main__.REPOSITORY", tmp_path)
    assert main(["--dry", "--output", str(tmp_path)]) == 1
    assert "say which commit it is" in capsys.readouterr().err
    assert main(["--apply", "--output", str(tmp_path)]) == 1
    assert "run the stage hopper" in capsys.readouterr().err


@pytest.fixture
def tree(tmp_path: Path, repository: Path) -> Path:
    """The headers that have the switches, all of them off."""
    for switch in SWITCHES:
        target = tmp_path / "tree" / switch.header
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (repository / switch.header).read_text()
        for each in SWITCHES:
            text = text.replace(f"{each.name} = true;", f"{each.name} = false;")
        target.write_text(text)
    return tmp_path / "tree"


def test_switches_are_turned_on_by_a_passing_run_alone(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.REPOSITORY", tree)
    proposed = {"proposed": ["kHopperTileIsTested", "kOverlapIsTested"]}
    step = {"status": "passed", "value": proposed}
    for dry, status in ((True, "passed"), (False, "failed")):
        record = {"dry": dry, "commit": "abc", "steps": {"all together": {**step, "status": status}}}
        (tree / "hopper.json").write_text(json.dumps(record))
        assert main(["--apply", "--output", str(tree)]) == 1
        assert "proposes nothing" in capsys.readouterr().err
    assert not any(is_on(switch, tree) for switch in SWITCHES)
    (tree / "hopper.json").write_text(
        json.dumps({"dry": False, "commit": "abc", "steps": {"all together": step}})
    )
    assert main(["--apply", "--output", str(tree)]) == 0
    on = [switch.name for switch in SWITCHES if is_on(switch, tree)]
    assert on == proposed["proposed"]
    with pytest.raises(CampaignError, match="found it 0 times"):
        flip(SWITCHES[0], tree)


def test_the_patch_says_what_the_switches_do(tree: Path) -> None:
    copy = tree.with_name("copy")
    shutil.copytree(tree, copy)
    for switch in SWITCHES:
        flip(switch, copy)
    added = [line for line in patch(SWITCHES, tree).splitlines() if line.startswith("+constexpr")]
    assert added == [f"+constexpr bool {switch.name} = true;" for switch in SWITCHES]
    assert all(is_on(switch, copy) for switch in SWITCHES)


def test_reports_of_tools_are_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x[hopper-1]"/>'
        '<testcase classname="a" name="y"><failure message="assert 1 == 2&#10;more">x</failure></testcase>'
        '<testcase classname="a" name="z"><skipped message="needs a Hopper GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = read_report(report)
    assert found.passed == ("a::x[hopper-1]",) and found.failed == {"a::y": "assert 1 == 2"}
    assert found.line == "1 passed, 1 failed, 1 skipped (needs a Hopper GPU)"
    text = 'noise\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    text += '"0","k(int)","gpu__time_duration.sum","us","1,234.5"\n"0","k(int)","other","","1"\n'
    assert parse(text) == {"k(int)": {"gpu__time_duration.sum": "1,234.5 us"}}
    assert parse("==ERROR== no permission") == {}
