"""The automations on the Prefect server; `flows.setup` creates or updates them.

no heartbeats   a Running flow run whose heartbeats stopped is marked Crashed
never started   a flow run that stays Pending, as its worker's host has failed, is marked Crashed
not ended       a cancelled flow run that its worker did not end is marked Cancelled
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
# What may follow Pending: the flow starts or ends, or goes back to the queue.
_AFTER_PENDING = _ENDS | _events(
    "Running",
    "Retrying",
    "Resuming",
    "Cancelling",
    "Paused",
    "Suspended",
    "Scheduled",
    "Late",
    "AwaitingRetry",
    "AwaitingConcurrencySlot",
)


def mark_crashed_without_heartbeats(window: timedelta) -> Automation:
    """The automation that marks a flow run Crashed after `window` without a heartbeat.

    A self-hosted server does not do this by itself. Without the automation, a flow run whose host
    failed would stay Running for ever.
    """
    return _change(
        "gdpo: mark dead runs crashed",
        StateType.CRASHED,
        "no heartbeats from the worker",
        EventTrigger(
            after={heartbeat.EVENT},
            # A final state counts too: no heartbeat follows it.
            expect={heartbeat.EVENT} | _ENDS,
            match=_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=window,
        ),
    )


def mark_crashed_if_never_started(window: timedelta) -> Automation:
    """The automation that marks a flow run Crashed if its worker did not start it in time.

    Such a run sends no heartbeats. It would stay Pending for ever, and in a queue of one run no
    other run would start.
    """
    return _change(
        "gdpo: mark runs crashed that never began",
        StateType.CRASHED,
        "its worker took the run and did not start it",
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


def mark_cancelled_if_not_ended(window: timedelta) -> Automation:
    """The automation that marks a cancelled flow run Cancelled if it did not end in time.

    Without it, a run whose worker has failed would stay Cancelling for ever: from this state the
    server allows no state but Cancelled, so the other two automations cannot mark it Crashed.
    """
    return _change(
        "gdpo: end cancelled runs",
        StateType.CANCELLED,
        "its worker did not end the run",
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
    """The automation that notifies `block` of each flow run that failed, crashed or is late."""
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
    """Save the notification block for alerts and return its id; the URL is stored as a secret.

    url: a web hook, which gets {"text": ...} by POST, as the incoming web hooks of Slack and
    Mattermost expect; or an address of e-mail in Apprise's form,
    mailtos://USER:PASSWORD@SMTP-HOST?from=ADDRESS&to=ADDRESS.
    """
    if url.startswith("mailto"):
        # Of the server's blocks only SlackWebhook passes any URL on to Apprise, also mailto.
        mail = SlackWebhook(url=SecretStr(url))
        return cast(UUID, mail.save(f"{ALERTS_BLOCK}-mail", overwrite=True))
    block = CustomWebhookNotificationBlock(
        name=ALERTS_BLOCK,
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"address": url}),
    )
    return cast(UUID, block.save(ALERTS_BLOCK, overwrite=True))


def create_or_update(wanted: Automation) -> None:
    """Create an automation, or update the one that has its name."""
    try:
        existing = cast(Automation, Automation.read(name=wanted.name))
    except ValueError:  # there is no automation of this name
        wanted.create()
        return
    # The server allows two automations of one name, and both would act. Enabled again, in case
    # somebody has disabled it.
    existing.trigger, existing.actions, existing.enabled = wanted.trigger, wanted.actions, True
    existing.update()
