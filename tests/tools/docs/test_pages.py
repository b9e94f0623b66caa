"""Pages that are made from the source have all of it."""

import ast

import pytest
from sources import ROOT

import saelab
from saelab.cli import VERBS
from tools.docs import api, commands, errors, links, notebooks


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("f'{path} is {n:,} long; cut it.'", "<path> is <n> long; cut it."),
        ("'a ' + f'{self.name!r}' 'b'", "a <name>b"),
        ("f'{len(x)} of {most._part}'", "<...> of <part>"),
        ("SENTENCE.format(name=1)", "<sentence>"),
    ],
)
def test_values_have_names_in_a_sentence(code, text):
    assert errors.template(ast.parse(code, mode="eval").body) == text


def test_every_sentence_is_on_the_page_of_errors(monkeypatch):
    root = ROOT / "saelab" / "activations"
    monkeypatch.setattr(errors, "PLACES", {"saelab.activations": root})
    calls = [path.read_text().count("raise UsageError(") for path in root.rglob("*.py")]
    page = errors.page()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    # A few raise what another function says.
    assert 0.9 * sum(calls) < len(rows) - 2
    assert all(row.count("|") == 4 for row in rows)
    assert "pip install 'saelab&#91;hub]'" in page
    assert "`hub_documents`" in page


def test_every_public_name_is_in_the_reference_once():
    names = [name.rpartition(".")[2] for found in api.places().values() for name in found]
    assert sorted(names) == dir(saelab)


def test_every_verb_has_a_page_with_its_help():
    pages = dict(commands.pages())
    assert {commands.place(verb) for verb in VERBS} == set(pages) - {commands.INDEX}
    assert "usage: saelab train topk " in pages[commands.place("train")]
    assert "usage: saelab bench step" in pages[commands.place("bench")]


def test_links_out_of_the_documentation_lead_to_copies():
    text = "[a](../CONTRIBUTING.md#x) ![b](../apps/p.png) [c](gpu.md) [d](https://e.org)"
    changed = links.rewritten("docs/index.md", text)
    assert changed == (
        "[a](source/CONTRIBUTING.md#x) ![b](source/apps/p.png) [c](gpu.md) [d](https://e.org)"
    )
    back = links.rewritten("saelab/kernels/README.md", "[a](../../docs/gpu.md)")
    assert back == "[a](../../../gpu.md)"
    found = links.beside((ROOT / "docs").rglob("*.md"))
    assert {"CONTRIBUTING.md", "activations_cache/README.md"} <= set(found)


def test_a_notebooks_outputs_are_shown_and_cannot_end_its_scripts():
    import nbformat.v4 as v4

    cell = v4.new_code_cell("1 + 1")
    figure = {"data": [{"name": "</script>"}], "layout": {}}
    cell.outputs = [
        v4.new_output("stream", name="stdout", text="<b>" + "x" * 5000),
        v4.new_output("display_data", data={"application/vnd.plotly.v1+json": figure}),
    ]
    shown = [notebooks.output_html(each) for each in cell.outputs]
    assert shown[0].startswith('<pre class="output">&lt;b&gt;')
    assert "and 1003 more characters" in shown[0]
    assert shown[1].count("</script>") == 1
