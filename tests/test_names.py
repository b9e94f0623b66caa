"""A name means one thing: no class of the package shares its name with another."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def classes_by_name(folder: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(folder)))
    return found


def test_no_class_name_means_two_things():
    twice = {name: at for name, at in classes_by_name(ROOT / "saelab").items() if len(at) > 1}
    assert twice == {}


def test_a_second_class_of_a_name_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text("class Step:\n    pass\n")
    (tmp_path / "b.py").write_text("if True:\n    class Step:\n        pass\n")
    assert classes_by_name(tmp_path)["Step"] == ["a.py", "b.py"]
