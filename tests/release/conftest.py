import functools

import pytest

from dpsapf.experiment.stages import Release
from dpsapf.privacy.accounting import epsilon
from dpsapf.release.attacks import attack_bounds
from dpsapf.release.release import release
from tests.published_run import write_run


@functools.cache
def composed(name, releases, delta):
    return epsilon(name, releases, delta)


@functools.cache
def bounded(releases):
    return attack_bounds(releases)


@pytest.fixture(autouse=True)
def accounted_once(monkeypatch):
    """The same releases are composed once for all tests."""

    def once(name, releases, delta):
        return composed(name, tuple(releases), delta)

    monkeypatch.setattr("dpsapf.privacy.accounting.epsilon", once)
    monkeypatch.setattr("dpsapf.release.statement.attack_bounds", lambda releases: bounded(tuple(releases)))


@pytest.fixture
def root(tmp_path):
    """A results folder."""
    return tmp_path / "results" / "shapes"


@pytest.fixture
def folder(root):
    """A run that may be published."""
    return write_run(root)


@pytest.fixture
def publish(tmp_path):
    """Publish a run, by default as tmp_path/out; returns the published folder."""

    def published(run, out="out", **options):
        release(Release(**({"run": str(run), "out": tmp_path / out, "hyperparameters": "public"} | options)))
        return tmp_path / out

    return published
