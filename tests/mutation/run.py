"""Runs tests against mutants quickly: heavy libraries are imported once, and each mutant is a fork of that process.

No process here imports dpsapf before it is mutated. Tests that start another Python do not show the mutant to it,
so nothing counts that only they would notice; processes of torch.multiprocessing are forked, and show it.
"""

import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "dpsapf"
HEAVY = (
    "torch",
    "torch.distributed",
    "torch.multiprocessing",
    "opacus.accountants.analysis.gdp",
    "opacus.grad_sample",
    "opacus.utils.uniform_sampler",
    "dp_accounting.pld.pld_privacy_accountant",
    "dp_accounting.rdp.rdp_privacy_accountant",
    "scipy.stats",
    "scipy.special",
    "pandas",
    "PIL.Image",
    "safetensors.torch",
    "pydantic.main",
    "pydantic.fields",
    "pydantic.types",
    "pydantic.type_adapter",
    "pydantic.functional_validators",
    "pydantic.dataclasses",
    "yaml",
    "hypothesis.strategies",
    "coverage",
)
MODELS = (  # as long to import as the rest, and needed by tests of whole models only
    "torchvision",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "peft",
)
OPTIONS = ("-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "--tb=line", "-m", "")
GENEROUS = 20.0  # seconds of a core that a mutant's tests may take beyond four times what they take without it


def import_heavy(models: bool = True) -> None:
    """Import what tests need from others, with or without libraries of models, in one thread, so that a fork is safe."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    from _pytest.config import default_plugins

    for name in (*HEAVY, *(MODELS if models else ()), *(f"_pytest.{name}" for name in default_plugins)):
        importlib.import_module(name)
    if any(name.partition(".")[0] == PACKAGE for name in sys.modules):
        raise RuntimeError(f"{PACKAGE} was imported before it could be mutated")
    from hypothesis import settings

    settings.register_profile("mutants", database=None, derandomize=True)
    settings.load_profile("mutants")
    gc.collect()
    gc.freeze()  # else each fork collects, and so copies, all of it


class MutatedFinder:
    """Import hook that compiles one module from a syntax tree and leaves the rest alone."""

    def __init__(self, path: Path, name: str, tree: ast.Module) -> None:
        self._path, self._name, self._tree = path, name, tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the mutated module."""
        if name != self._name:
            return None
        loader = _TreeLoader(name, str(self._path))
        loader.tree = self._tree
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


class _TreeLoader(importlib.machinery.SourceFileLoader):
    tree: ast.Module

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self.tree, self.path, "exec", dont_inherit=True)


class Chosen:
    """pytest plugin: keep the tests given, in that order, and note the first that fails."""

    def __init__(self, order: Sequence[str] | None) -> None:
        self._rank = None if order is None else {name: rank for rank, name in enumerate(order)}
        self.failed = self.why = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and sort."""
        if self._rank is not None:
            items[:] = sorted((item for item in items if item.nodeid in self._rank), key=lambda item: self._rank[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed and not self.failed:
            self.failed = report.nodeid
            self.why = getattr(getattr(report.longrepr, "reprcrash", report.longrepr), "message", str(report.longrepr))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a test file that cannot even be imported."""
        self.pytest_runtest_logreport(report)


class Reach:
    """pytest plugin: which lines of one file each test reaches, and how long it takes.

    What a fixture reaches counts for every test of the file: a later test may use what the first one built.
    """

    def __init__(self, path: Path) -> None:
        import coverage

        self._path, self.seconds = path, {}
        self._coverage = coverage.Coverage(include=[str(path)], data_file=None)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure until the block ends."""
        self._coverage.start()
        yield
        self._coverage.stop()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """Count fixtures for the file."""
        self._coverage.switch_context(item.nodeid.partition("::")[0])
        start = _seconds()
        yield
        self.seconds[item.nodeid] = _seconds() - start

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Count a test's own code for it."""
        self._coverage.switch_context(item.nodeid)
        start = _seconds()
        yield
        self.seconds[item.nodeid] += _seconds() - start
        self._coverage.switch_context(item.nodeid.partition("::")[0])

    def found(self) -> dict[str, dict]:
        """Return seconds and lines by test."""
        lines: dict[str, set[int]] = {}
        for line, contexts in self._coverage.get_data().contexts_by_lineno(str(self._path)).items():
            for context in contexts:
                lines.setdefault(context, set()).add(line)
        return {
            name: {
                "seconds": round(seconds, 3),
                "lines": sorted(lines.get(name, set()) | lines.get(name.partition("::")[0], set())),
            }
            for name, seconds in self.seconds.items()
        }


@dataclass
class Job:
    """One forked run of tests.

    Attributes:
        name: what it is about.
        path: the module's file.
        tree: its mutated syntax tree, or None.
        tests: test files.
        order: node ids of the tests to run, in order; None: all.
        limit: seconds of a core after which it is stopped; ten times as many by the clock, if it waits.
        options: further words for pytest.
        measure: find out what each test reaches.
        root: folder that holds the package and the tests: the tree, or a copy of it.
        facts: what the caller wants to know of it when it ends.
    """

    name: str
    path: Path
    tree: ast.Module | None
    tests: Sequence[str]
    order: Sequence[str] | None = None
    limit: float = 600.0
    options: Sequence[str] = ()
    measure: bool = False
    root: Path = ROOT
    facts: dict = field(default_factory=dict)
    process: int = 0
    started: float = 0.0
    folder: str = ""
    result: dict = field(default_factory=dict)

    def start(self) -> None:
        """Fork."""
        self.folder, self.started = tempfile.mkdtemp(prefix="mutant-"), time.monotonic()
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            _child(self)

    def done(self) -> bool:
        """Whether it has ended; stops it when its time is over."""
        ended, status, usage = os.wait4(self.process, os.WNOHANG)
        late = time.monotonic() - self.started > 10 * self.limit
        if not ended and not late:
            return False
        self.stop()
        if not ended:
            _, status, usage = os.wait4(self.process, 0)
        self.result = self._read(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def stop(self) -> None:
        """Kill it, and what its tests started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def _read(self, code: int, seconds: float) -> dict:
        path = Path(self.folder) / "result.json"
        written = json.loads(path.read_text()) if path.exists() else {}
        return {
            "code": code,
            "seconds": round(seconds, 2),
            "output": (Path(self.folder) / "output").read_text()[-3000:],
        } | written


def _seconds() -> float:
    """Return the seconds of a core that this process and those that it has waited for have taken."""
    return sum(os.times()[:4])


def _child(job: Job) -> typing.NoReturn:
    """Run the tests in the forked process; its exit code is pytest's."""
    code = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(job.limit), math.ceil(job.limit)))  # whoever else is at work
        output = os.open(Path(job.folder) / "output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = _run_tests(job)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run_tests(job: Job) -> int:
    os.chdir(job.root)
    if job.root != ROOT:
        _import_from(job.root)
    if multiprocessing := sys.modules.get("torch.multiprocessing"):
        multiprocessing.spawn = functools.partial(multiprocessing.start_processes, start_method="fork")
    if job.tree is not None:
        name = ".".join(job.path.relative_to(job.root).with_suffix("").parts)
        sys.meta_path.insert(0, MutatedFinder(job.path, name, job.tree))
    chosen, reach = Chosen(job.order), Reach(job.path) if job.measure else None
    plugins = [chosen, reach] if reach else [chosen]
    words = [*OPTIONS, *job.options, f"--basetemp={job.folder}/tmp", f"--rootdir={job.root}", *job.tests]
    with reach.measuring() if reach else contextlib.nullcontext():
        code = int(pytest.main(words, plugins=plugins))
    facts = {"by": chosen.failed, "why": chosen.why} | ({"reach": reach.found()} if reach else {})
    (Path(job.folder) / "result.json").write_text(json.dumps(facts))
    return code


def _import_from(root: Path) -> None:
    """Take package and tests from another tree, in processes that a test starts, too."""
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = str(root)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def run(jobs: Iterator[Job], at_once: int, report: Callable[[Job], None]) -> None:
    """Run jobs, some at once, and report each when it ends; none outlives the caller."""
    running: list[Job] = []
    try:
        while True:
            while len(running) < at_once and (job := next(jobs, None)):
                job.start()
                running.append(job)
            if not running:
                return
            ended = [job for job in running if job.done()]
            for job in ended:
                running.remove(job)
                report(job)
            if not ended:
                time.sleep(0.02)
    finally:
        for job in running:
            job.stop()


def outcome(job: Job) -> str:
    """Return killed or SURVIVED; a run that pytest itself could not make is an error.

    Raises:
        RuntimeError: pytest broke, e.g. by a test file that does not exist.
    """
    code = job.result["code"]
    if code in (3, 4, 70):
        raise RuntimeError(f"{job.name}: pytest failed with {code}\n{job.result['output']}")
    return "SURVIVED" if code in (0, 5) else "killed"


def reached(path: Path, tests: Sequence[str], root: Path = ROOT) -> dict[str, dict]:
    """Run tests without a mutant: seconds and lines of the file by test.

    Raises:
        RuntimeError: a test fails, or one that exists does not run.
    """
    job = Job(str(path), path, None, tests, measure=True, root=root)
    run(iter([job]), 1, lambda job: None)
    if job.result["code"] != 0:
        raise RuntimeError(f"the tests of {path} fail without a mutant: {job.result['by']}\n{job.result['output']}")
    return job.result["reach"]


def ordered(reach: dict[str, dict], lines: tuple[int, int] | None) -> list[str]:
    """Return the tests that reach some of the lines, quickest first; None: all tests."""
    names = sorted(reach, key=lambda name: reach[name]["seconds"])
    if lines is None:
        return names
    return [name for name in names if any(lines[0] <= line <= lines[1] for line in reach[name]["lines"])]


def time_limit(reach: dict[str, dict], names: Sequence[str]) -> float:
    """Return the seconds that these tests may take."""
    return GENEROUS + 4 * sum(reach[name]["seconds"] for name in names)


def digest(*texts: str) -> str:
    """Name texts by their contents."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
