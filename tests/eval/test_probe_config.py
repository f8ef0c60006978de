"""Which options of probes go together, and where an extension must change nothing."""

import pytest
from models import tiny

from jaxlm.errors import ConfigError
from jaxlm.eval.probe_config import Probes, short_lengths, window_of
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling, SelfExtend

MODEL = tiny(max_length=32)
SLIDING = tiny(max_length=32, attention_pattern=("global", "sliding"), sliding_window=8)


@pytest.mark.parametrize(
    ("extension", "trained", "exact"),
    [
        (Extension(self_extend=SelfExtend(group_size=4, window_size=16)), MODEL, 16),
        (Extension(self_extend=SelfExtend(group_size=4, window_size=16, scale_base=10.5)), MODEL, 9),
        (Extension(self_extend=SelfExtend(group_size=4, window_size=16, scale_base=1.5)), MODEL, 0),
        (Extension(self_extend=SelfExtend(window_size=64), max_length=64), MODEL, 32),
        (Extension(attention_window=12), MODEL, 12),
        (Extension(attention_window=12), SLIDING, 8),
        (Extension(attention_window=4), SLIDING, 4),
        (Extension(attention_window=400), MODEL, 32),
        (Extension(max_length=64), MODEL, 32),
        (Extension(rope_scaling=RopeScaling(kind="yarn", factor=2.0)), MODEL, 0),
    ],
)
def test_up_to_where_nothing_may_change(extension, trained, exact):
    assert window_of(extension, trained) == exact
    assert short_lengths((20, 33), extension, trained) == sorted({20, exact} - {0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"probe": ("copy",), "stride": 4}, "--stride has a part in --probe positions alone"),
        ({"probe": ("copy",), "whole_documents": True}, "--whole-documents has a part in --probe positions or short alone"),
        ({"probe": ("copy",), "rows": 9}, "--rows has a part"),
        ({"probe": ("positions",), "trials": 9}, "--trials has a part in --probe passkey or needle or copy alone"),
        ({"probe": ("tasks",), "tasks": "file", "depths": (0.5,)}, "--depths has a part"),
        ({"probe": ("copy",), "chat": True}, "--chat has a part in --probe passkey or needle alone"),
        ({"probe": ("copy",), "depths": (0.5, 0.5)}, "--depths takes one depth or more, each of them once"),
        ({"probe": ("copy",), "depths": ()}, "--depths takes one depth or more"),
    ],
)
def test_options_with_nothing_to_act_on(options, said):
    with pytest.raises(ConfigError, match=said):
        Probes(**options)
