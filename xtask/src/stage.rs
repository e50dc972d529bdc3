//! Puts what a GPU machine without cargo needs into one folder: the binary, the CUDA tests, and the script that runs
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the folder may weigh.
const BYTES_MAX: u64 = 64 << 20;
const SCRIPT: &str = "tools/gpu/check.sh";

/// Builds, strips and copies into `.stage/` under `root`; returns what is there, one line a file.
///
/// # Errors
/// One line, when a build fails, a file cannot be copied, or the folder is too heavy.
pub(crate) fn stage(root: &Path) -> Result<String, String> {
    let folder = root.join(".stage");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let binary = ["build", "--package", "headinfer", "--bin", "headinfer"];
    let tests = ["test", "--package", "headinfer-cuda", "--test", "cuda", "--no-run"];
    let mut report = String::new();
    let mut total = 0;
    for (name, arguments) in [("headinfer", &binary[..]), ("cuda-tests", &tests[..])] {
        let to = folder.join(name);
        strip(&build(root, arguments)?, &to)?;
        total += note(&to, &mut report)?;
    }
    let script = folder.join("check.sh");
    fs::copy(root.join(SCRIPT), &script).map_err(|e| format!("{SCRIPT}: {e}"))?;
    total += note(&script, &mut report)?;
    match total <= BYTES_MAX {
        true => Ok(report),
        false => Err(format!("{} holds {total} bytes, at most {BYTES_MAX}", folder.display())),
    }
}

/// Runs cargo and returns the executable it made, the last one it names.
fn build(root: &Path, arguments: &[&str]) -> Result<PathBuf, String> {
    let output = Command::new("cargo")
        .current_dir(root)
        .args(arguments)
        .args(["--release", "--locked", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo cannot be run: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages.lines().filter_map(executable).next_back();
    executable.ok_or_else(|| format!("cargo {} made no executable", arguments.join(" ")))
}

/// The path after `"executable":"` in one of cargo's messages.
fn executable(message: &str) -> Option<PathBuf> {
    let (_, rest) = message.split_once("\"executable\":\"")?;
    rest.split('"').next().map(PathBuf::from)
}

fn strip(from: &Path, to: &Path) -> Result<(), String> {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    match status.map_err(|e| format!("strip cannot be run: {e}; install binutils"))? {
        status if status.success() => Ok(()),
        _ => Err(format!("strip {} failed", from.display())),
    }
}

fn note(path: &Path, report: &mut String) -> Result<u64, String> {
    let bytes = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
    *report += &format!("{:>12}  {}\n", bytes, path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_read_from_cargos_message() {
        let message = r#"{"reason":"compiler-artifact","executable":"/t/release/deps/cuda-1","fresh":true}"#;
        assert_eq!(executable(message), Some(PathBuf::from("/t/release/deps/cuda-1")));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
    }
}
