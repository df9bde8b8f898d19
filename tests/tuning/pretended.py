"""A tuner's builder and runner that make no machine code, and ways to look into its records."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from ttsnn.passes.cpu.tuning import LayerChoice
from ttsnn.passes.cpu.tuning.kernel import choice_of

RECORDS = "database_tuning_record.json"


@derived_object
class PretendedBuilder(ms.builder.PyBuilder):
    """Builds nothing: a file with the candidate's choice stands for its library."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def build(self, build_inputs):
        out = []
        for given in build_inputs:
            path = Path(tempfile.mkdtemp(dir=self.folder)) / "choice"
            path.write_text(choice_of(given.mod).to_json())
            out.append(ms.builder.BuilderResult(str(path), None))
        return out


@derived_object
class PretendedRunner(ms.runner.PyRunner):
    """Times that depend on the choice alone, 1 to 2 ms; ``slow`` choices take twice as long."""

    def __init__(self, slow):
        super().__init__()
        self.slow = slow

    def run(self, runner_inputs):
        def future(path):
            text = Path(path).read_text()
            seconds = 1e-3 + zlib.crc32(text.encode()) / 2**32 * 1e-3
            result = ms.runner.RunnerResult([seconds * (2 if self.slow(text) else 1)], None)
            return ms.runner.RunnerFuture(lambda: True, lambda: result)

        return [future(str(i.artifact_path)) for i in runner_inputs]


def pretend(monkeypatch, slow=lambda _: False):
    """Tune without machine code."""
    from ttsnn.tuning import tuner

    monkeypatch.setattr(
        tuner, "start_builder", lambda _build, folder, _workers: PretendedBuilder(folder)
    )
    monkeypatch.setattr(tuner, "start_runner", lambda *_: PretendedRunner(slow))


def lines(folder):
    """Lines of MetaSchedule's records."""
    return (folder / RECORDS).read_text().splitlines()


def choice_in(line):
    """The choice in a line."""
    (found,) = [i for i in json.loads(line)[1][0][0] if i[0] == "Annotate" and "choice" in i[2][0]]
    return found[1][1]


def choices_in(folder):
    """All choices, in order."""
    return [LayerChoice.from_json(choice_in(line)[1:-1]) for line in lines(folder)]


def with_choices(folder, change):
    """Replace every choice of the records."""
    out = []
    for line, choice in zip(lines(folder), choices_in(folder), strict=True):
        row = json.loads(line)
        for inst in row[1][0][0]:
            if inst[0] == "Annotate" and "choice" in inst[2][0]:
                inst[1][1] = f'"{change(choice).to_json()}"'
        out.append(json.dumps(row) + "\n")
    (folder / RECORDS).write_text("".join(out))
