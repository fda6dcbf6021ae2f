"""Names of adapters: what can be one, and that no text is read as another's than it names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.errors import BadInput
from memos_vllm.parameter.names import AdapterName, checked_name, parsed, written

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
OWNERS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=128)
VERSIONS = st.none() | st.integers(1, 999_999_999)

# On a busy machine a call may take longer than hypothesis allows for one.
relaxed = settings(deadline=None, max_examples=50)


@given(st.just("") | OWNERS, NAMES, VERSIONS)
@relaxed
def test_what_is_written_is_read_back(owner: str, name: str, version: int | None) -> None:
    assert checked_name(name) == name
    assert parsed(written(owner, name, version)) == AdapterName(owner, name, version)


@given(st.text(max_size=300) | st.from_regex(r"([a-z./@ ]{0,5}/)?[a-z.]{0,4}(@v?[0-9]{0,3})?", fullmatch=True))
@relaxed
def test_any_text_names_one_adapter_or_none(text: str) -> None:
    named = parsed(text)
    if named is not None:
        assert written(*named) == text
        assert checked_name(named.name) == named.name


@given(st.text(max_size=70))
@relaxed
def test_a_name_can_stand_in_a_path_and_a_url(name: str) -> None:
    try:
        checked_name(name)
    except BadInput:
        return
    assert name.isascii() and name == name.lower() and not set(name) & set("/\\@%?#\0 \n") and name not in (".", "..")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../poet", "/etc/passwd", "Poet", "poët", "a" * 64, "-poet", "poet@v1", "a/b", "poet\n", "a b"],
)
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(BadInput, match="cannot be an adapter's name"):
        checked_name(name)


@pytest.mark.parametrize(
    "text", ["poet@v0", "poet@v01", "poet@1", "poet@v", "poet@v1@v2", "/poet", "maya/", "", "poet\n"]
)
def test_what_names_no_adapter(text: str) -> None:
    assert parsed(text) is None


def test_an_owner_may_have_slashes_and_at_signs() -> None:
    assert parsed("a@b.org/team/poet@v3") == AdapterName("a@b.org/team", "poet", 3)
    assert parsed("../../poet") == AdapterName("../..", "poet", None)
