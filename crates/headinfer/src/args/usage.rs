//! Wrong usage as this program reports every error: one line, a hint, exit code 2.

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::error::{Exit, report};
use crate::output::stdout_failed;

/// Prints help and version as clap has them, and anything else as one `error:` line and a hint.
pub(super) fn print(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => report(&stdout_failed(e).into()),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Exit::Usage.into()
        }
        _ => {
            let (message, hint) = condense(&error.render().to_string());
            // Nothing can be told to a user whose stderr is gone.
            let _ = writeln!(std::io::stderr(), "{message}\n{hint}");
            Exit::Usage.into()
        }
    }
}

/// The first paragraph of clap's text joined to one line, and its tip, or where to read on.
fn condense(text: &str) -> (String, String) {
    let mut paragraphs = text.split("\n\n");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = words(paragraphs.next().unwrap_or_default());
    let rest: Vec<String> = paragraphs.map(words).collect();
    let tip = rest.iter().find_map(|p| p.strip_prefix("tip: "));
    let usage = rest.iter().find_map(|p| p.strip_prefix("Usage: "));
    let hint = match (tip, usage) {
        (Some(tip), _) => tip.to_owned(),
        (None, Some(usage)) => usage.to_owned(),
        (None, None) => "headinfer --help".to_owned(),
    };
    (message, format!("hint: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line_and_a_hint() {
        let text = "error: the following required arguments were not provided:\n  --model <MODEL>\n\n\
                    Usage: headinfer plan --model <MODEL>\n\nFor more information, try '--help'.\n";
        let (message, hint) = condense(text);
        assert_eq!(message, "error: the following required arguments were not provided: --model <MODEL>");
        assert_eq!(hint, "hint: headinfer plan --model <MODEL>");
    }
}
