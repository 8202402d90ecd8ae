"""The automations on the Prefect server; `flows.setup` creates or updates them.

dead runs       without heartbeats: marked Crashed
runs that never began
                PENDING, and the worker's host has died: marked Crashed
cancelled runs  that no worker ended: marked Cancelled
after training  a completed flow run of gdpo-train/a100 is evaluated
alerts          a flow run that failed, crashed or is late is reported to a web hook, or by e-mail
"""

from datetime import timedelta
from typing import cast
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, Posture, ResourceSpecification
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.types import SecretDict
from pydantic import SecretStr

from flows import heartbeat

ALERTS_BLOCK = "gdpo-alerts"
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


_ENDS = _events("Completed", "Failed", "Cancelled", "Crashed")
# What may follow PENDING: the flow begins or ends, or goes back to the queue.
_AFTER_PENDING = _ENDS | _events(
    *("Running", "Retrying", "Resuming", "Cancelling", "Paused", "Suspended"),
    *("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot"),
)


def crash_the_dead(window: timedelta) -> Automation:
    """The automation that marks a flow run Crashed after `window` without a heartbeat.

    A self-hosted server does not do this by itself. Without the automation, a flow run whose host
    failed would stay Running for ever.
    """
    return _change(
        "gdpo: mark dead runs crashed",
        StateType.CRASHED,
        "no sign of life from the worker",
        EventTrigger(
            after={heartbeat.EVENT},
            # An end counts as a sign of life: no further heartbeat follows it.
            expect={heartbeat.EVENT} | _ENDS,
            match=_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=window,
        ),
    )


def crash_the_unbegun(window: timedelta) -> Automation:
    """The automation that marks a flow run Crashed that a worker took and did not begin in time.

    Such a run sends no heartbeats. It would stay PENDING for ever, and keep a queue of one.
    """
    return _change(
        "gdpo: mark runs crashed that never began",
        StateType.CRASHED,
        "its worker took it and did not begin it",
        EventTrigger(
            after=_events("Pending"),
            expect=_AFTER_PENDING,
            match=_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=window,
        ),
    )


def end_the_cancelled(window: timedelta) -> Automation:
    """The automation that marks a flow run Cancelled that was cancelled and did not end in time.

    Without it a run whose worker has died would stay Cancelling for ever: from this state the
    server lets a run go to Cancelled only, so neither of the two above can mark it Crashed.
    """
    return _change(
        "gdpo: end cancelled runs",
        StateType.CANCELLED,
        "its worker did not end it",
        EventTrigger(
            after=_events("Cancelling"),
            expect=_ENDS,
            match=_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=window,
        ),
    )


def _change(name: str, state: StateType, message: str, trigger: EventTrigger) -> Automation:
    change = ChangeFlowRunState(state=state, name=None, message=message)
    return Automation(name=name, trigger=trigger, actions=[change])


def evaluate_after_training(train: UUID, evaluate: RunDeployment) -> Automation:
    """The automation that evaluates each completed flow run of the deployment `train`."""
    return Automation(
        name="gdpo: evaluate after training",
        trigger=EventTrigger(
            expect=_events("Completed"),
            match=_RUNS,
            match_related=ResourceSpecification(
                {"prefect.resource.id": f"prefect.deployment.{train}"}
            ),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[evaluate],
    )


def alert(block: UUID) -> Automation:
    """The automation that tells the block which flow run failed, crashed or is late."""
    return Automation(
        name="gdpo: alerts",
        trigger=EventTrigger(
            expect=_events("Failed", "TimedOut", "Crashed", "Late"),
            match=_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def alerts_block(url: str) -> UUID:
    """Save what takes alerts, and return its id; the URL is kept as a secret.

    url: a web hook, which gets {"text": ...} by POST, as the incoming web hooks of Slack and
    Mattermost expect; or an address of e-mail in Apprise's form,
    mailtos://USER:PASSWORD@SMTP-HOST?from=ADDRESS&to=ADDRESS.
    """
    if url.startswith("mailto"):
        # The only block of the server that hands its URL to Apprise whatever its kind.
        mail = SlackWebhook(url=SecretStr(url))
        return cast(UUID, mail.save(f"{ALERTS_BLOCK}-mail", overwrite=True))
    block = CustomWebhookNotificationBlock(
        name=ALERTS_BLOCK,
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"address": url}),
    )
    return cast(UUID, block.save(ALERTS_BLOCK, overwrite=True))


def put(wanted: Automation) -> None:
    """Create an automation, or make the one of its name equal to it."""
    try:
        there = cast(Automation, Automation.read(name=wanted.name))
    except ValueError:  # there is no automation of this name
        wanted.create()
        return
    # Updated and not made again: two of one name would both act. Enabled, also if somebody has
    # switched it off.
    there.trigger, there.actions, there.enabled = wanted.trigger, wanted.actions, True
    there.update()
