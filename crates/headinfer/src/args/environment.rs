//! What is read from the environment besides the flags that clap reads there.

use std::io::IsTerminal;
use std::path::PathBuf;

use headinfer_core::model::hub::HubEnv;

/// What the process was started in.
#[derive(Debug)]
pub(crate) struct Environment {
    /// Where models are looked for.
    pub(crate) hub: HubEnv,
    /// Folder for files that can be made again: the figures of `doctor`. `None` when there is no home.
    pub(crate) cache: Option<PathBuf>,
}

impl Environment {
    /// Reads HF_* and HOME, XDG_CACHE_HOME, HEADINFER_CACHE.
    pub(super) fn read() -> Self {
        let progress = std::io::stderr().is_terminal();
        Self { hub: HubEnv::from_vars(variable, progress), cache: cache(variable) }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn cache(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let shared = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    var("HEADINFER_CACHE").or_else(|| Some(shared()?.join("headinfer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_desktop_standard_says() {
        let with = |pairs: &'static [(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            cache(find)
        };
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.cache/headinfer".into()));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Some("/c/headinfer".into()));
        assert_eq!(with(&[("HEADINFER_CACHE", "/x"), ("XDG_CACHE_HOME", "/c")]), Some("/x".into()));
        assert_eq!(with(&[]), None);
    }
}
