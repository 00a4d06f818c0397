"""P7: a step's gradient is that of the plain computation, whatever packs, ranks and micro-batches do."""

import pytest
import torch
import torch.nn.functional as F
from conftest import config_of, run_python
from safetensors.torch import load_file

from fastling.model.llama import Llama
from fastling.prepare import prepare_data
from fastling.training.build import model_config


def plain_gradients(config_path, loss: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One conversation at a time, no packing, logits of every token, one process, float32."""
    config = config_of("--config", config_path, "--train.loss", loss)
    prepared = prepare_data(config)
    torch.manual_seed(config.seed)
    model = Llama(model_config(config, prepared.encoder))
    packs = range(config.global_packs)
    documents = [int(number) for pack in packs for number in prepared.plan.pack(pack)]
    losses, units = [], 0
    for number in documents:
        tokens, spans = prepared.training.document(number)
        ids = torch.tensor(tokens.astype("int64"))
        logits = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
        turns = [
            F.cross_entropy(logits[start - 1 : stop - 1], ids[start:stop], reduction="none")
            for start, stop in spans.tolist()
        ]
        if loss == "token":
            losses.append(torch.cat(turns).sum())
            units += sum(map(len, turns))
        elif loss == "turn":
            losses += [turn.mean() for turn in turns]
            units += len(turns)
        else:
            losses.append(torch.cat(turns).mean())
            units += 1
    total = torch.stack(losses).sum() / units
    total.backward()
    return total.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (0, []),
        (2, ["--train.micro_batch_tokens", "256"]),
        (2, ["--parallel.replicate", "2", "--train.activation_checkpointing", "full"]),
    ],
    ids=["alone-2-micro-batches", "2-ranks-2-micro-batches", "2-replicas-checkpointed"],
)
def test_gradient_equals_the_plain_computation(tiny_run, tmp_path, ranks, options):
    config = tiny_run()
    worker = run_python("tests.training.gradient_worker", config, tmp_path, *options, ranks=ranks)
    assert worker.returncode == 0, worker.stderr
    for loss in ("token", "turn", "sample"):
        expected_loss, expected = plain_gradients(config, loss)
        found = load_file(tmp_path / f"{loss}.safetensors")
        torch.testing.assert_close(found.pop("loss")[0], expected_loss, rtol=1e-5, atol=0)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            difference = (found[name] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, (loss, name, difference)
