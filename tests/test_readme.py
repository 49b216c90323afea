"""The code in the README runs."""

import ast
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=["module", "search", "solved layer"])
def test_code_of_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, README, "exec"), {})
    printed = capsys.readouterr().out.strip()
    if "cross_val_score" in code:
        assert float(printed) > 0.9
    elif "GridSearchCV" in code:
        assert set(ast.literal_eval(printed)) == {"backbone__width", "lr", "prox"}
    else:
        assert printed == "True"
