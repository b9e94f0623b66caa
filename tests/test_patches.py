"""What the suite replaces of other packages' own is still there, and still replaces it.

Each saves minutes and none decides a result: the suite runs without them, more slowly.
"""

import pkgutil

import pytest

REPLACED = {
    "jaxtyping:jaxtyped": "tests/shape_checks.py",
    "jaxtyping._import_hook:_optimized_cache_from_source": "tests/shape_checks.py",
    "jaxtyping._import_hook:_JaxtypingLoader.get_code": "tests/covered.py",
    "jaxtyping._import_hook:_JaxtypingLoader.exec_module": "tests/covered.py",
    "triton.runtime.interpreter:_LangPatchScope": "tests/interpreted.py",
    "triton.runtime.interpreter:_patch_lang": "tests/interpreted.py",
    "streamlit.components.v2.manifest_scanner:scan_component_manifests": "tests/apps/driving.py",
    "xdist.scheduler:LoadScopeScheduling._split_scope": "tests/conftest.py",
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_the_suite_replaces_is_there(name):
    package = name.partition(":")[0].partition(".")[0]
    pytest.importorskip(package)
    try:
        assert callable(pkgutil.resolve_name(name))
    except (ImportError, AttributeError):
        pytest.fail(f"{package} has no {name} any more; {REPLACED[name]} replaces it in vain.")


def test_components_are_looked_for_once():
    from apps.driving import looked_for
    from streamlit.testing.v1 import AppTest

    for _ in range(2):
        AppTest.from_string("import streamlit as st; st.write(1)").run()
    looked = looked_for.cache_info()
    assert looked.misses == 1, "streamlit does not look for components by manifest_scanner's name"
    assert looked.hits > 0


def test_a_kernel_prepares_its_language_once():
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from interpreted import prepare_once_for_each_kernel

    prepare_once_for_each_kernel()
    assert hasattr(interpreter._patch_lang, "__wrapped__"), "Triton prepares it each time"
