from __future__ import annotations

import pytest

from probe import errors


def test_message_is_built_from_the_parts() -> None:
    e = errors.BadInput("skill_ratio selects nothing.", given=0.001, expected="(0, 1]", fix="raise it to 0.004")
    assert str(e) == "skill_ratio selects nothing; given: 0.001; expected: (0, 1]; fix: raise it to 0.004"
    assert e.to_dict() == {
        "error": "BadInput",
        "what": "skill_ratio selects nothing.",
        "given": "0.001",
        "expected": "(0, 1]",
        "nearest": [],
        "fix": "raise it to 0.004",
    }


def test_unknown_name_gives_the_nearest() -> None:
    e = errors.unknown_name("concept", "churh", ["church", "castle", "dog"])
    assert isinstance(e, errors.UnknownName)
    assert isinstance(e, LookupError)
    assert e.nearest[0] == "church"
    assert "church" in str(e)


@pytest.mark.parametrize(("cls", "base"), [(errors.BadInput, ValueError), (errors.MissingExtra, ImportError)])
def test_errors_are_also_their_builtin_kin(cls: type, base: type) -> None:
    assert issubclass(cls, base)
    assert issubclass(cls, errors.WorkbenchError)
