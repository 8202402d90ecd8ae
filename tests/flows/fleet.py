"""A whole fleet on this machine: a Prefect server, an S3 server, and process workers in clones of
this working copy.

    with Fleet(folder, quick) as fleet:
        fleet.worker("one", "cpu")
        run = fleet.start("gdpo-stage/cpu", stage="degrade@00")
        fleet.finished(run)

Everything is a process of its own and speaks HTTP, as on real hosts. Used by
tests/flows/test_fleet.py and benchmarks/fleet.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests import s3
from tests.flows.clones import snapshot
from tests.flows.processes import children, descendants, free_port, wait_for

BUCKET = "gdpo-sr"
PASSWORD = "the-password-of-the-fleet"
HEARTBEAT_S = 30  # Prefect's least
# Debian's PostgreSQL, newest last, where this process may start it as the user that it wants.
POSTGRESQL = (
    sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if os.geteuid() == 0 and shutil.which("runuser")
    else []
)
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def _first(count: int, folder: str) -> dict[str, Any]:
    return {"path": folder, "first": count, "resize": None, "lr": None}


# The sample profile with as little work as shows every stage: seconds each.
QUICK: dict[str, Any] = {
    "degrade.train": [_first(16, "assets/photos/train")],
    "degrade.evaluation": [_first(4, "assets/photos/kodak")],
    "pretrain.steps": 2,
    "select.count": 12,
    "rollout.noises": 1,
    "finetune.steps": 6,
    "finetune.batch": 2,
    "finetune.validation.every": 1000,
    "evaluate.noises": 2,
}


class Fleet:
    """The servers and workers; a context. folder: where everything is written; changes: to
    params.yaml.

    postgresql: the server keeps its runs there, and not in Prefect's own SQLite file.
    """

    def __init__(
        self, folder: Path, changes: Mapping[str, Any] = QUICK, *, postgresql: bool = False
    ) -> None:
        self.folder = folder
        self.source = snapshot(folder / "source", changes)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.postgresql = postgresql
        self.cluster: Path | None = None
        self.api = f"http://127.0.0.1:{free_port()}/api"
        self.s3 = f"http://127.0.0.1:{free_port()}"
        self.http = httpx.Client(timeout=60, auth=("gdpo", PASSWORD))
        home = str(Path(sys.executable).parent)
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PREFECT_", "AWS_", "DVC_"))
            },
            "PATH": home + os.pathsep + os.environ["PATH"],
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": f"gdpo:{PASSWORD}",
            "PREFECT_SERVER_API_AUTH_STRING": f"gdpo:{PASSWORD}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "OMP_NUM_THREADS": "1",
            **s3.environment(self.s3),
        }

    def __enter__(self) -> "Fleet":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        self.spawn(
            "s3",
            ["-m", "moto.server", "-H", "127.0.0.1", "-p", self.s3.rpartition(":")[2]],
            self.folder,
        )
        if self.postgresql:
            self.env["PREFECT_API_DATABASE_CONNECTION_URL"] = self._start_postgresql()
        self._serve()
        wait_for(lambda: _answers(f"{self.s3}/moto-api/"), 180, "the S3 server")
        s3.client(self.s3).create_bucket(Bucket=BUCKET)
        command = [sys.executable, "-m", "flows.setup", "--store", f"s3://{BUCKET}"]
        subprocess.run(
            [*command, "--heartbeat", str(HEARTBEAT_S)],
            cwd=self.source,
            env=self.environment(self.source),
            check=True,
        )

    def _serve(self) -> None:
        port = self.api.removesuffix("/api").rpartition(":")[2]
        self.spawn(
            "server",
            ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port],
            self.folder,
        )
        wait_for(lambda: _answers(f"{self.api}/health"), 300, "the Prefect server")

    def restart_server(self) -> None:
        """What `systemctl restart gdpo-server` does."""
        server = self.processes.pop("server")
        server.terminate()
        server.wait(60)
        self._serve()

    def _start_postgresql(self) -> str:
        """A PostgreSQL server as the operations guide asks for; its address for Prefect."""
        # PostgreSQL does not run as root, and its user must reach the folder.
        self.cluster = Path(tempfile.mkdtemp(prefix="gdpo-postgresql-"))
        shutil.chown(self.cluster, "postgres")
        programs, port, data = POSTGRESQL[-1].parent, str(free_port()), str(self.cluster / "data")
        as_postgres = ["runuser", "-u", "postgres", "--"]
        initdb = [str(programs / "initdb"), "-D", data, "-U", "prefect", "--auth=trust"]
        subprocess.run([*as_postgres, *initdb], cwd=self.cluster, check=True, capture_output=True)
        options = ["-p", port, "-k", str(self.cluster)]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (self.folder / "postgresql.log").open("ab") as log:
            self.processes["postgresql"] = subprocess.Popen(
                [*as_postgres, str(programs / "postgres"), "-D", data, *options],
                cwd=self.cluster,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        psql = [str(programs / "psql"), "-h", "127.0.0.1", "-p", port]
        psql += ["-U", "prefect", "-d", "postgres", "-c"]
        wait_for(
            lambda: subprocess.run([*psql, "SELECT 1"], capture_output=True).returncode == 0,
            180,
            "PostgreSQL",
        )
        subprocess.run([*psql, "CREATE DATABASE prefect"], check=True, capture_output=True)
        psql[psql.index("postgres")] = "prefect"
        subprocess.run([*psql, "CREATE EXTENSION pg_trgm"], check=True, capture_output=True)
        return f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        self.http.close()
        if self.cluster:
            shutil.rmtree(self.cluster, ignore_errors=True)

    def environment(self, clone: Path) -> dict[str, str]:
        """What an environment installed from the clone would do: its packages come first."""
        return {**self.env, "PYTHONPATH": str(clone)}

    def spawn(
        self, name: str, arguments: list[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """A Python process with its output in folder/NAME.log, in a group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={**self.env, **(env or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def clone(self, name: str) -> Path:
        """A clone of the source, as a host has one."""
        path = self.folder / name
        if not path.exists():
            subprocess.run(["git", "clone", "-q", str(self.source), str(path)], check=True)
        return path

    def worker(
        self, name: str, pool: str, clone: str | None = None, queue: str | None = None, **env: str
    ) -> Path:
        """A process worker of one run at a time in its clone, of one queue of the pool or of all;
        returns the clone.
        """
        place = self.clone(clone or name)
        command = ["-m", "prefect", "worker", "start", "--pool", pool, "--limit", "1"]
        command += ["--name", name]
        command += ["--work-queue", queue] if queue else []
        self.spawn(name, command, place, {**self.environment(place), **env})
        return place

    def kill(self, name: str) -> None:
        """SIGKILL to a process, to everything in its group, and to what it started."""
        process = self.processes.pop(name)
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def crash(self, name: str) -> None:
        """SIGKILL to a worker and to the run that it started, and to nothing else: what they
        started has to see it.
        """
        process = self.processes.pop(name)
        for pid in [process.pid, *children().get(process.pid, [])]:
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def call(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """One call of Prefect's REST API; asked again, as its client does, when SQLite is locked,
        which it calls 503.
        """
        for pause in (1, 2, 4, 8, 16, 0):
            answer = self.http.request(method, f"{self.api}/{path}", json=content)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(pause)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def post(self, path: str, **content: Any) -> Any:
        """One call that asks or makes."""
        return self.call("POST", path, content)

    def patch(self, path: str, **content: Any) -> None:
        """One changing call."""
        self.call("PATCH", path, content)

    def get(self, path: str) -> Any:
        """One reading call."""
        return self.call("GET", path)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run; its id."""
        found = self.get(f"deployments/name/{deployment}")
        return str(
            self.post(
                f"deployments/{found['id']}/create_flow_run",
                parameters=parameters,
                state={"type": "SCHEDULED"},
            )["id"]
        )

    def call_crashed(self, run: str) -> None:
        """Mark a run as crashed, as the automation does to a run without heartbeats, and wait until
        the run's next heartbeat marks it as running again.
        """
        crashed = {"type": "CRASHED", "message": "no heartbeats from the worker"}
        self.post(f"flow_runs/{run}/set_state", state=crashed, force=True)
        wait_for(lambda: self.state(run)["type"] == "RUNNING", 60, "a heartbeat of the run")

    def state(self, run: str) -> dict[str, Any]:
        """The present state of a run."""
        return dict(self.get(f"flow_runs/{run}")["state"] or {})

    def finished(self, run: str, seconds: float = 1800) -> dict[str, Any]:
        """The final state of a run, waited for."""
        wait_for(
            lambda: self.state(run).get("type") in FINAL,
            seconds,
            f"run {run}, {self.get(f'flow_runs/{run}')['name']}",
        )
        return self.state(run)

    def cancel(self, run: str) -> None:
        """What `prefect flow-run cancel` does."""
        self.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})

    def logs(self, run: str) -> str:
        """The lines of a run and of its tasks."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.post(
                "logs/filter",
                logs={"flow_run_id": {"any_": [run]}},
                sort="TIMESTAMP_ASC",
                limit=200,
                offset=len(found),
            )
            found += page
            if len(page) < 200:
                return "\n".join(row["message"] for row in found)

    def tasks(self, run: str) -> list[dict[str, Any]]:
        """The task runs of a run."""
        return list(self.post("task_runs/filter", task_runs={"flow_run_id": {"any_": [run]}}))

    def log_files(self) -> str:
        """What all processes printed."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))
        )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
