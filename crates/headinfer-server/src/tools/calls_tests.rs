//! Calls in whole texts and in pieces.

use super::*;

fn parser(format: CallFormat, spelled: bool) -> Calls {
    Calls::new(format, vec!["weather".into(), "time".into()], spelled)
}

fn joined(said: Vec<Said>) -> Vec<Said> {
    let mut joined: Vec<Said> = Vec::new();
    for part in said {
        match (joined.last_mut(), part) {
            (Some(Said::Text(before)), Said::Text(text)) => *before += &text,
            (Some(Said::Arguments(before)), Said::Arguments(more)) => *before += &more,
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn read(format: CallFormat, text: &str) -> Vec<Said> {
    read_as(format, false, text)
}

/// What is said does not depend on how the text is cut.
fn read_as(format: CallFormat, spelled: bool, text: &str) -> Vec<Said> {
    let mut whole = parser(format, spelled);
    let mut expected = whole.push(text);
    expected.extend(whole.finish());
    let expected = joined(expected);
    for step in 1..6 {
        let mut parts = parser(format, spelled);
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars.chunks(step).map(|piece| piece.iter().collect::<String>());
        let mut said: Vec<Said> = pieces.flat_map(|piece| parts.push(&piece)).collect();
        said.extend(parts.finish());
        assert_eq!(joined(said), expected, "in pieces of {step}");
        assert_eq!(parts.called(), expected.iter().any(|s| matches!(s, Said::Call(_))));
    }
    expected
}

fn call(name: &str, arguments: &str) -> [Said; 2] {
    [Said::Call(name.into()), Said::Arguments(arguments.into())]
}

fn text(text: &str) -> Said {
    Said::Text(text.into())
}

#[test]
fn tagged_calls_come_between_texts() {
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"b\": 1, \"a\": \"\u{e9}\"}}\n\
        </tool_call>\n<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>\n";
    let calls = [call("weather", "{\"b\": 1, \"a\": \"\u{e9}\"}"), call("time", "{}")].concat();
    assert_eq!(read(CallFormat::Tagged, answer), [vec![text("Let me see.\n")], calls].concat());
}

#[test]
fn a_tag_within_a_string_does_not_end_a_call() {
    let answer = "<tool_call>{\"name\": \"time\", \"arguments\": {\"x\": \"</tool_call>\"}}</tool_call>";
    assert_eq!(read(CallFormat::Tagged, answer), call("time", "{\"x\": \"</tool_call>\"}"));
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "a < b <tool> <tool_cal",
        "<tool_call>nonsense</tool_call> and more",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"time\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"ti",
        "  ",
    ] {
        assert_eq!(read(CallFormat::Tagged, answer), [text(answer)]);
    }
    for answer in
        ["{\"temperature\": 3}", "{\"name\": \"time\"} is a call", "[]", "[1, 2]", " yes {", "{\"na"]
    {
        assert_eq!(read(CallFormat::Parameters, answer), [text(answer)]);
    }
    assert_eq!(read(CallFormat::Tagged, ""), []);
}

#[test]
fn a_call_without_its_last_tag_is_one() {
    let answer = "<tool_call>\n{\"name\": \"time\", \"arguments\": \"{\\\"zone\\\": 1}\"}\n";
    assert_eq!(read(CallFormat::Tagged, answer), call("time", "{\"zone\": 1}"));
}

#[test]
fn an_answer_of_calls_alone_is_read_at_its_end() {
    let one = "\n{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}";
    assert_eq!(read(CallFormat::Parameters, one), call("weather", "{\"city\": \"Oslo\"}"));
    let row = "{\"name\": \"time\", \"parameters\": {}}; {\"name\": \"time\"}";
    assert_eq!(read(CallFormat::Parameters, row), [call("time", "{}"), call("time", "{}")].concat());
    let list = "[{\"name\": \"time\", \"arguments\": {\"a\": 1}}]";
    assert_eq!(read(CallFormat::Arguments, list), call("time", "{\"a\": 1}"));
}

#[test]
fn calls_that_a_grammar_spells_are_told_while_they_are_made() {
    let arguments = "{\"a\": [{\"b\": \"}]\\\"</tool_call>\"}], \"c\": \"\u{e9}\\\\\"}";
    let one = |key: &str| format!("{{\"name\": \"weather\", \"{key}\": {arguments}}}");
    let two = [call("weather", arguments), call("weather", arguments)].concat();
    let tagged = |call: String| format!("<tool_call>\n{call}\n</tool_call>");
    let answer = format!("Well.{}\n{}", tagged(one("arguments")), tagged(one("arguments")));
    assert_eq!(read_as(CallFormat::Tagged, true, &answer), [vec![text("Well.")], two.clone()].concat());
    for (format, key) in [(CallFormat::Parameters, "parameters"), (CallFormat::Arguments, "arguments")] {
        let answer = format!("{}; {}", one(key), one(key));
        assert_eq!(read_as(format, true, &answer), two);
        assert_eq!(read_as(format, true, "No."), [text("No.")]);
        // Cut off within the arguments, and before.
        let cut = answer.find("[").unwrap();
        assert_eq!(read_as(format, true, &answer[..cut]), call("weather", "{\"a\": "));
        assert_eq!(read_as(format, true, &answer[..9]), [text(&answer[..9])]);
    }
    assert_eq!(read_as(CallFormat::Tagged, true, &answer[..20]), [text(&answer[..20])]);
    let mut parts = parser(CallFormat::Arguments, true);
    assert_eq!(parts.push("{\"name\": \"time\", \"arguments\": "), [Said::Call("time".into())]);
    assert_eq!(parts.push("{\"x"), [Said::Arguments("{\"x".into())]);
    assert!(parts.called());
}
