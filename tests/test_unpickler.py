"""The restricted unpickler builds what is allowed, and neither imports nor calls anything else."""

import io
import pickle
from collections import Counter, OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.files import ForbiddenGlobalError, RestrictedUnpickler

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ALLOWED = {("collections", "OrderedDict"): OrderedDict}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def load(content, allowed=ALLOWED):
    return RestrictedUnpickler(io.BytesIO(content), allowed).load()


@given(PLAIN, st.sampled_from([3, 4, 5]))
def test_plain_objects_are_read(value, protocol):
    assert load(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_allowed_classes_are_built(protocol):
    value = OrderedDict(a=1, b=[2])
    found = load(pickle.dumps(value, protocol=protocol))
    assert type(found) is OrderedDict
    assert found == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [exec, eval, __import__, getattr], ids=lambda function: function.__name__)
def test_calls_are_refused_and_named(function, protocol, tmp_path):
    call = Call(function, f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ForbiddenGlobalError, match=rf"^(builtins|__builtin__)\.{function.__name__}$"):
        load(pickle.dumps(call, protocol=protocol))
    assert not list(tmp_path.iterdir())


def test_other_names_of_an_allowed_module_are_refused():
    with pytest.raises(ForbiddenGlobalError, match=r"^collections\.Counter$"):
        load(pickle.dumps(Counter("a")))


def test_attributes_of_an_allowed_class_are_refused():
    """Protocol 4 has dotted names."""
    with pytest.raises(ForbiddenGlobalError, match=r"^collections\.OrderedDict\.fromkeys$"):
        load(b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.")


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "module_with_an_effect.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ForbiddenGlobalError, match=r"^module_with_an_effect\.name$"):
        load(b"cmodule_with_an_effect\nname\n.")


def test_a_name_may_be_replaced_by_another_function():
    assert load(pickle.dumps(Call(exec, "1 + 1")), {("builtins", "exec"): len}) == 5
