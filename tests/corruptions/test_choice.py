"""Which corruptions a command line means."""

from __future__ import annotations

import pytest

from sve_cli.corruptions import choose, keyed_rng, require_severities
from sve_cli.errors import SveError
from sve_cli.registry import CORRUPTIONS


def names(wanted: list[str], modality: str) -> list[str]:
    return [corruption.name for corruption in choose(wanted, modality)]


def test_all_that_suit_the_inputs() -> None:
    assert len(names(["all"], "image")) == 11 and len(names(["all"], "text")) == 6
    assert names(["all"], "multiple_choice") == names(["all"], "text")
    assert set(names(["all"], "image")) | set(names(["all"], "text")) == set(CORRUPTIONS)
    assert names(["none"], "text") == []


def test_groups_and_names_come_once_and_in_one_order() -> None:
    assert names(["jpeg", "noise", "gaussian_noise"], "image") == ["gaussian_noise", "shot_noise", "jpeg"]
    assert names(["case"], "text") == ["upper_case", "random_case"]
    groups = {c.group for c in choose(["all"], "image")}
    assert groups == {"noise", "blur", "weather", "digital"} and {c.group for c in choose(["all"], "text")} == {
        "typos",
        "drops",
        "case",
    }


@pytest.mark.parametrize(
    ("wanted", "modality", "saying"),
    [
        (["gausian_noise"], "image", "Unknown corruption 'gausian_noise'. Did you mean 'gaussian_noise'?"),
        (["typoss"], "text", "Did you mean 'typos'?"),
        (["fog"], "text", "'fog' corrupts images, and this run reads texts. For texts: swap_letters"),
        (["weather"], "multiple_choice", "'weather' corrupts images"),
        (["keyboard"], "image", "'keyboard' corrupts texts, and this run reads images."),
        (["none", "fog"], "image", "'none' stands among other corruptions"),
    ],
)
def test_what_is_not_there_is_refused(wanted: list[str], modality: str, saying: str) -> None:
    with pytest.raises(SveError) as caught:
        choose(wanted, modality)
    assert saying in str(caught.value)


def test_severities() -> None:
    assert require_severities([5, 1, 5]) == [1, 5]
    for wrong, saying in (([0], "There is no severity 0"), ([1, 9], "There is no severity 9"), ([], "No severity is named")):
        with pytest.raises(SveError, match=saying):
            require_severities(wrong)


def test_every_entry_is_what_its_name_says() -> None:
    for name in CORRUPTIONS:
        corruption = CORRUPTIONS.resolve(name)
        assert corruption.name == name and corruption.title and corruption.sentence.endswith(".")
        strengths = [corruption.small, corruption.large] if corruption.modality == "image" else [corruption.shares]
        assert all(len(table) == 5 for table in strengths) and corruption.strengths()


def test_draws_are_keyed() -> None:
    key = (0, "fog", 3, "id7")
    assert keyed_rng(*key).random() == keyed_rng(*key).random()
    others = [(1, "fog", 3, "id7"), (0, "snow", 3, "id7"), (0, "fog", 4, "id7"), (0, "fog", 3, "id8"), (0, "fog", "3", "id7")]
    assert len({keyed_rng(*k).random() for k in [key, *others]}) == 6
