"""TRL's tokenization and packing, for benchmarks.data: python -m benchmarks.trl_data FOLDER ROWS CORES LENGTH

Loss on the assistant's turns only, best-fit packing, all cores: what its documentation recommends.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

# BayLing's, with the marks by which TRL finds what the assistant says.
TEMPLATE = (
    "{{ bos_token }}I am an intelligent language assistant developed by the NLP Group of ICT/CAS.\n"
    "Below is a dialog consisting of instructions and responses. Write a response that completes the request."
    "\n\n{% for message in messages %}{% if message['role'] == 'user' %}### Instruction:\n"
    "{{ message['content'] }}\n{% else %}### Response:\n"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}\n{% endif %}{% endfor %}"
)


def main(folder: Path, rows: str, processes: int, length: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        packing=True,
        max_length=length,
        assistant_only_loss=True,
        dataset_num_proc=processes,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    dataset = load_dataset("json", data_files=rows, split="train")
    trainer = SFTTrainer(model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    began = time.perf_counter()  # counting is no work of TRL's
    packed = trainer.train_dataset.with_format("numpy")
    tokens = sum(len(row["input_ids"]) for row in packed)
    supervised = sum(int((row["labels"] != -100).sum()) for row in packed)
    counting = time.perf_counter() - began
    print(json.dumps({"tokens": tokens, "supervised_tokens": supervised, "counting_seconds": counting}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
