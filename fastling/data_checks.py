"""What prepare refuses or warns of: settings that do not fit the model or the data."""

from collections.abc import Sequence
from pathlib import Path

from fastling.config import Config, Data, Source, resolve
from fastling.data.encoding import Encoder
from fastling.data.store import Store
from fastling.data.tokenizer import Tokenizer, load_tokenizer
from fastling.errors import UserError
from fastling.inference.chat_template import other_form

MOST_SHOWN = 1_000_000_000
"""Most conversations or packs of a run: the plan takes some bytes for each of them in every process."""


def check_tokenizer(config: Config, tokenizer: Tokenizer) -> None:
    """Raise UserError if the tokenizer is unlike the pretrained model's, to which ids mean other text."""
    folder = _model_folder(config)
    if not (folder and config.data.tokenizer):
        return
    try:
        own = load_tokenizer(folder)
    except UserError:  # none in the folder, or one that cannot be read
        return
    known = min(own.vocab_size, tokenizer.vocab_size)  # one may have been extended
    numbers = range(0, known, max(1, known // 1000))
    same = sum(own.piece(number) == tokenizer.piece(number) for number in numbers)
    if same < 0.9 * len(numbers):
        what = f"is unlike {own.path}: only {same} of {len(numbers)} tokens are the same"
        raise UserError("data.tokenizer", what, "Leave it out, or name the model's own.")


def check_model(config: Config, tokenizer: Tokenizer) -> None:
    """Raise UserError if tokens or packs do not fit the pretrained model, as training would do later."""
    folder = _model_folder(config)
    if not folder:
        return
    from fastling.model.huggingface import read_config  # torch, which takes seconds

    try:
        shape = read_config(folder)
    except UserError:  # perhaps only the tokenizer is here
        return
    shape.check_vocab_size(tokenizer.vocab_size)
    shape.check_sequence_length(config.data.sequence_length)


def other_form_in_words(config: Config, encoder: Encoder) -> str | None:
    """A warning if the pretrained model has learned conversations in another form than the config's."""
    folder, template = _model_folder(config), encoder.template.template
    form = other_form(folder, encoder.tokenizer, template) if folder else None
    if form is None:
        return None
    return (
        f"{folder} has learned conversations by its {form}, which differs from data.template {template.name}"
    )


def _model_folder(config: Config) -> Path | None:
    """The pretrained model's folder; None without one, or if it is not on this machine."""
    try:
        return resolve(config.model.pretrained, "model.pretrained") if config.model.pretrained else None
    except UserError:
        return None


def check_parts(data: Data, training: Store, held_out: Store) -> None:
    """Raise UserError if a file has no rows, or if holding out a share leaves one part without any."""
    for source in data.sources:
        if not training.ledgers[source.name]["rows"] + held_out.ledgers[source.name]["rows"]:
            raise UserError(f"source {source.name}", f"is empty, it has no rows: {source.path}")
    for part, what in ((held_out, "holds out none"), (training, "leaves none to train on")):
        if not len(part):
            count = len(training) + len(held_out)
            said = f"{what} of the {count} conversation(s): {data.held_out_share}"
            raise UserError("data.held_out_share", said, "Change it, or name files in data.validation.")


def check_weights(sources: Sequence[Source], training: Store, epochs: int | None) -> None:
    """Raise UserError for a source whose weight is so low that `epochs` epochs show nothing of it.

    Without `epochs`, a run by steps may be many epochs long: then only if no source is shown at all, since
    planning it would never end.
    """
    shown = [(epochs or 1) * each.weight * training.ledgers[each.name]["kept"] for each in sources]
    fix = "A weight is how often an epoch shows each conversation of a source. Raise it."
    if not any(map(round, shown)):
        what = f"is so low that {epochs or 1} epoch(s) show no conversation: {max(shown):.3g} of one"
        raise UserError("data.sources: weight", what, fix)
    for source, count in zip(sources, shown, strict=True):
        if epochs and count and not round(count):
            what = f"is so low that {epochs} epoch(s) show no conversation: {count:.3g} of one"
            raise UserError(f"source {source.name}: weight", what, fix)


def check_plan_size(config: Config, training: Store, epochs: int) -> None:
    """Raise UserError for a run so long that its plan would not fit into memory."""
    if config.train.steps:
        name, value, what = "steps", config.train.steps, "packs"
        shown = value * config.global_packs
    else:
        name, value, what = "epochs", epochs, "conversations"
        kept = [each.weight * training.ledgers[each.name]["kept"] for each in config.data.sources]
        shown = value * sum(kept)
    if shown > MOST_SHOWN:
        said = f"is more than can be planned: {value:,} are {shown:.2g} {what}"
        raise UserError(f"train.{name}", said, f"Lower it: at most {MOST_SHOWN:,} are planned ahead.")


def check_held_out_names(validation: Store) -> None:
    """Raise UserError if two held-out losses would have the same name, eval_loss_NAME.

    These may be the losses of a source and of a language pair with other rows, or one of them and a loss from
    before training, whose name ends in _before.
    """
    names = [*validation.source_names, *validation.pair_names]
    before = {"before", *(f"{name}_before" for name in names)}
    for name in names:
        if name in before:
            what = f"a source or language pair cannot have this name: {name}"
            raise UserError("data.validation", what, f"eval_loss_{name} is the loss before the first step.")
    pairs = {name: number for number, name in enumerate(validation.pair_names)}
    for number, name in enumerate(validation.source_names):
        if name in pairs:
            of_pair = validation.pairs == pairs[name]
            if ((validation.sources == number) != of_pair).any():
                raise UserError(
                    "data.validation",
                    f"a source has the name of a language pair, but other rows: {name}",
                    f"Both losses would be eval_loss_{name}. Give the source another name.",
                )
