use super::*;
use crate::tokenizer::Tokenizer;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine")).join(name)
}

fn template(source: &str) -> Result<ChatTemplate> {
    let settings = Settings { bos: Some("<s>".into()), ..Settings::default() };
    ChatTemplate::new(source, &settings)
}

fn hello() -> Conversation {
    let messages = vec![Message::new(Role::User, "Hi <b>"), Message::new(Role::Assistant, " yes ")];
    Conversation { messages, ..Conversation::default() }
}

fn rendered(source: &str) -> String {
    template(source).unwrap().render(&hello()).unwrap()
}

fn failure(source: &str) -> String {
    let error = template(source).and_then(|template| template.render(&hello()));
    error.unwrap_err().to_string()
}

/// Text and ids of every golden conversation, and the template's own complaint.
#[test]
fn golden_conversations_are_exact() {
    for (folder, cases) in [
        ("llama-gqa", "llama-gqa.text.json"),
        ("llama-gqa", "opt.text.json"),
        ("llama-gqa", "mamba.text.json"),
        ("llama-gqa", "mamba2.text.json"),
        ("llama3-rope-tied-bf16", "llama3-rope-tied-bf16.text.json"),
    ] {
        let tokenizer = Tokenizer::load(&golden(folder)).unwrap();
        let template = ChatTemplate::of(&tokenizer, "default").unwrap();
        let file = std::fs::read_to_string(golden(cases)).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        let chats = file["chat"].as_array().unwrap();
        assert!(chats.len() > 3);
        for chat in chats {
            let conversation = Conversation {
                messages: Message::parse_list(&chat["messages"].to_string()).unwrap(),
                add_generation_prompt: chat["add_generation_prompt"] == true,
                tools: None,
            };
            let text = template.render(&conversation).unwrap();
            assert_eq!(text, chat["rendered"].as_str().unwrap());
            let ids: Vec<u32> = serde_json::from_value(chat["ids"].clone()).unwrap();
            assert_eq!(template.encode(&tokenizer, &conversation).unwrap(), ids);
        }
        let messages = Message::parse_list(&file["chat_error"]["messages"].to_string()).unwrap();
        let error = template.render(&Conversation { messages, ..Conversation::default() });
        assert_eq!(error.unwrap_err().to_string(), file["chat_error"]["error"].as_str().unwrap());
    }
}

#[test]
fn the_dialect_of_chat_templates() {
    for (source, expected) in [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>Hi <b>"),
        ("{{ bos_token }}{{ eos_token }}.", "<s>."),
        ("{{ messages[-1]['content'] | trim }}", "yes"),
        ("{{ messages[-1].content.strip().upper() }}", "YES"),
        ("{% for m in messages[1:] %}{{ loop.index0 }}{{ loop.last }}{% endfor %}", "0True"),
        (
            "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
            "user\n",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
            "assistant",
        ),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "Hi <b>"}"#),
        (
            "{{ {'a': [1, 2], 'b': {}} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}",
        ),
        (
            "{{ {'b': 'é', 'a': none} | tojson(ensure_ascii=true, sort_keys=true) }}",
            r#"{"a": null, "b": "\u00e9"}"#,
        ),
        ("{{ true }} {{ none }} {{ add_generation_prompt }}", "True None False"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}", "[a][1]"),
        ("a{%- generation -%}  b{% endgeneration %}c", "abc"),
        ("{{ undefined_name }}{{ messages[0].absent is defined }}", "False"),
        ("{{ 'x' if tools else 'y' }}{{ messages[0].content is string }}", "yTrue"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        (
            "{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('ab') }}{{ messages[0].get('x', 'd') }}",
            "bTrued",
        ),
    ] {
        assert_eq!(rendered(source), expected, "{source}");
    }
    let year: i32 = rendered("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024);
}

#[test]
fn failures_name_line_and_reason() {
    for (source, expected) in [
        ("line\n{% if %}", "line 2"),
        ("a\n\n{{ messages[0].content.nothing() }}", "line 3"),
        ("{% endfor %}", "syntax error"),
        ("{{ x | unheard_of }}", "unheard_of"),
        ("{% include 'other' %}", "line 1"),
        ("{{ strftime_now('%!') }}", "strftime_now"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% set s = 'x' * 9000000 %}{% for a in range(9) %}{{ s }}{% endfor %}",
            "the output exceeds",
        ),
        ("{{ raise_exception('no: ' ~ messages[0].role) }}", "no: user"),
    ] {
        let message = failure(source);
        assert!(message.contains(expected), "{source}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    assert_eq!(failure("{{ raise_exception('my words') }}"), "my words");
    let message = template(&"x".repeat((1 << 20) + 1)).err().unwrap().to_string();
    assert!(message.contains("at most 1048576"), "{message}");
}

#[test]
fn messages_are_checked() {
    let parts = r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]"#;
    assert_eq!(Message::parse_list(parts).unwrap()[0].text(), "ab");
    let calls = r#"[{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]"#;
    assert_eq!(Message::parse_list(calls).unwrap()[0].role(), Role::Assistant);
    for (json, expected) in [
        (
            r#"[{"role": "wizard", "content": "a"}]"#,
            "message 0: role is `wizard`; valid: system, developer",
        ),
        (r#"[{"role": "user", "content": "a"}, {"content": "a"}]"#, "message 1: no role"),
        (r#"[{"role": "user"}]"#, "message 0: no content"),
        (r#"[{"role": "user", "content": 3}]"#, "neither text nor a list"),
        (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "part of type image_url"),
        ("{}", "a JSON list"),
    ] {
        let message = Message::parse_list(json).unwrap_err().to_string();
        assert!(message.contains(expected), "{json}: {message}");
    }
    let nothing = template("x").unwrap().render(&Conversation::default());
    assert!(nothing.unwrap_err().to_string().contains("at least one message"));
    let bare =
        Tokenizer::from_json(std::fs::read_to_string(golden("llama-gqa/tokenizer.json")).unwrap());
    let error = ChatTemplate::of(&bare.unwrap(), "default").err().unwrap().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}

/// Found by damaging templates: `{%}` was taken for a tag that ends before it begins.
#[test]
fn a_mark_that_is_no_tag() {
    assert!(template("{%}{% generation %}a{% endgeneration %}").is_err());
    assert!(template("{% endgeneration %}{%}").is_err());
}
