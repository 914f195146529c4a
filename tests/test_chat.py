"""Chat templates say what they are meant to say, and can do nothing else."""

import pytest

from grpojax.chat import Chat, render_chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASK = [{"role": "user", "content": "1 + 1?"}]


def render(template, messages=ASK, **special):
    (text,) = render_chat(Chat(template, special), [messages])
    return text


def test_messages_become_the_text_that_the_model_was_trained_on():
    messages = [{"role": "system", "content": "Be <brief> & kind."}, *ASK]
    assert render(CHATML, messages) == (
        "<|im_start|>system\nBe <brief> & kind.<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_take_their_line_breaks_and_indents_with_them():
    template = (
        "{{ bos_token }}\n{% for m in messages %}\n    {% generation %}\n"
        "{{ m.content | trim }}\n    {% endgeneration %}\n{% endfor %}\n{{ tools | tojson }}"
    )
    assert render(template, bos_token="<s>") == "<s>\n1 + 1?\nnull"


def test_json_is_not_escaped_for_html():
    assert render("{{ messages | tojson }}", [{"content": "<é>"}]) == '[{"content": "<é>"}]'


def test_nothing_tells_the_time():
    template = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}"
    assert render(template) == "none"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError: access to attribute"),
        ("{{ messages.append.__globals__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{% include '/etc/passwd' %}", "TypeError: no loader"),
        ("{{ open('/etc/passwd').read() }}", "'open' is undefined"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
    ],
)
def test_what_a_template_must_not_do_is_one_line(template, message):
    with pytest.raises(ValueError, match=f"the chat template failed .*({message})") as error:
        render(template)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_template_cannot_chat():
    with pytest.raises(ValueError, match="has no chat template; put a"):
        render("")
