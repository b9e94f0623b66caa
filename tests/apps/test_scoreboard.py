from apps.driving import Open, drawn


def test_runs_stand_beside_each_other_sorted_and_searched(open_app: Open):
    page = drawn(open_app(view="scoreboard", sort="reconstruction.fvu"))
    assert "FVU" in page
    assert 'aria-sort="ascending"' in page
    assert ">plain</a>" in page
    assert ">signed</a>" in page
    found = drawn(open_app(view="scoreboard", q="SIGNED topk"))
    assert ">plain</a>" not in found.split("<table>")[-1]
    assert "No run is found" in drawn(open_app(view="scoreboard", q="no such"))


def test_figures_can_be_chosen(open_app: Open):
    page = drawn(open_app(view="scoreboard", figures="reconstruction.fvu,none", plot="none"))
    table = page.split("<thead>")[1].split("</thead>")[0]
    assert table.count("<th") == 4  # The run, its variant and its site come first.
    assert "choose figures" in page
