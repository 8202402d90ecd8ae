"""The table of systems, and what the flows derive from it."""

from typing import get_args

from tasks.commands import STAGES, evaluation_stages, reporter
from tasks.systems import SYSTEMS, Name


def test_the_flows_take_every_system_and_no_other() -> None:
    assert get_args(Name) == tuple(SYSTEMS)


def test_the_stages_of_a_flow_are_of_its_system_and_end_with_its_report() -> None:
    for system in SYSTEMS:
        stages = evaluation_stages(system)
        assert {STAGES[stage].system for stage in stages} == {system}
        assert stages[-1] == reporter(system) and STAGES[stages[0]].compares
