"""The words of the page of RealSR-R1, on the paper's example."""

import numpy as np

from gdpo.vlcot.parse import Parsed
from gdpo.vlcot.spoken import Cut
from tasks.report.vlcot_page import _marked

TRUE = ["light blur", "downsample", "medium noise", "light compression", "upsample"]


def parsed(**slots: str) -> Parsed:
    return Parsed(text="", slots=slots, settled={}, images=[], length=0, ended=True)


def marked(chain: Parsed) -> dict[str, list[tuple[str, ...]]]:
    picture = np.zeros((4, 4, 3), np.uint8)
    return _marked(Cut("a", picture, picture, TRUE, ("lion", "rock", "sky", "cloud")), chain)


def test_right_and_wrong_words_are_marked_as_the_rewards_count_them() -> None:
    found = marked(
        parsed(
            degradation="medium blur, downsample,  heavy noise, light compression, upsample",
            rough_understand="lions lying on a rock, open sky",
            final_understand="a <b>",
        )
    )
    assert [right for _, right, _ in found["terms"]] == [False, True, False, True, True]
    assert found["terms"][2] == ("heavy noise", False, "medium noise")
    assert found["tags"] == [("lion", True), ("rock", True), ("sky", True), ("cloud", False)]
    assert found["captions"] == [
        ("rough", "lions lying on a rock, open sky"),
        ("middle", ""),
        ("final", "a <b>"),
    ]


def test_a_chain_without_words_is_wrong_everywhere() -> None:
    found = marked(parsed())
    assert [(word, right) for word, right, _ in found["terms"]] == [("nothing", False)] * 5
    assert not any(named for _, named in found["tags"])
