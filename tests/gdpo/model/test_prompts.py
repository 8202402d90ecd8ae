"""What the text encoder reads: tags or a user's words, then the fixed text."""

import pytest

from gdpo.model.prompts import compose, join


@pytest.mark.parametrize(
    ("tags", "suffix", "prompt"),
    [
        # Released inference.
        (
            "grass, sky",
            "clean, high-resolution, 8k,",
            "grass, sky, clean, high-resolution, 8k,",
        ),
        ("grass, sky", "", "grass, sky, "),  # released training
        ("", "clean", "clean"),
        (None, "clean", "clean"),
        (None, "", ""),
    ],
)
def test_prompts_are_composed_as_released(tags: str | None, suffix: str, prompt: str) -> None:
    assert compose(tags, suffix) == prompt


def test_words_of_several_sources_are_joined_by_one_comma() -> None:
    assert join("grass, sky", " a lighthouse, ") == "grass, sky, a lighthouse"
    assert join(None, "a lighthouse") == "a lighthouse"
    assert join("", " , ") == join(None) == ""
