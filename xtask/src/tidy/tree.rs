//! The files of the repository, read once. Must not know any rule.

use std::path::Path;
use std::process::Command;

use super::source::{Language, Views};

/// One file of the repository.
pub(crate) struct File {
    /// Path from the root, with forward slashes.
    pub(crate) path: String,
    /// Length on disk.
    pub(crate) bytes: u64,
    /// `None` where the content is not UTF-8 or holds a zero byte: binary.
    pub(crate) text: Option<String>,
    /// Code and comments apart, for the languages the lexer knows.
    pub(crate) views: Option<Views>,
}

impl File {
    fn new(path: &str, content: Vec<u8>) -> Self {
        let bytes = content.len() as u64;
        let text = String::from_utf8(content).ok().filter(|t| !t.contains('\0'));
        let views = text.as_deref().zip(Language::of(path)).map(|(text, language)| Views::of(text, language));
        Self { path: path.to_owned(), bytes, text, views }
    }

    /// The text, or nothing for a binary.
    pub(crate) fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// The part of the name after the last dot; empty where there is none.
    pub(crate) fn extension(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

/// Every file git tracks, and every new one it does not ignore.
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads the checkout at `root`.
    ///
    /// # Errors
    /// One line, when git cannot list the files or one of them cannot be read.
    pub(crate) fn of_checkout(root: &Path) -> Result<Self, String> {
        let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
        let listing = Command::new("git")
            .arg("-C")
            .arg(&root)
            // A checkout mounted into a container often belongs to another user.
            .args(["-c", &format!("safe.directory={}", root.display())])
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .map_err(|e| format!("git cannot be run: {e}; install git"))?;
        if !listing.status.success() {
            let why = String::from_utf8_lossy(&listing.stderr);
            return Err(format!("git ls-files: {}", why.trim()));
        }
        let names = String::from_utf8(listing.stdout).map_err(|e| format!("a path is not UTF-8: {e}"))?;
        let mut files = Vec::new();
        for name in names.split('\0').filter(|n| !n.is_empty()) {
            let path = root.join(name);
            // Deleted but not yet committed, or a link to a folder.
            if !path.is_file() {
                continue;
            }
            files.push(File::new(name, std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?));
        }
        Ok(Self { files })
    }

    /// The file at `path`.
    pub(crate) fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// Whether `path` is a file or a folder that holds one; the root is the empty path.
    pub(crate) fn holds(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        path.is_empty() || self.files.iter().any(|f| f.path == path || f.path.starts_with(&folder))
    }

    /// The Rust files with their text split into code and comments.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&File, &Views)> {
        self.files.iter().filter(|f| f.extension() == "rs").filter_map(|f| Some((f, f.views.as_ref()?)))
    }

    /// A tree made of text, for the tests of rules.
    #[cfg(test)]
    pub(crate) fn sample(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(path, text)| File::new(path, text.as_bytes().to_vec())).collect() }
    }

    /// A tree of one file of raw bytes, for the tests of rules.
    #[cfg(test)]
    pub(crate) fn sample_binary(path: &str, content: Vec<u8>) -> Self {
        Self { files: vec![File::new(path, content)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_lists_this_very_file() {
        let tree = Tree::of_checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        let this = tree.get("xtask/src/tidy/tree.rs").unwrap();
        assert!(this.text().starts_with("//! The files of the repository"));
        assert!(!tree.files.iter().any(|f| f.path.starts_with("target/")));
    }

    #[test]
    fn a_folder_without_git_is_an_error_of_one_line() {
        let error = Tree::of_checkout(Path::new("/")).err().unwrap();
        assert!(error.starts_with("git ls-files: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn folders_are_held_only_by_their_files() {
        let tree = Tree::sample(&[("docs/a.md", "")]);
        assert!(tree.holds("docs") && tree.holds("docs/") && tree.holds("docs/a.md"));
        assert!(!tree.holds("doc") && !tree.holds("docs/b.md"));
    }

    #[test]
    fn a_zero_byte_makes_a_binary() {
        assert!(Tree::sample_binary("g.bin", vec![b'a', 0]).files[0].text.is_none());
        assert!(Tree::sample_binary("g.txt", vec![b'a']).files[0].text.is_some());
    }
}
