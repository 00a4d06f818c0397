"""An export in transformers 4, in an environment of its own: the other tests have transformers 5."""

import json
import subprocess

import pytest
from readers.conftest import prompts_and_answers
from readers.servers import READERS

pytestmark = pytest.mark.slow
PYTHON = READERS / "transformers4/bin/python"
# Prompt ids and answers of the conversations on standard input.
PROGRAM = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for messages in json.load(sys.stdin):
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=60)[0].tolist()
    prompt = inputs["input_ids"][0].tolist()
    answer = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    print(json.dumps({"prompt": prompt, "answer": answer, "last": ids[-1]}))
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="no transformers 4; `make readers` installs it")
def test_it_says_what_it_was_taught_and_stops(learned, messages):
    pairs = list(prompts_and_answers())
    result = subprocess.run(
        [PYTHON, "-c", PROGRAM, learned.folder],
        input=json.dumps([messages(asked) for asked, _ in pairs]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    replies = [json.loads(line) for line in result.stdout.splitlines()]
    for (asked, answer), reply in zip(pairs, replies, strict=True):
        assert reply["prompt"] == learned.encoder.prompt_ids(asked)
        assert reply["answer"].strip() == answer.strip()
        assert reply["last"] in learned.encoder.stop_ids
