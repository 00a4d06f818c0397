"""`fastling chat`: talk to a model in the terminal, or serve it: an OpenAI-compatible endpoint and a page."""

import argparse
import dataclasses
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fastling.command_line import Parser, build_from_options, given_options, refuse_options
from fastling.errors import UserError, needing, run_program
from fastling.inference.chat_model import ChatModel, load_chat_model
from fastling.inference.context import default_max_new_tokens
from fastling.model.decoding import Decoding
from fastling.model.huggingface import DTYPES
from fastling.serving.gate import is_loopback
from fastling.serving.session import Session
from fastling.serving.terminal import Chat, make_prompt, talk_by_lines, talk_in_terminal, write_to_stdout
from fastling.terminal import make_console, print_result

ONLY_WITH_WEB = ("host", "port", "token")
DECODING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    usage = "fastling chat --model DIR [--web] [options]"
    description = (
        "Talk to a model in the terminal, line by line from a pipe, or with --web on a page. "
        "The model is fed the same ids as in training."
    )
    parser = Parser("fastling chat", description, usage)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="an export, a run, or a Hugging Face folder")
    add("--template", metavar="T", help="a name or a YAML file (default: as the model was trained)")
    add("--system", metavar="TEXT", help="the system prompt (default: the template's own)")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: 512, or half the context)")
    add(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token, 0.7 gives variety (default: 0)",
    )
    add(
        "--top-p",
        type=float,
        metavar="X",
        help="nucleus sampling: draw from the likeliest tokens whose probabilities sum to X (default: 1)",
    )
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens (default: 0, all)")
    add("--repetition-penalty", type=float, metavar="X", help="above 1 discourages repetition (default: 1)")
    add("--seed", type=int, metavar="N", help="seed of sampling (default: a new one each time)")
    add("--device", metavar="D", help="such as cpu or cuda:1 (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, help="type of the weights (default: bf16 on cuda, fp32 on cpu)")
    add(
        "--json",
        action="store_true",
        help="print the conversation at its end as one JSON object on stdout; with --web, the url first",
    )
    add = parser.add_argument_group("serving").add_argument
    add(
        "--web",
        action="store_true",
        help="serve a page, and OpenAI's chat completions under /v1, until Ctrl-C",
    )
    add("--host", metavar="H", help="address to listen on (default: 127.0.0.1, for this machine only)")
    add("--port", type=int, metavar="N", help="port to listen on; 0 takes any free one (default: 8000)")
    add("--token", metavar="T", help="access token; required when --host is not this machine")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError for the first option that is wrong or has no effect."""
    if options.web:
        what = "has no effect with --web"
        refuse_options(options, ["system"], what, "The page has a field for it.")
        refuse_options(options, ["seed"], what, "A request to /v1 may have its own seed.")
    else:
        refuse_options(options, ONLY_WITH_WEB, "has no effect without --web")
    try:
        (options.system or "").encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of another encoding
        raise UserError("--system", f"is not UTF-8 at character {error.start}") from None
    port = options.port
    if port is not None and not 0 <= port <= 65535:
        raise UserError("--port", f"must be from 0 to 65535: {port}")
    if options.web:
        check_access(options)


def check_access(options: argparse.Namespace) -> None:
    """Raise UserError for an invalid token, or if everyone on the network could use the model without one."""
    token = options.token
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token or not token):
        raise UserError("--token", "must be printable ASCII without spaces")
    if token is None and not is_loopback(options.host or "127.0.0.1"):
        raise UserError(
            "--token",
            f"is needed to listen on {options.host}: others can connect there",
            "Make one up, such as: --token $(openssl rand -hex 16)",
        )


def make_decoding(options: argparse.Namespace) -> Decoding:
    """The settings of generation. Raises UserError for wrong ones, and for those that only sampling uses."""
    given = given_options(options, DECODING)
    if options.temperature and options.seed is None:
        given["seed"] = secrets.randbelow(2**31)
    return build_from_options(Decoding, "decoding", given)


def with_room(decoding: Decoding, options: argparse.Namespace, chat: ChatModel) -> Decoding:
    """The settings with the limit of an answer. Raises UserError if it leaves no room for a question."""
    if options.max_new_tokens is None:
        return dataclasses.replace(decoding, max_new_tokens=default_max_new_tokens(chat))
    if options.max_new_tokens >= chat.longest_sequence:
        what = f"leaves no room for a question: the model takes {chat.longest_sequence} tokens in all"
        raise UserError("--max-new-tokens", f"{what}: {options.max_new_tokens}")
    return decoding


def talk(session: Session, prompt: Callable[[], str] | None, as_json: bool, console: Console) -> int:
    """Chat until the end of stdin; return the exit status, which is 1 if a line of a pipe had an error."""
    write = sys.stderr.write if as_json and not prompt else write_to_stdout
    chat = Chat(session, console, write)
    try:
        if prompt:
            talk_in_terminal(chat, prompt)
        else:
            talk_by_lines(chat)
    finally:
        if as_json:
            shown = {
                "model": session.chat.name,
                "template": session.chat.encoder.template.name,
                "messages": session.messages(),
                "finish_reasons": session.finish_reasons,
                "failures": chat.failures,
            }
            print_result(shown)
    return 1 if chat.failures and not prompt else 0


def load(options: argparse.Namespace, console: Console) -> ChatModel:
    """Load the model and print a line about it."""
    with console.status(f"loading {options.model}"):
        chat = load_chat_model(
            options.model,
            template=options.template,
            dtype=DTYPES.get(options.dtype),
            device=options.device,
        )
    template = f"template {chat.encoder.template.name} ({chat.template_origin})"
    chosen = f"temperature {options.temperature:g}" if options.temperature else "greedy"
    console.print(
        f"{chat.name}: {template}, context {chat.longest_sequence} tokens, {chosen}", soft_wrap=True
    )
    return chat


def page_address(url: str, token: str | None) -> str:
    """The URL of the page, with the token in its fragment, if there is one."""
    spelled = "".join(each if each.isalnum() else f"%{ord(each):02X}" for each in token or "")
    return f"{url}/#token={spelled}" if token else url


def serve(options: argparse.Namespace, decoding: Decoding, console: Console) -> None:
    """Serve until Ctrl-C. Raises UserError if the packages for it are not installed."""
    with needing("chat", "--web"):
        from fastling.serving.server import listen, run_server
    host = options.host or "127.0.0.1"
    with listen(host, 8000 if options.port is None else options.port) as listening:
        chat = load(options, console)

        def ready(url: str) -> None:
            console.print(f"page: {page_address(url, options.token)}", soft_wrap=True)
            console.print(f"OpenAI-compatible endpoint: {url}/v1 (Ctrl-C ends it)", soft_wrap=True)
            if options.json:
                print_result({"url": url, "model": chat.name})

        run_server(chat, with_room(decoding, options, chat), host, options.token, listening, ready)


def main(arguments: Sequence[str]) -> int:
    options = parse_options(arguments)
    check_options(options)
    decoding = make_decoding(options)
    console = make_console()
    if options.web:
        serve(options, decoding, console)
        return 0
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = make_prompt() if is_terminal else None
    chat = load(options, console)
    session = Session(chat, with_room(decoding, options, chat))
    if options.system:
        session.set_system(options.system)
    return talk(session, prompt, options.json, console)


if __name__ == "__main__":
    sys.exit(run_program(main))
