//! Starting the program, and small models and inputs for it.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The program, with none of the caller's settings and no network.
pub(crate) fn headinfer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
    command.env_clear().env("HF_HUB_OFFLINE", "1").env("HOME", "/nonexistent");
    command
}

/// Runs `line`, split at spaces.
pub(crate) fn run(line: &str) -> Ran {
    Ran::of(headinfer().args(line.split_whitespace()))
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts a clean end and reads stdout as one JSON object.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Asserts exit code `code`, one `error:` line that holds all of `words`, and neither data nor a panic.
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        let known = ["error: ", "cause: ", "hint: ", "no CUDA device", "warning: "];
        for line in self.stderr.lines() {
            assert!(known.iter().any(|start| line.starts_with(start)), "{self:?}");
        }
        for word in words {
            assert!(self.stderr.contains(word), "no '{word}' in {self:?}");
        }
    }
}

/// A folder for one test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// `random:tiny` as a folder, made once by the program itself.
pub(crate) fn tiny() -> &'static Path {
    static TINY: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
        let dir = folder();
        let path = dir.path().join("tiny");
        let made = run(&format!("model make random:tiny --out {}", path.display()));
        assert_eq!(made.code, 0, "{made:?}");
        (dir, path)
    });
    &TINY.1
}

/// A copy of [`tiny`] that a test may damage.
pub(crate) fn copy_of_tiny(dir: &TempDir) -> PathBuf {
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(tiny()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// A JSON list of `count` ids of the tiny model.
pub(crate) fn ids(dir: &TempDir, count: usize) -> PathBuf {
    let ids: Vec<usize> = (0..count).map(|i| (i * 7919 + 13) % 512).collect();
    let path = dir.path().join(format!("ids-{count}.json"));
    std::fs::write(&path, serde_json::to_string(&ids).unwrap()).unwrap();
    path
}

/// Names in a folder, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}
