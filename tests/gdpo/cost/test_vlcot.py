"""RealSR-R1's cost against arithmetic by hand."""

import pytest

from gdpo.cost import vlcot as cost
from tasks.tools.cost import describe_vlcot, vlcot


def test_the_tokens_of_a_chain() -> None:
    found = cost.tokens(512)
    assert found.images == (276, 1060, 4164) and sum(found.images) == 5500
    assert (found.prompt, found.total) == (4334, 10164)
    with pytest.raises(ValueError, match="multiple of 128"):
        cost.tokens(500)


def test_parameters_memory_and_operations_by_hand() -> None:
    model = cost.trunk()
    mlp, attention = 3 * 4096 * 11008, 4 * 4096 * 4096
    linear = 32 * (mlp + attention) + 73_728 * 4096
    forward = cost.forward_macs(model, 1000)
    assert forward.linear == 1000 * linear
    assert forward.attention == 2 * 32 * 1000 * 1000 * 4096
    found = cost.memory(model, 10_000)
    assert found["keys and values, per token"] == 2 * 2 * 32 * 4096 == 524_288
    assert found["weights"] / 1e9 == pytest.approx(14.16, abs=0.02)
    assert cost.lora_parameters(model) == 32 * 16 * (4 * 8192 + 3 * (4096 + 11008))


def test_the_table_names_every_figure() -> None:
    result = vlcot(512, "rl")
    assert result["macs"]["learning"] == 4 * result["macs"]["writing"]
    assert result["macs"]["writing"] == 5 * result["macs"]["one chain"]
    text = describe_vlcot(result)
    assert "7.08 B parameters" in text and "276 + 1060 + 4164" in text
    with pytest.raises(ValueError, match="infer and rl"):
        vlcot(512, "pretrain")
