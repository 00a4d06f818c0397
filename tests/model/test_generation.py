"""Generation against transformers' own, token for token, and what it promises beside that."""

import gc
import weakref
from dataclasses import asdict

import pytest
import torch
import transformers
from conftest import run_python
from transformers import LlamaForCausalLM

from fastling.errors import RunError, UserError
from fastling.model import generation
from fastling.model.cache import KVCache, bytes_per_token
from fastling.model.decoding import Completion, Decoding
from fastling.model.generation import generate, stream
from fastling.model.huggingface import load_pretrained
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

TINY = LlamaConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
)
PROMPTS = [[5, 9, 2], [11], [3, 4, 5, 6, 7, 8], [5, 9, 2], list(range(20)), [66], [8, 8], [40, 30, 20, 10, 0]]


@pytest.fixture(scope="module")
def tiny() -> Llama:
    torch.manual_seed(0)
    return Llama(TINY)


def cache_for(model: Llama, sequences: int, tokens: int) -> int:
    return sequences * tokens * bytes_per_token(model.config, 4)


def theirs(model, prompt: list[int], stop_ids: set[int], **settings) -> Completion:
    """What transformers says to one prompt, cut before its stop id."""
    ids = torch.tensor([prompt])
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
        **settings,
    )
    answer = said[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(answer) if token in stop_ids]
    return Completion(answer[: ends[0]], "stop") if ends else Completion(answer, "length")


# Greedy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("stop_ids", [set(), {7, 30, 50, 61}], ids=["no-stop", "stop"])
def test_greedy_answers_equal_transformers(oracle, penalty, stop_ids):
    """Three rows at most, so that prompts take the places of finished ones."""
    model = load_pretrained(oracle.folder)
    decoding = Decoding(max_new_tokens=12, repetition_penalty=penalty)
    ours = generate(model, PROMPTS, decoding, stop_ids=stop_ids, cache_bytes=cache_for(model, 3, 32))
    expected = [
        theirs(oracle.model, prompt, stop_ids, max_new_tokens=12, repetition_penalty=penalty)
        for prompt in PROMPTS
    ]
    assert ours == expected


def test_a_stop_id_ends_one_answer_and_is_left_out(oracle):
    model = load_pretrained(oracle.folder)
    free = generate(model, PROMPTS, Decoding(max_new_tokens=6), stop_ids=set())
    stop = free[0].ids[2]
    stopped = generate(model, PROMPTS, Decoding(max_new_tokens=6), stop_ids={stop})
    for whole, cut in zip(free, stopped, strict=True):
        whole = whole.ids
        assert cut.ids == (whole[: whole.index(stop)] if stop in whole else whole)
        assert cut.finish_reason == ("stop" if stop in whole else "length")


def test_an_answer_ends_where_the_models_longest_sequence_does(oracle):
    model = load_pretrained(oracle.folder)
    longest = model.config.longest_sequence
    prompts = [[1] * (longest - 2), [1], [1] * longest]
    answers = generate(model, prompts, Decoding(max_new_tokens=9), stop_ids=set())
    assert [len(answer.ids) for answer in answers] == [2, 9, 0]
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_a_bfloat16_answer_does_not_depend_on_the_batch(tiny):
    """Rows of one batch of matrix products differ in the last bit; these tokens do not hang on it."""
    torch.manual_seed(1)
    model = Llama(TINY).to(torch.bfloat16)
    decoding = Decoding(max_new_tokens=4)
    together = generate(model, PROMPTS, decoding, stop_ids=set())
    alone = [generate(model, [prompt], decoding, stop_ids=set())[0] for prompt in PROMPTS]
    same = sum(one == other for one, other in zip(together, alone, strict=True))
    assert same >= len(PROMPTS) - 1


# Beam search ------------------------------------------------------------------------------------------

MANY_STOP_IDS = set(range(0, 67, 4))
SOME_STOP_IDS = {3, 17, 29, 44, 58}


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_equals_transformers_for_every_family(oracle, beams):
    model = load_pretrained(oracle.folder)
    ours = generate(model, PROMPTS, Decoding(max_new_tokens=10, beams=beams), stop_ids=MANY_STOP_IDS)
    assert "stop" in {answer.finish_reason for answer in ours}
    settings = {"num_beams": beams, "early_stopping": False, "max_new_tokens": 10}
    assert ours == [theirs(oracle.model, prompt, MANY_STOP_IDS, **settings) for prompt in PROMPTS]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("stop_ids", "penalty", "length_penalty"),
    [
        (set(), 1.0, 1.0),
        ({17}, 2.0, 1.0),
        (SOME_STOP_IDS, 1.0, 2.0),
        (SOME_STOP_IDS, 1.3, -0.5),
        ({3, 4}, 1.0, 0.0),
    ],
)
def test_beam_search_equals_transformers(seed, stop_ids, penalty, length_penalty, tmp_path):
    """Weights and prompts of their own for each seed; a cache that holds two prompts' beams."""
    torch.manual_seed(seed)
    reference = LlamaForCausalLM(transformers.LlamaConfig(**asdict(TINY))).eval()
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    beams = 2 + seed
    prompts = [torch.randint(67, (length,)).tolist() for length in (1, 4, 4, 9)]
    decoding = Decoding(
        max_new_tokens=14, beams=beams, length_penalty=length_penalty, repetition_penalty=penalty
    )
    ours = generate(model, prompts, decoding, stop_ids=stop_ids, cache_bytes=cache_for(model, 2 * beams, 23))
    settings = {"num_beams": beams, "early_stopping": False, "max_new_tokens": 14}
    settings |= {"length_penalty": length_penalty, "repetition_penalty": penalty}
    assert ours == [theirs(reference, prompt, stop_ids, **settings) for prompt in prompts]


# Sampling ---------------------------------------------------------------------------------------------


SAMPLING = Decoding(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=40, seed=3)


def test_samples_depend_on_the_seed_and_not_on_the_batch(tiny):
    whole = generate(tiny, PROMPTS, SAMPLING, stop_ids={4})
    assert whole == generate(tiny, PROMPTS, SAMPLING, stop_ids={4}, cache_bytes=1)
    assert whole[:3] == generate(tiny, PROMPTS[:3], SAMPLING, stop_ids={4})
    assert PROMPTS[0] == PROMPTS[3] and whole[0] != whole[3]
    other = Decoding(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=40, seed=4)
    assert whole != generate(tiny, PROMPTS, other, stop_ids={4})


def test_a_high_temperature_and_top_k_1_are_greedy(tiny):
    greedy = generate(tiny, PROMPTS, Decoding(max_new_tokens=9), stop_ids=set())
    certain = Decoding(max_new_tokens=9, temperature=5.0, top_k=1)
    assert generate(tiny, PROMPTS, certain, stop_ids=set()) == greedy


# Streams, memory, order -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=9), SAMPLING, Decoding(max_new_tokens=9, beams=3)]
)
def test_a_stream_has_the_ids_of_the_first_prompt(tiny, decoding):
    [answer] = generate(tiny, PROMPTS[:1], decoding, stop_ids={30})
    assert list(stream(tiny, PROMPTS[0], decoding, stop_ids={30})) == answer.ids


def forwards(model: Llama) -> list[int]:
    """The number of tokens of each forward from now on."""
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: counts.append(len(arguments[0])))
    return counts


def test_a_stream_yields_ids_at_once_and_frees_memory_when_closed():
    torch.manual_seed(0)
    model = Llama(TINY)
    counts = forwards(model)
    gc.collect()
    gc.disable()
    try:
        ids = stream(model, [1, 2, 3], Decoding(max_new_tokens=50), stop_ids=set())
        assert counts == []
        for number in range(1, 5):
            next(ids)
            assert counts == [3, *[1] * (number - 1)]
        caches = [weakref.ref(each) for each in gc.get_objects() if type(each) is KVCache]
        ids.close()
        assert len(caches) == 1 and caches[0]() is None
    finally:
        gc.enable()


def test_no_token_is_read_twice_and_finished_rows_are_left_out():
    torch.manual_seed(0)
    model = Llama(TINY)
    counts = forwards(model)
    stop_ids = {7, 30, 50, 61, 12, 13, 14}
    answers = generate(
        model, PROMPTS, Decoding(max_new_tokens=12), stop_ids=stop_ids, cache_bytes=cache_for(model, 3, 32)
    )
    assert len({len(answer.ids) for answer in answers}) > 2
    kept = sum(len(answer.ids) - (answer.finish_reason == "length") for answer in answers)
    assert sum(counts) == sum(map(len, PROMPTS)) + kept


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("tokens", [1, 40, 100, 1000])
def test_the_cache_stays_within_its_bytes_unless_one_sequence_needs_more(tiny, monkeypatch, tokens, beams):
    decoding = Decoding(max_new_tokens=5, beams=beams)
    whole = generate(tiny, PROMPTS, decoding, stop_ids=set())
    sizes = []
    reach = KVCache.reach

    def watched(cache, *arguments):
        reach(cache, *arguments)
        sizes.append((cache.storage.nbytes, cache.rows))

    monkeypatch.setattr(KVCache, "reach", watched)
    cache_bytes = cache_for(tiny, 1, tokens)
    assert generate(tiny, PROMPTS, decoding, stop_ids=set(), cache_bytes=cache_bytes) == whole
    assert all(size <= cache_bytes or rows == beams for size, rows in sizes)
    assert max(size for size, _ in sizes) > min(cache_bytes, cache_for(tiny, beams, 60)) / 2


def test_short_prompts_share_a_cache_that_holds_only_one_long_one(tiny, monkeypatch):
    made = []
    make = KVCache.__init__

    def watched(cache, config, rows, positions):
        make(cache, config, rows, positions)
        made.append((rows, positions))

    monkeypatch.setattr(KVCache, "__init__", watched)
    prompts = [[1] * 50, *([number] for number in range(9)), [2] * 48]
    cache_bytes = cache_for(tiny, 1, 60)
    answers = generate(tiny, prompts, Decoding(max_new_tokens=5), stop_ids=set(), cache_bytes=cache_bytes)
    assert made == [(9, 6), (1, 55)]
    assert answers == generate(tiny, prompts, Decoding(max_new_tokens=5), stop_ids=set())


def test_prompts_are_read_a_bounded_number_of_tokens_at_a_time(tiny, monkeypatch):
    whole = generate(tiny, PROMPTS, Decoding(max_new_tokens=5), stop_ids=set())
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 7)
    torch.manual_seed(0)
    model = Llama(TINY)
    counts = forwards(model)
    assert generate(model, PROMPTS, Decoding(max_new_tokens=5), stop_ids=set()) == whole
    assert max(counts) <= 20 + len(PROMPTS)  # the longest prompt alone, beside one token for each row
    assert counts[0] <= 7


def test_each_completion_is_reported_once_as_soon_as_it_is_done(tiny):
    told: list[tuple[int, Completion]] = []
    answers = generate(
        tiny,
        PROMPTS,
        Decoding(max_new_tokens=12),
        stop_ids={7, 30, 50, 61},
        cache_bytes=cache_for(tiny, 2, 32),
        on_completion=lambda *completion: told.append(completion),
    )
    assert sorted(told) == list(enumerate(answers))
    assert generate(tiny, [], Decoding(), stop_ids=set()) == []


def test_stale_memory_in_the_cache_does_not_matter(tiny):
    """A mask hides a number, but not one that is not finite: NaN * 0 is NaN."""
    decoding = Decoding(max_new_tokens=6)
    expected = generate(tiny, PROMPTS, decoding, stop_ids=set(), cache_bytes=1)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert generate(tiny, PROMPTS, decoding, stop_ids=set()) == expected
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_ranks_of_a_sharded_model_may_have_different_numbers_of_prompts():
    worker = run_python("tests.model.generation_worker", ranks=2)
    assert worker.returncode == 0, worker.stderr
    assert worker.stdout.count("as one process says") == 2


# Bad input --------------------------------------------------------------------------------------------


def test_empty_overlong_and_foreign_prompts_are_refused(oracle):
    model = load_pretrained(oracle.folder)
    with pytest.raises(UserError, match="a prompt is empty"):
        generate(model, [[1], []], Decoding(max_new_tokens=1), stop_ids=set())
    with pytest.raises(UserError, match="at most"):
        generate(model, [[1] * 99], Decoding(max_new_tokens=1), stop_ids=set())
    with pytest.raises(UserError, match="has 67 tokens, not 67"):
        generate(model, [[1, 67]], Decoding(max_new_tokens=1), stop_ids=set())
    with pytest.raises(UserError, match="a prompt is empty"):
        stream(model, [], Decoding(max_new_tokens=1), stop_ids=set())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.0}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 1, "top_p": 0}, "top_p"),
        ({"temperature": 1, "top_p": 1.1}, "top_p"),
        ({"temperature": 1, "top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"repetition_penalty": 1e40}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"beams": 0}, "beams"),
        ({"beams": 2, "temperature": 1}, "beams"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"seed": 1}, "seed"),
        ({"length_penalty": 2.0}, "length_penalty"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_or_contradict_are_refused(settings, name):
    with pytest.raises(UserError, match=f"^decoding.{name}: "):
        Decoding(**settings)


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0}, {"beams": 2}], ids=str)
def test_non_finite_logits_are_an_error_and_never_a_token(decoding):
    """As where float16 overflows: the likeliest of them is token 0, and what is drawn is none."""
    torch.manual_seed(0)
    model = Llama(TINY)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(RunError, match="no numbers in float32"):
        generate(model, [[5, 9, 2]], Decoding(max_new_tokens=2, **decoding), stop_ids=set())


def test_more_beams_than_tokens_and_a_cache_of_nothing_are_refused(tiny):
    with pytest.raises(UserError, match="decoding.beams"):
        generate(tiny, [[1]], Decoding(beams=60), stop_ids=set())
    with pytest.raises(UserError, match="cache_bytes"):
        generate(tiny, [[1]], Decoding(), stop_ids=set(), cache_bytes=0)
