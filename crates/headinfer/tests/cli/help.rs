//! Help of every command, and wrong usage.

use crate::support::{headinfer, run};

const COMMANDS: [&str; 9] =
    ["plan", "run", "serve", "niah", "logits", "bench", "doctor", "model", "completions"];

#[test]
fn every_command_has_help_and_the_main_ones_have_examples() {
    assert!(run("--help").stdout.contains("Exit codes: 0 done"));
    for command in COMMANDS {
        let help = run(&format!("{command} --help"));
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{command}");
        assert!(help.stdout.contains("Usage: headinfer"), "{command}");
    }
    for command in ["plan", "run", "serve", "niah", "logits", "model make", "completions"] {
        assert!(run(&format!("{command} --help")).stdout.contains("Example"), "{command}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    run("plan").fails(2, &["--model <MODEL>", "hint: "]);
    run("plan -m random:tiny -c 12q").fails(2, &["12q", "128k"]);
    run("plan -m random:tiny -c 1k --gpu-memory lots").fails(2, &["lots", "24GiB"]);
    run("plan -m random:tiny -c 0 --device cpu").fails(2, &["--context"]);
    run("plan -m random:tiny -c 1k --device cpu --tile 100").fails(2, &["--tile", "256"]);
    run("plan -m random:tiny -c 1k --device cpu --heads-per-group 9").fails(2, &["--heads-per-group"]);
    run("plan -m random:tiny -c 1k --devise cpu").fails(2, &["--devise", "--device"]);
    run("plan -m random:tiny -c 1k --device tpu").fails(2, &["tpu"]);
    run("fly").fails(2, &["fly"]);
    run("niah -c 1k --depths 0,2").fails(2, &["--depths"]);
    run("niah -c 1k --depths 0,1.5").fails(2, &["'1.5' is not a depth"]);
}

#[test]
fn the_environment_sets_what_no_flag_says() {
    let mut command = headinfer();
    command
        .env("HEADINFER_MODEL", "random:tiny")
        .env("HEADINFER_CONTEXT", "2k")
        .env("HEADINFER_DEVICE", "cpu");
    let output = command.args(["plan", "--json", "-c", "1k"]).output().unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["context"], 1024);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn completions_name_the_commands() {
    let script = run("completions bash");
    assert_eq!(script.code, 0);
    assert!(COMMANDS.iter().all(|command| script.stdout.contains(command)));
}
