//! Where output goes wrong: closed pipes, full disks, folders that cannot be written.

use std::fs::{self, File};
use std::process::Stdio;

use crate::support::{Ran, folder, headinfer, ids, names, run, tiny};

#[test]
fn a_reader_that_leaves_is_a_clean_end() {
    for line in ["plan -m random:tiny -c 1k --device cpu", "completions bash", "--help", "plan --help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headinfer"));
        command.args(line.split(' ')).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{line}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headinfer"));
    let output = command.args(["plan", "-m", "random:tiny", "-c", "1k"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("error: cannot write to standard output"));
    for line in ["--help", "--version", "completions bash"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headinfer"));
        let output = command.args(line.split(' ')).stdout(full()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), told.matches("error: cannot write").count()),
            (Some(1), 1),
            "{line}: {told}"
        );
    }

    let dir = folder();
    let line = format!("logits -m random:tiny --ids {} --out /dev/full", ids(&dir, 9).display());
    run(&line).fails(1, &["cannot write /dev/full", "No space left"]);
}

#[test]
fn an_output_that_cannot_be_written_leaves_nothing() {
    let dir = folder();
    let ids = ids(&dir, 9);
    let to = |out: &str| run(&format!("logits -m random:tiny --ids {} --out {out}", ids.display()));
    to(&dir.path().join("no/such/folder.safetensors").display().to_string()).fails(1, &["cannot write"]);
    to(&dir.path().display().to_string()).fails(1, &["cannot write", "directory"]);
    assert_eq!(names(dir.path()), ["ids-9.json"]);
}

#[test]
fn a_model_that_cannot_be_written_leaves_no_folder() {
    let dir = folder();
    fs::write(dir.path().join("file"), "").unwrap();
    let out = dir.path().join("model");
    // A limit on the size of files stands for a disk that is full.
    let limited = "ulimit -f 8; trap '' XFSZ; exec \"$0\" model make random:tiny --out \"$1\"";
    let mut command = std::process::Command::new("bash");
    let output = command.args(["-c", limited, env!("CARGO_BIN_EXE_headinfer")]).arg(&out).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.starts_with("error: cannot write") && told.contains("model.safetensors"), "{told}");
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_failure_leaves_the_old_output_as_it_was() {
    let dir = folder();
    let out = dir.path().join("out");
    fs::write(&out, "old").unwrap();
    let ids = ids(&dir, 9);
    let (ids, out_name) = (ids.display(), out.display());
    let line = format!("logits -m random:tiny --ids {ids} --out {out_name} --gpu-memory 1KiB --device cpu");
    run(&line).fails(3, &["--gpu-memory"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "old");
    assert_eq!(names(dir.path()), ["ids-9.json", "out"]);
    assert_eq!(run(&line.replace("--gpu-memory 1KiB", "")).code, 0);
    assert_ne!(fs::read(&out).unwrap(), b"old");
}

#[test]
fn a_model_is_not_written_over_something() {
    let dir = folder();
    let used = tiny().display();
    run(&format!("model make random:tiny --out {used}")).fails(1, &["not empty", "--out"]);
    run(&format!("model make random:nothing --out {}", dir.path().display())).fails(4, &["nothing", "tiny"]);
    run("model make nonsense --out x").fails(2, &["nonsense", "random:SHAPE"]);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn quiet_keeps_only_errors() {
    let mut command = headinfer();
    let plan = Ran::of(command.args(["-q", "plan", "-m", "random:tiny", "-c", "1k"]));
    assert_eq!((plan.code, plan.stderr.as_str()), (0, ""));
}
