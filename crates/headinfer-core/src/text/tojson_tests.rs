//! JSON as Python writes it; the expected texts are `json.dumps(x, ensure_ascii=False)`.

use minijinja::Environment;

use super::*;

fn write(value: &str, arguments: &str) -> Result<String, Error> {
    let mut env = Environment::new();
    env.add_filter("tojson", tojson);
    let value: Value = serde_json::from_str(value).unwrap();
    env.render_str(&format!("{{{{ x|tojson{arguments} }}}}"), minijinja::context!(x => value))
}

#[test]
fn values_are_written_as_python_does() {
    for (value, expected) in [
        (r#"{"b":1,"a":[true,null,"x"],"c":{}}"#, r#"{"b": 1, "a": [true, null, "x"], "c": {}}"#),
        (r#""<&'>\"\\\n\u0001\u007fé""#, "\"<&'>\\\"\\\\\\n\\u0001\u{7f}é\""),
        (
            "[1e16,1e15,1e-5,0.0001,1.5,-2.0,1e100,18446744073709551615]",
            "[1e+16, 1000000000000000.0, 1e-05, 0.0001, 1.5, -2.0, 1e+100, 18446744073709551615]",
        ),
    ] {
        assert_eq!(write(value, "").unwrap(), expected);
    }
}

#[test]
fn options_of_python_are_followed_or_refused() {
    let value = r#"{"a":[1,2],"b":[],"c":[[]]}"#;
    let tall = "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": [],\n  \"c\": [\n    []\n  ]\n}";
    assert_eq!(write(value, "(indent=2)").unwrap(), tall);
    assert_eq!(write(value, "(2, ensure_ascii=false)").unwrap(), tall);
    assert_eq!(write(value, "(separators=(',', ':'))").unwrap(), r#"{"a":[1,2],"b":[],"c":[[]]}"#);
    for arguments in
        ["(ensure_ascii=true)", "(sort_keys=true)", "(indent=65)", "(indent='x')", "(separators=[1])"]
    {
        assert!(write(value, arguments).is_err(), "{arguments}");
    }
}

#[test]
fn nesting_has_a_limit() {
    let nested = |n: usize| ["[".repeat(n), "]".repeat(n)].concat();
    assert_eq!(write(&nested(100), "").unwrap(), nested(100));
    let mut value = Value::from(0);
    for _ in 0..=DEPTH_MAX {
        value = Value::from(vec![value]);
    }
    let mut env = Environment::new();
    env.add_filter("tojson", tojson);
    let error = env.render_str("{{ x|tojson }}", minijinja::context!(x => value)).unwrap_err();
    assert!(error.to_string().contains("nested deeper"), "{error}");
}
