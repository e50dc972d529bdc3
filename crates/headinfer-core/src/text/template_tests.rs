//! Templates that are wrong or hostile end with an error, in bounded time, memory and stack.

use proptest::prelude::*;

use super::*;

fn scene(bytes: usize) -> Scene {
    let text = "x".repeat(bytes);
    let variables = vec![("messages".into(), Value::from(vec![text]))];
    Scene { variables, today: None, bytes, messages: 1 }
}

fn run(text: &str) -> Result<String, ChatError> {
    render(Source { text, path: Path::new("m/chat_template.jinja") }, scene(100))
}

fn fails(text: &str) -> String {
    let error = run(text).expect_err(text.get(..60).unwrap_or(text)).to_string();
    assert!(!error.contains('\n') && error.len() < 400, "{error}");
    error
}

#[test]
fn work_without_end_is_stopped() {
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{{ range(100000000) | list }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a\n' | indent(10000000000) }}",
        "{{ 'aaaaaaaaaa'.replace('a', 'a' * 100000).replace('a', 'a' * 100000) }}",
        "{{ [1] | tojson(indent=100000) }}",
        "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    ];
    for text in hostile {
        fails(text);
    }
}

/// Deep values are compared, printed, written and freed by recursion: the stack is large enough for any that the
/// work allowed can build, also where long messages allow more work.
#[test]
fn values_as_deep_as_can_be_built_fit_the_stack() {
    let uses = [
        "",
        "{{ ns.x }}",
        "{{ ns.x|tojson }}",
        "{{ ns.x == ns.y }}",
        "{{ {ns.x: 1} }}",
        "{{ [ns.x, ns.y]|unique|list }}",
        "{{ [ns.x, ns.y]|sort }}",
        "{{ ns.x|string }}",
        "{{ ns.x ~ '' }}",
    ];
    for usage in uses {
        for rounds in [1, 6] {
            // Enough is left after the building for one use.
            let build = format!(
                "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range({}) %}}{{% set ns.x = [ns.x] %}}\
                 {{% set ns.y = [ns.y] %}}{{% endfor %}}{usage}",
                rounds * 12_000
            );
            let source = Source { text: &build, path: Path::new("m") };
            let _ = render(source, scene(6_000_000 * (rounds - 1)));
        }
    }
    let endless = "{% set ns = namespace(x=[1]) %}{% for j in range(100000) %}{% for i in range(100000) %}\
        {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    assert!(matches!(run(endless), Err(ChatError::TooCostly { .. })));
}

#[test]
fn expressions_as_deep_as_a_template_is_long_fit_the_stack() {
    let long = COMPILED_BYTES_MAX / 8;
    let repeat =
        |before: &str, part: &str, after: &str| [before, &part.repeat(long * 7 / part.len()), after].concat();
    for text in [
        repeat("{{ a", "+a", " }}"),
        repeat("{{ a", "~a", " }}"),
        repeat("{{ a", ".a", " }}"),
        repeat("{{ a", "[0]", " }}"),
        repeat("{{ a", "|e", " }}"),
        repeat("{{ a", "()", " }}"),
        repeat("{{ ", "-", "1 }}"),
        repeat("{{ ", "not ", "1 }}"),
        repeat("{{ ", "(", ""),
        repeat("{{ ", "[", ""),
        repeat("{{ ", "{1:", ""),
        repeat("{{ 1", " if 1 else 1", " }}"),
        repeat("{{ 1", "**1", " }}"),
        repeat("{{ 1", " and 1", " }}"),
        repeat("{{ 1", "<1", " }}"),
        repeat("", "{% if a %}", ""),
        repeat("{% if a %}", "{% elif a %}", "{% endif %}"),
        repeat("", "{% for a in b %}", ""),
        repeat("", "{% set a %}", ""),
    ] {
        let _ = run(&text);
    }
}

#[test]
fn mistakes_are_told_with_their_line() {
    let error = fails("a\n{% if %}");
    assert!(error.starts_with("m/chat_template.jinja: the chat template fails: syntax error"), "{error}");
    assert!(error.contains(":2)"), "{error}");
    assert!(fails("{{ x|nothing }}").contains("unknown filter"));
    assert!(fails("{{ strftime_now('%d') }}").contains("the date of today"));
    assert!(fails("{{ a.b.c }}").contains("undefined"));
    assert!(matches!(run("{{ raise_exception('no\nway') }}"), Err(ChatError::Refused(m)) if m == "no\\nway"));
    let inner = "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}";
    assert!(matches!(run(inner), Err(ChatError::Refused(m)) if m == "deep"));
}

#[test]
fn values_are_printed_and_tested_as_python_does() {
    let printed =
        "{{ none }} {{ true }} {{ false }} {{ none|string }} {{ true|string }} {{ 'a'|string }} {{ 1.0 }}";
    assert_eq!(run(printed).unwrap(), "None True False None True a 1.0");
    let tested = "{{ none is iterable }} {{ [] is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ 1 is iterable }}";
    assert_eq!(run(tested).unwrap(), "False True True True False");
}

#[test]
fn generation_marks_are_blocks_that_print_what_is_in_them() {
    let text = "{% set a = 1 %}a\n{%- generation -%}\n b{% set a = 2 %}{{ a }} {%+ endgeneration %}\n{{ a }} generation";
    assert_eq!(run(text).unwrap(), "ab2 1 generation");
    assert!(fails("{% generation %}").contains("syntax error"));
}

#[test]
fn long_messages_are_work_that_is_allowed() {
    let text = "{% for m in messages %}{% set a = m|trim %}{{ ('[' + a ~ ']')|trim }}{% endfor %}";
    let prompt = render(Source { text, path: Path::new("m") }, scene(20 << 20)).unwrap();
    assert_eq!(prompt.len(), (20 << 20) + 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_text_breaks_the_engine(
        text in "(\\{%|%\\}|\\{\\{|\\}\\}|-|\\{#|#\\}| |\n|for|in|if|else|endif|endfor|set|macro|endmacro|messages|x|\
            loop|\\.|\\||tojson|trim|\\[|\\]|\\(|\\)|'|=|1|9999999999999999999999|~|\\+|\\*|:|,|\\{|\\}|é){0,40}",
    ) {
        let _ = run(&text);
    }

    #[test]
    fn no_damage_to_a_template_breaks_the_engine(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..20, "[ -~é]{0,3}"), 1..4),
    ) {
        let sources = [include_str!("templates/llama3.jinja"), include_str!("templates/qwen.jinja"),
            include_str!("templates/mistral.jinja")];
        let mut text: Vec<char> = sources[which].chars().collect();
        for (at, length, insert) in edits {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let _ = run(&text.into_iter().collect::<String>());
    }
}
