"""Renders Jinja chat templates where they reach neither files nor programs, and cannot block anything.

Jinja's sandbox does not limit loops, powers or the length of a text. So a template of unknown origin is
rendered in a process of its own (this file, run as a program), whose time and memory the system limits.
"""

import json
import resource
import subprocess
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SECONDS = 2
"""CPU seconds for a few short conversations; an honest template takes milliseconds."""

MOST_BYTES = 2**30


def render(chat_template: str, variables: dict) -> str:
    """Render a chat template, with transformers' settings. Raises whatever the template makes Jinja raise.

    `variables` are messages, add_generation_prompt, and what else the template may use, such as bos_token.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(chat_template).render(variables)


def _raise(message: str) -> None:
    raise ValueError(message)


def render_bounded(chat_template: str, samples: list[dict]) -> list[str | None]:
    """Render each sample of variables; None where the template fails, or takes too many seconds or bytes."""
    asked = json.dumps([chat_template, samples])
    # -P: do not import modules from beside this file, whose names may shadow others.
    done = subprocess.run([sys.executable, "-P", __file__], input=asked, capture_output=True, text=True)
    if done.returncode < 0:  # killed by a signal: it exceeded a limit
        return [None] * len(samples)
    done.check_returncode()
    return json.loads(done.stdout)


def _answer() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    chat_template, samples = json.load(sys.stdin)
    texts = []
    for variables in samples:
        try:
            texts.append(render(chat_template, variables))
        except Exception:  # any failure of somebody's template means that it does not render this
            texts.append(None)
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    _answer()
