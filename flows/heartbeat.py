"""Sets a flow run back to Running if the server marked it Crashed while it was running.

An automation (flows/setup.py) marks a flow run Crashed when its heartbeats stop. After an outage
longer than the automation's window the server has received no heartbeats at all. When it is back it
also marks the flow runs Crashed that are still running.
"""

import time
from contextlib import suppress

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running

EVENT = "prefect.flow-run.heartbeat"  # Prefect's own name
EVERY_S = 15.0


class Heartbeat:
    """Checks the flow run in which it was created. Call `update` regularly, from any thread.

    If the server does not answer, the next check tries again.
    """

    def __init__(self) -> None:
        self._run = runtime.flow_run.id
        self._next = time.monotonic() + EVERY_S

    def update(self) -> None:
        """Read the state, at most every EVERY_S seconds, and set Running if it is Crashed."""
        if self._run is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        # Suppress every error: the caller stops the trainer on any exception. Prefect's
        # TerminationSignal and KeyboardInterrupt are no `Exception` and still get through.
        with suppress(Exception), get_client(sync_client=True) as client:
            state = client.read_flow_run(self._run).state
            if state is not None and state.is_crashed():
                # After a heartbeat the automation waits for the run's next event, and Crashed was
                # one. Without a heartbeat now, a host that fails before the next one would leave
                # the run Running for ever.
                emit_event(EVENT, resource={"prefect.resource.id": f"prefect.flow-run.{self._run}"})
                client.set_flow_run_state(
                    self._run,
                    Running(message="heartbeats resumed after a server outage"),
                    force=True,
                )
