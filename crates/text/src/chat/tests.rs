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

/// Whatever a template tries, it ends with an error that says what was too much.
#[test]
fn templates_cannot_fill_the_memory() {
    let doubled = |step: &str| {
        format!(
            "{{% set ns = namespace(s='xxxxxxxx', l=['xxxxxxxx']) %}}\
             {{% for i in range(9999) %}}{{% set ns.s = {step} %}}{{% endfor %}}"
        )
    };
    let sources = [
        "{% set s = 'x' * 1000000000 %}".to_string(),
        "{% set s = 'x' * 99999999 %}".into(),
        "{% set s = 1000000000 * 'x' %}".into(),
        "{% set s = ('x' * 10000) * 10000 %}".into(),
        "{% set s = 'x' * 10 ** 8 ~ 'x' * 10 ** 8 %}".into(),
        "{% set l = [1] * 1000000000 %}".into(),
        "{% set l = ([1] * 1000000000) | list %}".into(),
        "{% set l = ([0] * 100000) * 100000 %}".into(),
        doubled("ns.s ~ ns.s"),
        doubled("ns.s + ns.s"),
        doubled("'%s%s' | format(ns.s, ns.s)"),
        doubled("'{}{}'.format(ns.s, ns.s)"),
        doubled("[ns.s, ns.s] | join"),
        doubled("''.join([ns.s, ns.s])"),
        doubled("ns.s | replace('x', 'xx')"),
        doubled("ns.s.replace('x', 'xx')"),
        doubled("ns.s | replace('', 'x')"),
        doubled("[ns.s, ns.s]"),
        doubled("{'a': ns.s, 'b': ns.s}"),
        doubled("[ns.s] | tojson ~ ns.s"),
        doubled("ns.s | indent(1000, true) ~ '\\n' ~ ns.s"),
        doubled("[ns.s]"),
        doubled("ns"),
        doubled("[ns]"),
        doubled("'x' * 9999999"),
        "{% set l = 'x' * 9999999 %}{% set ns = namespace(l=[]) %}\
         {% for i in range(9999) %}{% set ns.l = ns.l + [l[1:]] %}{% endfor %}"
            .into(),
        "{% set l = 'x' * 9999999 %}{% set ns = namespace(l=[]) %}\
         {% for i in range(9999) %}{% set ns.l = ns.l + [l | upper] %}{% endfor %}"
            .into(),
        "{% set ns = namespace(l=[1]) %}\
         {% for i in range(9999) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"
            .into(),
        "{% set ns = namespace(l=[1]) %}\
         {% for i in range(9999) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}"
            .into(),
        "{% macro f(s, n) %}{{ f(s ~ s, n - 1) if n else s }}{% endmacro %}{% set s = f('xx', 99) %}"
            .into(),
        format!(
            "{{% set s %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
            "x".repeat(99_999)
        ),
        "{% set s %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}".into(),
        "{% set s = '%1000000000d' | format(1) %}".into(),
        "{% set s = '%.1000000000f' | format(1.5) %}".into(),
        "{% set s = '%*d' | format(1000000000, 1) %}".into(),
        "{% set s = '{:>1000000000}'.format('x') %}".into(),
        "{% set s = 'a\\nb' | indent(1000000000) %}".into(),
        "{% set s = 'a\\nb' | indent(width=1000000000) %}".into(),
        "{% set l = [1] | slice(1000000000) | list %}".into(),
        "{% set l = [1] | batch(1000000000, 'x') | list %}".into(),
        "{% set l = (['x' * 9999] * 1000) | map('replace', 'x', 'x' * 9999) | list %}".into(),
        "{% block b %}{% set s = 'x' * 1000000000 %}{% endblock %}".into(),
        "{{ debug() }}".into(),
    ];
    for source in sources {
        let message = failure(&source);
        let known = ["bytes", "deep", "namespace", "unknown", "larger", "range"];
        assert!(known.iter().any(|word| message.contains(word)), "{source:.200}: {message}");
    }
}

/// What is counted is far above what conversations need.
#[test]
fn long_conversations_fit() {
    let long = "word ".repeat(2000);
    let messages = (0..400).map(|_| Message::new(Role::User, &long)).collect();
    let conversation = Conversation { messages, ..Conversation::default() };
    let source = "{% set ns = namespace(system='', seen=[]) %}\
        {%- for m in messages %}{% set ns.seen = ns.seen + [m] %}\
        {%- if loop.index < 20 %}{% set ns.system = ns.system ~ '\\n\\n' ~ m.content %}{% endif %}\
        {{- '<|' ~ m.role ~ '|>' + m['content'] | trim + '\\n' }}{% for t in messages[1:][:3] %}{% endfor %}\
        {%- endfor %}{{ ns.system | length }} {{ ns.seen | length }}";
    let text = template(source).unwrap().render(&conversation).unwrap();
    assert!(
        text.ends_with(&format!("{} 400", 19 * (long.len() + 2))),
        "{}",
        &text[text.len() - 40..]
    );
    assert_eq!(text.matches("<|user|>").count(), 400);
}

/// Measuring changes nothing else: products of constants, spread arguments, jumps over inserted steps.
#[test]
fn measured_programs_compute_the_same() {
    for (source, expected) in [
        ("{{ '-' * 3 }}{{ 2 * 3 * 4 }}{{ [1, 2] * 2 }}{{ 1.5 * 2 }}", "---24[1, 2, 1, 2]3.0"),
        ("{{ 2 ** 3 * 2 }}{{ -2 * (3 * 2) }}{{ 3 * -2 }}", "16-12-6"),
        ("{% macro f(a, b, c=3) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(*[1, 2]) }}", "123"),
        ("{% macro f(a, b) %}{{ a * b }}{% endmacro %}{{ f(2, *[4]) }}{{ f(a=3, b=3) }}", "89"),
        ("{{ 'a' if false else 'b' * 2 }}{{ false or 'c' ~ 'd' }}{{ 'e' and 'f' }}", "bbcdf"),
        ("{% for x in [1, 2] if x * 2 > 2 %}{{ x }}{% else %}none{% endfor %}", "2"),
        ("{% for x in [] %}{% else %}none{% endfor %}{{ 'x' * 0 }}", "none"),
        (
            "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
            "123",
        ),
        ("{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}{{ [x, 'y'] | join('-') }}", "A1Ba1b-y"),
        ("{% block b %}in{{ 1 + 1 }}{% endblock %}", "in2"),
        ("{{ '%05d|%s' | format(7, 'a') }}{{ '{:>4}'.format('x') }}", "00007|a   x"),
        ("{{ 'a\\nb' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}", "a\n  b[[1, 2], [3]]"),
        ("{{ {'a': 1}.items() | list }}{{ {'a': 1}.keys() | list }}", r#"[["a", 1]]["a"]"#),
        (
            "{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ range(3) | list }}",
            "assistantbc[0, 1, 2]",
        ),
    ] {
        assert_eq!(rendered(source), expected, "{source}");
    }
}
