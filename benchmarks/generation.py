"""How fast answers are written, beside transformers' generate: python -m benchmarks.generation --out F.jsonl

One LLaMA with random weights is written as a Hugging Face folder and loaded by both. Both continue the same
prompts greedily, sorted by length, and take turns; what they say must be the same token for token, or
nothing is reported. Stop ids are drawn so that answers end at different times. transformers is timed with
each of --batch-sizes, for it has to be told one. Peak memory is that of a process of its own.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.timing import Measurement, add_rows, command_line, describe_machine, make_table_console, now
from fastling.command_line import Parser, check_positive
from fastling.errors import RunError, UserError, run_program
from fastling.model.decoding import Decoding
from fastling.model.generation import generate
from fastling.model.huggingface import load_pretrained

VOCAB_SIZE = 16000
OURS = "fastling"


@dataclass(frozen=True)
class Case:
    """Prompts of `shortest` to `longest` tokens; answers end with chance 1 / mean_answer at each token."""

    name: str
    prompts: int
    shortest: int
    longest: int
    max_new_tokens: int
    mean_answer: int | None

    def prompt_ids(self) -> list[list[int]]:
        """The random prompts of this case, the same every time."""
        chance = random.Random(0)
        lengths = [chance.randint(self.shortest, self.longest) for _ in range(self.prompts)]
        return [[chance.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]

    def stop_ids(self) -> list[int]:
        """A random part of the vocabulary, which a model with random weights generates by chance."""
        if self.mean_answer is None:
            return []
        return sorted(random.Random(1).sample(range(3, VOCAB_SIZE), VOCAB_SIZE // self.mean_answer))


CASES = [
    Case("mixed", 48, 8, 160, 128, 32),
    Case("equal", 16, 64, 64, 32, None),
    Case("one", 1, 64, 64, 64, None),
]
REHEARSAL = [
    Case("mixed", 6, 3, 9, 12, 4),
    Case("equal", 2, 5, 5, 4, None),
    Case("one", 1, 5, 5, 4, None),
]


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if options.only:
        return _report_memory(options)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), small=options.rehearse)
        rows = [row for case in _cases(options) for row in measure(case, Path(folder), options)]
    table = Table("case", "provider", "tokens/s", "ms", "spread", "peak MiB", "times")
    for row in rows:
        names = ("case", "provider", "tokens_per_s", "milliseconds", "spread", "peak_mib")
        rivals = [each for each in rows if each["case"] == row["case"] and each["provider"] != OURS]
        times = row["tokens_per_s"] / max(rival["tokens_per_s"] for rival in rivals)
        table.add_row(*(str(row[name]) for name in names), f"{times:.2f}")
    make_table_console().print(table)
    add_rows(rows, options.out, command_line("generation", arguments))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.generation", __doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--cases", nargs="+", choices=[case.name for case in CASES], help="cases to run (default: all)"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[16, 48], help="batch sizes of transformers"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: its own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model and a few prompts")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_positive(options, ("rounds", "threads"))
    if min(options.batch_sizes) < 1:
        raise UserError("--batch-sizes", f"must be > 0: {min(options.batch_sizes)}")
    if find_spec("transformers") is None:
        raise UserError(parser.prog, "needs the package transformers", "pip install transformers")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device", "PyTorch sees no GPU: cuda", "Measure on the CPU: --device cpu.")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def _cases(options: argparse.Namespace) -> list[Case]:
    cases = REHEARSAL if options.rehearse else CASES
    return [case for case in cases if not options.cases or case.name in options.cases]


def write_model(folder: Path, *, small: bool) -> None:
    """A LLaMA of 33 million parameters, its weights drawn wide enough that it does not repeat itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32 if small else 512,
        intermediate_size=48 if small else 1376,
        num_hidden_layers=2 if small else 8,
        num_attention_heads=4 if small else 8,
        num_key_value_heads=2 if small else 4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)


def providers(
    case: Case, folder: Path, options: argparse.Namespace
) -> dict[str, Callable[[], list[list[int]]]]:
    """Name -> a function that answers the case's prompts, in order and without stop ids."""
    sizes = sorted({min(size, case.prompts) for size in options.batch_sizes})
    found: dict[str, Callable[[], list[list[int]]]] = {}
    if options.only in (None, OURS):
        found[OURS] = _ours(case, folder, options.device)
    names = {f"transformers, batches of {size}": size for size in sizes}
    wanted = {name: size for name, size in names.items() if options.only in (None, name)}
    if wanted:
        from transformers import AutoModelForCausalLM, logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(options.device).eval()
        for name, size in wanted.items():
            found[name] = _theirs(case, model, size)
    return found


def _ours(case: Case, folder: Path, device: str) -> Callable[[], list[list[int]]]:
    model = load_pretrained(folder, device=device).eval()
    prompts, stop_ids = case.prompt_ids(), set(case.stop_ids())
    decoding = Decoding(max_new_tokens=case.max_new_tokens)
    return lambda: [each.ids for each in generate(model, prompts, decoding, stop_ids=stop_ids)]


def _theirs(case: Case, model, size: int) -> Callable[[], list[list[int]]]:
    prompts, stop_ids = case.prompt_ids(), set(case.stop_ids())
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))

    def answer() -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            longest = max(len(prompts[index]) for index in indices)
            padded = [[0] * (longest - len(prompts[index])) + prompts[index] for index in indices]
            attended = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in indices]
            said = model.generate(
                torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(attended, device=model.device),
                do_sample=False,
                max_new_tokens=case.max_new_tokens,
                eos_token_id=sorted(stop_ids) or None,
                pad_token_id=0,
            )
            for index, ids in zip(indices, said[:, longest:].tolist(), strict=True):
                ends = (place for place, token in enumerate(ids) if token in stop_ids)
                answers[index] = ids[: next(ends, len(ids))]
        return answers

    return answer


def measure(case: Case, folder: Path, options: argparse.Namespace) -> list[dict]:
    """A row for each provider. Raises RunError if their answers are not the same."""
    jobs = providers(case, folder, options)
    said = {name: job() for name, job in jobs.items()}  # warms up as well
    for name, answers in said.items():
        differing = [i for i, pair in enumerate(zip(answers, said[OURS], strict=True)) if pair[0] != pair[1]]
        if differing:
            raise RunError(f"{case.name}: {name}", f"other tokens than ours for prompts {differing[:9]}")
    # A stop id is an answer's last token, though it is left out of it.
    num_tokens = sum(min(len(answer) + 1, case.max_new_tokens) for answer in said[OURS])
    measured = {name: Measurement() for name in jobs}
    order, names = random.Random(0), list(jobs)
    for _ in range(options.rounds):
        order.shuffle(names)
        for name in names:
            began = time.perf_counter()
            jobs[name]()
            measured[name].samples.append((time.perf_counter() - began) * 1e3)
    machine = asdict(describe_machine(torch.device(options.device)))
    import transformers

    return [
        {
            "bench": "generation",
            "case": case.name,
            "provider": name,
            "date": now(),
            **machine,
            "threads": torch.get_num_threads(),
            "transformers": transformers.__version__,
            "prompts": case.prompts,
            "new_tokens": num_tokens,
            "tokens_per_s": round(num_tokens / measurement.milliseconds * 1e3, 1),
            "milliseconds": round(measurement.milliseconds, 3),
            "spread": round(measurement.spread, 3),
            "peak_mib": peak_mib(case, name, folder, options),
        }
        for name, measurement in measured.items()
    ]


def peak_mib(case: Case, provider: str, folder: Path, options: argparse.Namespace) -> int:
    """Peak memory in MiB, resident or a GPU's, of a process that loads the model and answers once."""
    command = [sys.executable, "-m", "benchmarks.generation", "--cases", case.name, "--only", provider]
    command += ["--folder", str(folder), "--device", options.device]
    command += ["--threads", str(torch.get_num_threads())]
    command += ["--batch-sizes", *map(str, options.batch_sizes), *["--rehearse"] * options.rehearse]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{case.name}: {provider}", done.stderr.strip())
    return json.loads(done.stdout)


def _report_memory(options: argparse.Namespace) -> None:
    for case in _cases(options):
        providers(case, options.folder, options)[options.only]()
    if options.device == "cpu":
        # Not ru_maxrss, which begins at what the parent process held.
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
    else:
        print(torch.cuda.max_memory_allocated() // 2**20)


if __name__ == "__main__":
    sys.exit(run_program(main))
