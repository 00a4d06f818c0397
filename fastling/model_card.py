"""The model card of an export: what it was trained from and on, and how to use it."""

import re

import yaml

import fastling
from fastling.config import Config

_HUB_NAME = re.compile(r"(?!models/)[A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*", re.ASCII)
"""Paths that are OWNER/NAME, as models are named on the Hugging Face hub, where nobody owns `models`. The hub
refuses a card whose base model cannot be one of them."""
LANGUAGES = {"zh", "en", "de", "fr", "ja", "es", "ru", "ko", "it", "pt", "ar"}


def model_card(config: Config, template_name: str) -> str:
    """Text of README.md in an export, with the front matter that the Hugging Face hub reads."""
    base = config.model.pretrained
    base_on_hub = base if base and _HUB_NAME.fullmatch(base) else None
    pairs = {part for source in config.data.sources if source.pair for part in source.pair.split("-")}
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": sorted(pairs & LANGUAGES) or None,
        "base_model": base_on_hub,
        "base_model_relation": "finetune" if base_on_hub else None,
        "tags": ["text-generation-inference", "conversational", "fastling", "sft"],
    }
    header = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False)
    sources = "\n".join(f"- {source.name}, weight {source.weight:g}" for source in config.data.sources)
    return (
        f"---\n{header}---\n\n# {config.run_folder.resolve().name}\n\n"
        f"{'Fine-tuned from ' + base if base else 'Trained from scratch'} with fastling "
        f"{fastling.__version__} on conversations, with loss on the assistant's turns only.\n\n"
        f"Data:\n{sources}\n\n"
        f"Template: {template_name}; use the chat template of this folder. It writes all "
        "control tokens: tokenize what it renders with `add_special_tokens=False`.\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n"
        "```\n\n"
        f"Sequence length in training: {config.data.sequence_length} tokens. "
        f"Loss normalised by {config.train.loss}, learning rate {config.optimizer.lr:g}, "
        f"seed {config.seed}.\n"
    )
