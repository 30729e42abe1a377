"""Fixtures that tests share: a trained checkpoint, PostgreSQL, empty galleries, running services."""

import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa

from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.transactions import Database
from tests.files import BACKGROUND, GOLDEN
from tests.service import Application, InProcess, Serve, Service, diptych, running_postgresql

Running = TypeVar("Running", Application, Service)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def trained(shared: Path) -> Path:
    """A checkpoint from a small real training run; its output is in `train.log` beside it.

    What is learned differs between processors, and with TEST_PRECISION (32, bf16) and TEST_SEED; no test may hang
    on it.
    """
    output, log = shared / "runs" / "small", shared / "runs" / "train.log"
    with one_at_a_time(shared / "trained.lock"):
        if not log.exists():
            done = diptych(
                *("train", BACKGROUND, "--output", output, "--epochs", "20", "--width", "0.5", "--image-size", "32"),
                *("--calibration-share", "0.3", "--test-share", "0.3", "--quarter-turns"),
                *("--precision", os.environ.get("TEST_PRECISION", "auto"), "--seed", os.environ.get("TEST_SEED", "0")),
            )
            assert done.returncode == 0, done.stderr
            log.write_text(done.stdout + done.stderr)
    return output


@pytest.fixture(scope="session")
def postgres(shared: Path) -> Iterator[Callable[[], str]]:
    """A real server; each call gives the URL of a new database in it."""
    directory = shared / "postgres"
    with one_at_a_time(shared / "postgres.lock"):
        directory.mkdir(exist_ok=True)
        server = running_postgresql(directory)
    with server:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        names = (f"gallery_{os.getpid()}_{number}" for number in itertools.count())

        def new() -> str:
            name = next(names)
            with admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            return url.set(database=name).render_as_string(hide_password=False)

        yield new
        admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty gallery, once in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        opened: Database = SQLite(tmp_path / "gallery.db")
    else:
        opened = PostgreSQL(request.getfixturevalue("postgres")())
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start services that end with the test."""
    started: list[Service] = []

    def start(checkpoint: Path | str = GOLDEN, data_dir: Path | None = None, **environment: str) -> Service:
        service = Service(checkpoint, data_dir or tmp_path / "data", **environment)
        started.append(service)
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.stop()


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcess]:
    """Start applications in this process that end with the test."""
    started: list[Application] = []

    def start(checkpoint: Path | str = GOLDEN, data_dir: Path | None = None, **environment: str) -> Application:
        application = Application(checkpoint, data_dir or tmp_path / "data", **environment)
        started.append(application)
        return application

    yield start
    for application in started:
        application.stop()


def of_a_module(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kind: Callable[..., Running]
) -> Iterator[Running]:
    settings = {"max_image_bytes": "1000000", "max_images": "4"}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgres")()
    running = kind(GOLDEN, tmp_path_factory.mktemp("service") / "data", **settings)
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """The service in this process for a whole module, with the golden checkpoint, once on each database.

    Tests use collections of their own.
    """
    yield from of_a_module(request, tmp_path_factory, Application)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def on_a_socket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same in a process of its own, for clients that take an address."""
    yield from of_a_module(request, tmp_path_factory, Service)
