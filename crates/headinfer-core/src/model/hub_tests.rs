//! Model names and the local cache, without a network.

use super::*;

fn env(cache: &Path) -> HubEnv {
    HubEnv {
        cache: cache.into(),
        offline: true,
        token: None,
        endpoint: "http://127.0.0.1:1".into(),
        progress: false,
    }
}

/// A cache with one snapshot of `org/name` that holds `files`.
fn fabricate(cache: &Path, files: &[(&str, &str)]) -> PathBuf {
    let repo = cache.join("models--org--name");
    let snapshot = repo.join("snapshots/abc123");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "abc123\n").unwrap();
    for (name, text) in files {
        std::fs::write(snapshot.join(name), text).unwrap();
    }
    snapshot
}

#[test]
fn a_folder_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(resolve(dir.path().to_str().unwrap(), &env(dir.path())).unwrap(), dir.path());
}

#[test]
fn what_names_nothing_is_refused_without_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let env = HubEnv { offline: false, ..env(dir.path()) };
    let ids =
        ["./models/x", "/no/such", "name", "a/b/c", "../x", "org/", "~/x", "org/na me", "org/..", "a--b/c"];
    for model in ids {
        let error = resolve(model, &env).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("org/name"), "{model}: {error}");
    }
}

#[test]
fn a_whole_snapshot_of_the_cache_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = fabricate(dir.path(), &[("config.json", "{}")]);
    assert_eq!(resolve_config("org/name", &env(dir.path())).unwrap(), snapshot);
    let error = resolve("org/name", &env(dir.path())).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE") && error.is_input(), "{error}");
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    fabricate(dir.path(), &[("model.safetensors.index.json", index), ("model-1.safetensors", "")]);
    assert!(resolve("org/name", &env(dir.path())).is_err());
    fabricate(dir.path(), &[("model-2.safetensors", "")]);
    assert_eq!(resolve("org/name", &env(dir.path())).unwrap(), snapshot);
}

#[test]
fn a_reference_cannot_leave_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    fabricate(dir.path(), &[("config.json", "{}")]);
    std::fs::write(dir.path().join("models--org--name/refs/main"), "../../..").unwrap();
    assert!(resolve_config("org/name", &env(dir.path())).is_err());
}

#[test]
fn a_hub_that_does_not_answer_is_no_fault_of_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let error = resolve("org/name", &HubEnv { offline: false, ..env(dir.path()) }).unwrap_err();
    assert!(matches!(error, ModelError::Network { .. }) && !error.is_input());
    assert!(error.to_string().contains("http://127.0.0.1:1") && !error.to_string().contains('\n'), "{error}");
}

#[test]
fn the_standard_variables_are_honoured() {
    let env = |vars: &[(&str, &str)]| {
        let find = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        HubEnv::from_vars(find, false)
    };
    let cache = |vars: &[(&str, &str)]| env(vars).cache.display().to_string();
    assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HOME", "/h")]), "/f/hub");
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/g"), ("HF_HOME", "/f")]), "/g");
    assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/g")]), "/c");
    let set = env(&[("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", "t"), ("HF_ENDPOINT", "https://mirror/")]);
    assert_eq!(
        (set.offline, set.token.as_deref(), set.endpoint.as_str()),
        (true, Some("t"), "https://mirror")
    );
    assert!(!env(&[("HF_HUB_OFFLINE", "0")]).offline);
}
