"""Chat in a terminal, with editing and history; or line by line from a pipe, for scripts."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from fastling.errors import UserError, needing, visible
from fastling.serving.session import Session

COMMANDS = ("/system", "/retry", "/reset", "/save", "/help", "/quit")
HELP = """\
/system TEXT  set the system prompt; without TEXT, remove it
/retry        drop the newest answer and ask again
/reset        clear the conversation; the system text stays
/save FILE    write the conversation to FILE.jsonl, a row of training data
/help         show this
/quit         leave; Ctrl-D does, too
Enter sends, Alt-Enter (or Esc, then Enter) starts a new line, the up arrow recalls a question,
Ctrl-C stops an answer. To send a text that begins with /, write // there."""


class Chat:
    """Executes what is typed, one entry at a time. Answers go to `write`, everything else to the console."""

    def __init__(self, session: Session, console: Console, write: Callable[[str], object]):
        self.session, self.console, self.write = session, console, write
        self._has_warned_of_dropped = False
        self.failures = 0
        """Number of entries that failed."""

    def enter(self, entry: str) -> bool:
        """Execute an entry; return False if it was /quit. Errors are shown on the console, not raised."""
        try:
            if entry.startswith("/") and not entry.startswith("//"):
                return self._command(*_split(entry))
            if entry.strip():
                self._answer(self.session.ask(_checked(entry.removeprefix("/"))))
        except UserError as error:
            self.failures += 1
            self._say(str(error))
        return True

    def _command(self, name: str, rest: str) -> bool:
        argument = rest.strip()
        if name not in COMMANDS:
            fix = "/help shows them; // sends a text that begins with /."
            raise UserError(name[:40], "is no command", fix)
        if name not in ("/system", "/save") and argument:
            raise UserError(name, f"takes nothing after it: {argument[:40]}")
        if name == "/quit":
            return False
        if name == "/help":
            self._say(HELP)
        elif name == "/reset":
            self.session.reset()
            self._has_warned_of_dropped = False
            self._say("the conversation is cleared")
        elif name == "/system":
            self.session.set_system(_checked(argument))
            self._say("the system text is set" if argument else "your system text is removed")
        elif name == "/retry":
            if self.session.decoding.temperature == 0:
                self._say("(greedy: the same words give the same answer; --temperature 0.7 varies it)")
            self._answer(self.session.ask_again())
        elif not argument:
            raise UserError("/save", "needs a file name", "Such as /save talk.jsonl.")
        else:
            self.session.save(Path(argument))
            self._say(f"saved to {argument}")
        return True

    def _answer(self, answer: Iterator[str]) -> None:
        said = False
        try:
            with _interruptible() as stopped, contextlib.closing(answer) as pieces:
                for piece in pieces:
                    if not said:
                        self._warn_of_dropped()
                    said = said or bool(piece)
                    self.write(piece)
                    if stopped():
                        break
        except UserError:
            if said:  # which is kept
                self.write("\n")
            raise
        self.write("\n")
        if not said:
            self._say("(the answer is empty; the conversation stays as it was)")
        elif stopped():
            self._say("(stopped; the answer so far is kept)")
        elif self.session.finish_reasons[-1] == "length":
            self._say(f"(cut at {self.session.decoding.max_new_tokens} tokens, see --max-new-tokens)")

    def _warn_of_dropped(self) -> None:
        if self.session.dropped and not self._has_warned_of_dropped:
            self._has_warned_of_dropped = True
            self._say("(the context is full: from here on the model no longer sees the oldest turns)")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True, style="dim" if text.startswith("(") else None)


def _split(entry: str) -> tuple[str, str]:
    name, _, rest = entry.partition(" ")
    return name.strip(), rest


def _checked(text: str) -> str:
    """Return the text; raise UserError if it has bytes of another encoding, which a terminal passes on."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("what was typed", f"is not UTF-8 at character {error.start}") from None
    return text


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; pressed twice, it interrupts as usual."""
    came = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


def write_to_stdout(text: str) -> None:
    """Write to stdout and flush; on a terminal with control characters spelled out, which could steer it."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def talk_by_lines(chat: Chat) -> None:
    """Execute each line of stdin until it ends. Raises UserError for a line that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            entry = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin:{number}", f"is not UTF-8 at byte {error.start}") from None
        if not chat.enter(entry):
            return


def make_prompt() -> Callable[[], str]:
    """Return a function that reads an entry from the keyboard, with editing and history, by prompt_toolkit.

    Raises UserError if that package is not installed.
    """
    with needing("chat", "fastling chat"):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
    bindings = KeyBindings()
    bindings.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    bindings.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session = PromptSession(history=InMemoryHistory(), multiline=True, key_bindings=bindings)
    return lambda: session.prompt("> ", prompt_continuation="  ")


def talk_in_terminal(chat: Chat, prompt: Callable[[], str]) -> None:
    """Execute what is typed, until Ctrl-D or /quit."""
    chat.console.print("Enter sends, Ctrl-C stops an answer, Ctrl-D leaves; /help shows the rest.")
    while True:
        try:
            if not chat.enter(prompt()):
                return
        except KeyboardInterrupt:  # of a line half typed, or twice during an answer
            chat.write("\n")
        except EOFError:
            return
