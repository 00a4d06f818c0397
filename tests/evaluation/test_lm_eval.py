"""The tasks for lm-evaluation-harness: they load there, and their rows are those of our own evaluations."""

import importlib.util
import json
import sys
import types

import pytest
import sacrebleu
import yaml
from conftest import ROOT

FOLDER = ROOT / "configs" / "lm_eval"


class Loader(yaml.SafeLoader):
    """lm-eval's tag for a function of a file beside the YAML."""


Loader.add_constructor("!function", lambda loader, node: f"function {node.value}")


@pytest.fixture
def tasks(monkeypatch):
    """The Python file of the tasks; datasets is lm-eval's, and need not be here."""

    class Dataset:
        from_list = staticmethod(list)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(Dataset=Dataset))
    spec = importlib.util.spec_from_file_location("fastling_tasks", FOLDER / "fastling_tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["fastling_exam", "fastling_translation"])
def test_a_task_names_functions_that_exist_and_fields_that_rows_have(tasks, name, tmp_path):
    config = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    assert config["task"] == name and config["test_split"] == "test"
    text = json.dumps(config)
    for function in {part.split('"')[0] for part in text.split("function fastling_tasks.")[1:]}:
        assert callable(getattr(tasks, function))
    (tmp_path / "s").write_text("你好\n")
    (tmp_path / "q").write_text(json.dumps({"question": "x", "options": ["(A)a", "(B)b"], "label": "B"}))
    rows = {
        "fastling_exam": lambda: tasks.exam(tmp_path / "q", version=1.0),
        "fastling_translation": lambda: tasks.translation(tmp_path / "s", tmp_path / "s", "en", version=1.0),
    }[name]()["test"]
    fields = {part.split("}}")[0] for part in text.split("{{")[1:]} | ({"gold"} & {config["doc_to_target"]})
    assert fields and fields <= rows[0].keys()


def test_the_exam_has_single_choices_only_with_the_right_letter(tasks, tmp_path):
    rows = [
        {"passage": "P", "question": "Q?", "options": ["(A)x", "(B)y"], "label": "B"},
        {"passage": None, "question": "选哪个", "options": ["(A)x", "(B)y"], "label": "A"},
        {"question": "Q?", "options": ["(A)x", "(B)y"], "label": "A B"},
        {"question": "Q?", "options": None, "label": None, "answer": "2"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    english, chinese = tasks.exam(path)["test"]
    assert english == {"text": "P\nQ?\n(A) x\n(B) y\nAnswer:", "choices": ["A", "B"], "gold": 1}
    assert chinese["text"].endswith("答案：") and chinese["gold"] == 0


def test_the_translation_is_scored_by_the_tokenizer_of_its_language(tasks, tmp_path):
    (tmp_path / "s").write_text("Hi\u2028there.\nBye.\n", encoding="utf-8")
    (tmp_path / "r").write_text("你好，世界的人们。\n再见了我的朋友。\n", encoding="utf-8")
    rows = tasks.translation(tmp_path / "s", tmp_path / "r", "zh")["test"]
    assert len(rows) == 2 and rows[1]["text"].strip().endswith("Chinese translation for this sentence: Bye.")
    outputs = ["你好，世界的人。", "再见了\n我的朋友。"]
    shares = [tasks.process_results(row, [output]) for row, output in zip(rows, outputs, strict=True)]
    joined = [output.replace("\n", " ") for output in outputs]
    references = [[row["reference"] for row in rows]]
    expected = sacrebleu.corpus_bleu(joined, references, tokenize="zh").score
    assert tasks.bleu([share["bleu"] for share in shares]) == expected > 1
    assert tasks.chrf([share["chrf"] for share in shares]) == sacrebleu.corpus_chrf(joined, references).score


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_finds_the_tasks():
    from lm_eval.tasks import TaskManager

    names = TaskManager(include_path=str(FOLDER), include_defaults=False).all_tasks
    assert {"fastling_exam", "fastling_translation"} <= set(names)
