"""Rows such as benchmarks write, for tests of their page."""

HOSTILE = "<script>alert('中文')</script> $x_1$ & \"🙂\" \x00"


def machine(**changes) -> dict:
    found = {"date": "2026-11-21T02:00:00+00:00", "device": "cpu", "driver": "none", "torch": "2.13.0+cpu"}
    found |= {"triton": "3.7.1", "commit": "0123456789abcdef", "dirty": False}
    return found | {"gpu_gib": None, "copy_gb_s": None, "matrix_tflops": None} | changes


def trained(
    provider: str = "fastling", supervised: float = 740.4, milliseconds: float = 4172.0, **changes
) -> dict:
    """A row of benchmarks.train."""
    run = {"size": "41m", "data": "own.json", "tokenizer": "own.model", "template": "bayling", "steps": 20}
    run |= {"sequence_length": 2048, "batch_tokens": 8192, "micro_batch_tokens": 8192, "peers": True}
    found = {"bench": "train", "case": "41m", "provider": provider, **machine(), "run": run, "settings": {}}
    found |= {"versions": {}, "loss_at_step_1": 10.5, "loss": 1.1047, "status": "measured", "spread": 578.6}
    found |= {"milliseconds": milliseconds, "tokens_per_s": 1937.2, "memory_gib": 6.22, "parts": {}}
    found |= {"supervised_tokens_per_s": supervised, "padded_tokens_per_s": 1963.5, "tflop_per_s": 0.37}
    return found | changes


def compared(**changes) -> list[dict]:
    """A run of three trainers, of which one did other work."""
    other = trained("plain loop, padded", status="other work: its loss is 5.2", **changes)
    for name in ("milliseconds", "spread", "tokens_per_s", "supervised_tokens_per_s", "parts"):
        del other[name]
    return [trained(**changes), trained("trl", 120.6, 25756.0, **changes), other]


def timed_kernel(provider: str = "fastling", milliseconds: float | None = 1.0, **changes) -> dict:
    """A row of benchmarks.kernels."""
    found = {
        "bench": "kernels",
        "op": "rms_norm",
        "case": "some tokens",
        "pass": "forward",
        "provider": provider,
    }
    found |= {
        "milliseconds": milliseconds,
        "spread": 0.01,
        "floor_milliseconds": 1.0,
        "verdict": "ok",
        "why": "",
    }
    found |= {"ratio_to_floor": milliseconds, "max_error": 2e-3, "bytes": 2e9, "flops": 0}
    rates = {"copy_gb_s": 4000.0, "matrix_tflops": 800.0}
    return (
        found
        | machine(device="NVIDIA A100", driver="580", **rates, command="python -m benchmarks.kernels")
        | changes
    )


def rung(provider: str, **changes) -> dict:
    """A row of benchmarks.train --ladder."""
    found = trained(provider, **changes)
    return found | {"run": found["run"] | {"peers": False}}
