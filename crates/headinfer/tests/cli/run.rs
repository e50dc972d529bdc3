//! `run`: prompts in, text out.

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use headinfer_core::model::retrieval::{Retrieval, retrieval_spec};

use crate::support::{Ran, copy_of_tiny, folder, headinfer, run, tiny};

static RETRIEVAL: LazyLock<Retrieval> =
    LazyLock::new(|| Retrieval::of(&retrieval_spec(None).unwrap()).unwrap());

fn word(id: u32) -> String {
    RETRIEVAL.word(id).unwrap()
}

/// A text in which name 3 is followed by name 5, and name 5 by name 7.
fn haystack() -> String {
    let filler = |n: u32| word(RETRIEVAL.fillers().start + n);
    let needle = |a, b| format!("{} {}", word(RETRIEVAL.key(a)), word(RETRIEVAL.value(b)));
    [filler(0), needle(3, 5), filler(1), filler(2), needle(5, 7), filler(3)].join(" ") + " "
}

fn question() -> String {
    word(RETRIEVAL.key(3))
}

fn answer() -> [String; 2] {
    [word(RETRIEVAL.value(5)), word(RETRIEVAL.value(7))]
}

/// `run -m builtin:retrieval` with further arguments and an input.
fn ask(arguments: &[&str], stdin: &str) -> Ran {
    let mut command = headinfer();
    command.args(["run", "-m", "builtin:retrieval", "--device", "cpu"]);
    if !arguments.contains(&"-n") {
        command.args(["-n", "2"]);
    }
    command.args(arguments);
    Ran::of(command.write_stdin(stdin))
}

#[test]
fn an_answer_is_fetched_from_file_text_or_stdin() {
    let dir = folder();
    let file = dir.path().join("haystack.txt");
    fs::write(&file, haystack()).unwrap();
    let file = file.display().to_string();
    let whole = haystack() + &question();
    let want = answer().join(" ");
    let tight = ["--placement", "offload", "--chunk", "2"];
    for ran in [
        ask(&["-f", &file, "-p", &question()], ""),
        ask(&["-p", &whole], "not read"),
        ask(&[], &whole),
        ask(&tight, &whole),
    ] {
        assert_eq!((ran.code, ran.stdout.trim()), (0, want.as_str()), "{ran:?}");
        let last = ran.stderr.lines().last().unwrap();
        for part in ["prompt tokens", "2 new", "tok/s", "GB/s", "overlap", "peak device", "logits "] {
            assert!(last.contains(part), "no '{part}' in {last}");
        }
    }
}

#[test]
fn json_tells_the_text_and_what_was_measured() {
    let object = ask(&["--json"], &(haystack() + &question())).json();
    assert_eq!(object["text"].as_str().unwrap().trim(), answer().join(" "));
    assert_eq!(object["ids"], serde_json::json!([RETRIEVAL.value(5), RETRIEVAL.value(7)]));
    assert_eq!(object["finish"], "length");
    let measured = &object["measured"];
    assert_eq!(measured["device_peak_bytes"], measured["plan_device_bytes"]);
    assert_eq!(measured["host_bytes"], measured["plan_host_bytes"]);
    assert_eq!(measured["new_tokens"], 2);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let second = &answer()[1];
    let ran = ask(&["--stop", second], &(haystack() + &question()));
    assert_eq!((ran.code, ran.stdout.trim()), (0, answer()[0].as_str()), "{ran:?}");
    ask(&["--stop", ""], "x").fails(2, &["--stop"]);
}

#[test]
fn the_seed_decides_what_is_drawn() {
    let drawn = |seed: &str| {
        let hot = ["--temp", "50", "--top-k", "400", "--top-p", "1", "--min-p", "0", "-s", seed];
        let ran = ask(&hot, &haystack());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    for (flag, value) in [("--temp", "-1"), ("--top-k", "0"), ("--top-p", "2"), ("--repeat-penalty", "0")] {
        ask(&[&format!("{flag}={value}")], "x").fails(2, &[&flag[2..5]]);
    }
}

#[test]
fn empty_and_unreadable_prompts_are_named() {
    let dir = folder();
    let file = dir.path().join("prompt");
    let name = file.display().to_string();
    ask(&["-f", &name], "").fails(4, &["cannot read", &name]);
    fs::write(&file, "").unwrap();
    ask(&["-f", &name], "").fails(4, &["the prompt is empty", &name]);
    ask(&["-p", ""], "").fails(2, &["the prompt is empty"]);
    ask(&[], "").fails(4, &["the prompt is empty", "standard input"]);
    fs::write(&file, b"abc\xff").unwrap();
    ask(&["-f", &name], "").fails(4, &["not UTF-8", "byte at 3"]);
}

#[test]
fn what_exceeds_the_context_is_refused_not_cut() {
    let text = haystack();
    ask(&["--context", "4"], &text).fails(3, &["9 tokens", "context of 4", "--context 9"]);
    ask(&["--context", "9"], &text).fails(3, &["10 tokens", "--context 10"]);
    assert_eq!(ask(&["--context", "10"], &text).code, 0);
}

#[test]
fn a_model_without_words_says_what_to_use() {
    run("run -m random:llama-3-8b -p x --device cpu").fails(4, &["no tokenizer", "logits --ids"]);
    run(&format!("run -m {} -p x --device cpu", tiny().display())).fails(4, &["tokenizer.json"]);
    ask(&["--chat"], "x").fails(4, &["no chat template", "--chat"]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let dir = folder();
    let model = copy_of_tiny(&dir);
    fs::write(model.join("tokenizer.json"), RETRIEVAL.tokenizer_json()).unwrap();
    run(&format!("run -m {} -p x --device cpu", model.display())).fails(4, &["tokenizer.json", "512"]);
}

#[test]
fn a_reader_that_leaves_ends_the_generation_cleanly() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
    command.args(["-q", "run", "-m", "builtin:retrieval", "--device", "cpu", "-n", "100000", "-p"]);
    command.arg(haystack() + &question()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// A prompt of about `words` words, with one needle after a third.
fn long_prompt(words: u32) -> String {
    let filler = |n: u32| word(RETRIEVAL.fillers().start + n * n % RETRIEVAL.fillers().len() as u32);
    let needle = [word(RETRIEVAL.key(3)), word(RETRIEVAL.value(5))].join(" ");
    let words: Vec<String> =
        (0..words).map(|n| if n == words / 3 { needle.clone() } else { filler(n) }).collect();
    words.join(" ") + " "
}

#[test]
fn a_kept_prefill_is_restored_by_another_process_under_another_placement() {
    let dir = folder();
    let cache = dir.path().join("sessions").display().to_string();
    let with = |more: &[&str], text: &str| {
        let ran = ask(&[&["--cache-dir", &cache, "--json"], more].concat(), text);
        let measured = ran.json()["measured"].clone();
        (ran, measured)
    };
    let text = long_prompt(2600) + &question();
    let (_, fresh) = with(&["--placement", "offload"], &text);
    assert_eq!(fresh["restored_tokens"], 0);
    let (again, restored) = with(&["--placement", "resident"], &text);
    assert_eq!(
        (&restored["restored_tokens"], &restored["logits_hash"]),
        (&2560.into(), &fresh["logits_hash"])
    );
    assert!(again.stderr.contains("restored 2560 of ") && again.stderr.contains("kept 2560 tokens in "));
    // Another question at the same text, and a damaged file.
    let other = long_prompt(2600) + &word(RETRIEVAL.key(9));
    assert_eq!(with(&[], &other).1["restored_tokens"], 2560);
    let stored = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path());
    for path in stored.filter(|path| path.extension().is_some_and(|e| e == "kv")) {
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let (ran, damaged) = with(&[], &text);
    assert_eq!((&damaged["restored_tokens"], &damaged["logits_hash"]), (&0.into(), &fresh["logits_hash"]));
    assert_eq!(ran.stderr.matches("is passed over").count(), 1, "{ran:?}");
}

#[test]
fn a_store_that_cannot_be_used_is_refused_before_any_work() {
    let dir = folder();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    ask(&["--cache-dir", &file.display().to_string()], "x").fails(1, &["session store", "--cache-dir"]);
    let cache = dir.path().join("sessions").display().to_string();
    ask(&["--cache-dir", &cache, "--cache-size", "1KiB"], "x").fails(2, &["1.00 KiB", "--cache-size"]);
}

/// Skips aloud where the trained model does not lie beside the checkout.
#[test]
fn the_trained_model_goes_on_from_held_out_text_the_same_wherever_its_cache_is() {
    let shared = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let (model, text) = (shared.join("models/code-22m"), shared.join("texts/heldout.txt"));
    if !model.exists() || !text.exists() {
        return eprintln!("skipped: {} is not here", shared.display());
    }
    let dir = folder();
    let file = dir.path().join("start.txt");
    let start: String = fs::read_to_string(text).unwrap().chars().take(4000).collect();
    fs::write(&file, start).unwrap();
    let line =
        format!("run -m {} -f {} --device cpu -n 32 --chunk 128 --json", model.display(), file.display());
    let resident = run(&format!("{line} --placement resident")).json();
    let offload = run(&format!("{line} --placement offload --tile 256")).json();
    eprintln!("{}", resident["text"]);
    assert_eq!(resident["text"], offload["text"]);
    assert_eq!(resident["ids"], offload["ids"]);
    assert!(!resident["text"].as_str().unwrap().trim().is_empty());
}

#[test]
fn guesses_change_nothing_but_the_number_of_passes() {
    // A ring of two needles: the text goes round in it, and says what it said before.
    let ring = haystack() + &format!("{} {} ", word(RETRIEVAL.key(7)), word(RETRIEVAL.value(3)));
    let run = |speculate: &str| {
        let flags = ["-n", "40", "--json", "--speculate", speculate];
        ask(&flags[..], &(ring.clone() + &question())).json()
    };
    let (off, on, auto) = (run("off"), run("15"), run("auto"));
    for other in [&on, &auto] {
        assert_eq!((&other["ids"], &other["text"]), (&off["ids"], &off["text"]));
        assert_eq!(other["measured"]["logits_hash"], off["measured"]["logits_hash"]);
    }
    let of = |run: &serde_json::Value, name: &str| run["measured"][name].as_f64().unwrap();
    assert_eq!(
        (of(&off, "passes"), of(&off, "tokens_per_pass"), of(&off, "guessed_tokens")),
        (39.0, 1.0, 0.0)
    );
    assert!(of(&on, "passes") < 15.0 && of(&on, "tokens_per_pass") > 2.0, "{on}");
    let line = ask(&["-n", "40", "--speculate", "15"], &(ring.clone() + &question())).stderr;
    assert!(line.contains(" a pass (") && line.contains(" guesses right)"), "{line}");
    ask(&["--speculate", "16"], "x").fails(2, &["16", "auto, off, or a number of guesses within 1..=15"]);
}
