//! What is trained on, for templates of every sort.

use super::*;
use serde_json::json;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
    + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Drops the reasoning of earlier answers, as Qwen3's template does.
const DROPS: &str = "{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content.strip() + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}";

fn template(source: &str) -> ChatTemplate {
    let tokenizer = Tokenizer::bytes().unwrap();
    ChatTemplate::new(source.to_owned(), &tokenizer, UNIX_EPOCH).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<Json> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    serde_json::from_value(json!({"messages": messages})).unwrap()
}

/// What is trained on, targets in brackets.
fn targets(source: &str, line: &Value) -> Result<String> {
    let tokenizer = Tokenizer::bytes()?;
    let tokens = template(source).encode(&tokenizer, line)?;
    let mut out = String::new();
    let mut inside = false;
    for (id, target) in tokens {
        if target != inside {
            out.push(if target { '[' } else { ']' });
            inside = target;
        }
        out += &tokenizer.decode(&[id], false)?;
    }
    Ok(if inside { out + "]" } else { out })
}

fn two_turns() -> Value {
    chat(&[
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "bye"),
        ("assistant", "so long"),
    ])
}

#[test]
fn the_loss_is_on_the_answers_only() {
    insta::assert_snapshot!(targets(CHATML, &two_turns()).unwrap(), @r"
    <|im_start|>system
    be kind<|im_end|>
    <|im_start|>user
    hi<|im_end|>
    <|im_start|>assistant
    [hello<|im_end|>
    ]<|im_start|>user
    bye<|im_end|>
    <|im_start|>assistant
    [so long<|im_end|>
    <|eos|>]
    ");
}

#[test]
fn answers_are_found_where_earlier_turns_are_rewritten() {
    let line = chat(&[
        ("user", "1+1?"),
        ("assistant", "<think>\neasy\n</think>\n\n2"),
        ("user", "2+2?"),
        ("assistant", "4"),
    ]);
    insta::assert_snapshot!(targets(DROPS, &line).unwrap(), @r"
    <|im_start|>user
    1+1?<|im_end|>
    <|im_start|>assistant
    [2]<|im_end|>
    <|im_start|>user
    2+2?<|im_end|>
    <|im_start|>assistant
    [4<|im_end|>
    <|eos|>]
    ");
}

#[test]
fn a_template_that_refuses_prefixes_is_read_by_difference() {
    let strict = "{%- if messages[-1].role != 'assistant' %}{{ raise_exception('unfinished') }}{% endif %}\
        {{- bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token if m.role == 'assistant' }}{% endfor %}";
    let line = chat(&[("user", "hi"), ("assistant", " hello "), ("user", "x"), ("assistant", "y")]);
    assert_eq!(
        targets(strict, &line).unwrap(),
        "<|bos|>[user]hi[assistant][hello<|eos|>][user]x[assistant][y<|eos|>]"
    );
}

#[test]
fn a_template_may_mark_its_answers() {
    let marked = "{% for m in messages %}\n{% if m.role == 'assistant' %}\nA: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n\n{% else %}\nQ: {{ m.content }}\n{% endif %}\n{% endfor %}";
    let line = chat(&[("user", "hi"), ("assistant", "hello")]);
    assert_eq!(targets(marked, &line).unwrap(), "Q: hi\nA: [hello<|eos|>]\n");
    assert_eq!(template(marked).render(&line, false).unwrap(), "Q: hi\nA: hello<|eos|>\n");
}

#[test]
fn templates_have_the_globals_of_transformers() {
    let line = serde_json::from_str(
        r#"{"messages": [{"role": "user", "content": "a <b> & 'c' é"}],
            "tools": [{"type": "function", "name": "f", "args": [1, 2.5, null, true]}]}"#,
    )
    .unwrap();
    let source = "{{ strftime_now('%d %b %Y') }} {{ tools[0] | tojson }} {{ messages[0].content | tojson }}\
        {% for k, v in tools[0].items() %}{% if loop.index > 1 %}{% break %}{% endif %} {{ k }}={{ v.upper() }}{% endfor %}\
        {% if documents is not none %}no{% endif %}";
    assert_eq!(
        template(source).render(&line, false).unwrap(),
        "01 Jan 1970 {\"type\": \"function\", \"name\": \"f\", \"args\": [1, 2.5, null, true]} \
         \"a <b> & 'c' é\" type=FUNCTION"
    );
}

#[test]
fn refusals_say_why() {
    let e = targets("{{ raise_exception('roles must alternate') }}", &two_turns()).unwrap_err();
    assert!(e.to_string().contains("roles must alternate"), "{e}");
    let tokenizer = Tokenizer::bytes().unwrap();
    let e = ChatTemplate::new("{% if %}".to_owned(), &tokenizer, UNIX_EPOCH).unwrap_err();
    assert!(e.to_string().contains("the chat template cannot be read"), "{e}");
    let e = targets("{{ messages | length }}", &two_turns()).unwrap_err();
    assert!(e.to_string().contains("does not show where the answer in message 2 is"), "{e}");
}

#[test]
fn templates_are_found_in_either_file() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let load =
        |dir: &Path| ChatTemplate::load(dir, &Tokenizer::load(dir).unwrap(), UNIX_EPOCH).unwrap();
    assert!(load(dir.path()).is_none());
    let config = json!({"chat_template": [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(load(dir.path()).unwrap().source(), "a");
    std::fs::write(dir.path().join("chat_template.jinja"), "c").unwrap();
    assert_eq!(load(dir.path()).unwrap().source(), "c");
}

#[test]
fn a_header_that_the_prompt_writes_in_another_way_is_no_answer() {
    let spaced = "{% for m in messages %}\n    {{ '### ' + m.role + ': ' + m.content }}\n{% endfor %}{% if add_generation_prompt %}### assistant:{% endif %}";
    let line = chat(&[("user", "hi"), ("assistant", "hello")]);
    assert_eq!(
        targets(spaced, &line).unwrap(),
        "    ### user: hi\n    ### assistant: [hello\n<|eos|>]"
    );
}

#[test]
fn tool_calls_and_empty_answers_have_their_place() {
    // The last answer is written with an empty reasoning, as Qwen3's template does.
    let source = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|eos|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let line = serde_json::from_str(
        r#"{"messages": [{"role": "user", "content": "w?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "a": 1}}]},
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "It rains."}]}"#,
    )
    .unwrap();
    assert_eq!(
        targets(source, &line).unwrap(),
        "<|user|>w?<|eos|><|assistant|>[<call>{\"name\": \"w\", \"a\": 1}</call><|eos|>]\
         <|tool|>rain<|eos|><|assistant|><|eos|><|user|>?<|eos|>\
         <|assistant|>[<think></think>It rains.<|eos|>]"
    );
}

#[test]
fn line_ends_of_the_file_do_not_matter() {
    let line = chat(&[("user", "hi")]);
    assert_eq!(
        template("{% if true %}\r\na\r\n{% endif %}b").render(&line, false).unwrap(),
        "a\nb"
    );
}
