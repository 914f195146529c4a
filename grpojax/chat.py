"""Chat: messages made into the text of a prompt by the template that came with a model.

Templates are programs from elsewhere. They run in jinja2's immutable sandbox, where they can read
the messages and nothing else, and where a range has a bound. No clock is among what they are given:
the same messages give the same text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

Message = dict[str, str]
"""`{"role": "system", "user" or "assistant", "content": text}`."""


@dataclass(frozen=True)
class Chat:
    """A chat template, empty where a tokenizer has none, and the special tokens it can name."""

    template: str = ""
    special: dict[str, str] = field(default_factory=dict)  # such as `bos_token`: its text


def render_chat(chat: Chat, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """The text of each conversation, up to where the assistant is to answer.

    Raises:
      ValueError: the template is none, refuses the messages, or does what the sandbox forbids.
    """
    if not chat.template:
        raise ValueError("the tokenizer has no chat template; put a chat_template.jinja beside it")
    given = {"tools": None, "documents": None, **chat.special, "add_generation_prompt": True}
    try:
        template = environment().from_string(chat.template)
        return [template.render(messages=list(messages), **given) for messages in conversations]
    except (jinja2.TemplateError, OverflowError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the chat template failed ({type(error).__name__}: {reason})") from None


def environment() -> jinja2.Environment:
    """What Hugging Face's templates expect around them."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = raise_exception
    return sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an answer, for masks that are not needed here: its body is kept."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that is not escaped for HTML, which jinja2's own is."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def raise_exception(message: str) -> None:
    """What a template calls to refuse its messages."""
    raise jinja2.TemplateError(message)
