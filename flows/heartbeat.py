"""A run that is marked crashed and is alive takes that back.

The automation that marks dead runs (flows/setup.py) goes by heartbeats. A server that was away for
longer than its window has heard none of anybody: the moment it is back it marks the living as well.
"""

import time
from contextlib import suppress

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.states import Running

EVERY_S = 15.0


class Heartbeat:
    """The flow run that it is made in: `update` now and then, from any thread. A server that is
    away is asked the next time.
    """

    def __init__(self) -> None:
        self._run = runtime.flow_run.id
        self._next = time.monotonic() + EVERY_S

    def update(self) -> None:
        """Look, at most every EVERY_S seconds, and say that it is running."""
        if self._run is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        # Whatever it is: the caller stops the trainer for any exception, and only Prefect's and the
        # user's are meant for it.
        with suppress(Exception), get_client(sync_client=True) as client:
            state = client.read_flow_run(self._run).state
            if state is not None and state.is_crashed():
                client.set_flow_run_state(
                    self._run,
                    Running(message="heartbeats resumed after a server outage"),
                    force=True,
                )
