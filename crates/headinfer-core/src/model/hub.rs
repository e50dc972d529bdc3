//! From what the user types to a folder: a local folder, or `org/name` of a Hugging Face hub, first in the
//! standard cache and then by download.
//!
//! Must not read environment variables itself: the binary hands over a way to look them up.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};

use crate::model::error::ModelError;
use crate::model::weights_files::{INDEX_FILE, SINGLE_FILE, is_plain_name, read_index};

/// Where the hub and its cache are.
#[derive(Clone, Debug)]
pub struct HubEnv {
    /// Folder of the cache, `…/huggingface/hub` by default.
    pub cache: PathBuf,
    /// Never ask the network.
    pub offline: bool,
    /// Sent to the hub with each request.
    pub token: Option<String>,
    /// Address of the hub.
    pub endpoint: String,
    /// Whether downloads draw progress bars on stderr.
    pub progress: bool,
}

impl HubEnv {
    /// Reads the standard variables through `var`: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME,
    /// XDG_CACHE_HOME, HOME, HF_TOKEN (or the token file in HF_HOME), HF_ENDPOINT, HF_HUB_OFFLINE,
    /// TRANSFORMERS_OFFLINE.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, progress: bool) -> HubEnv {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
            let caches =
                caches.unwrap_or_else(|| PathBuf::from(var("HOME").unwrap_or_default()).join(".cache"));
            caches.join("huggingface")
        });
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let is_set = |name: &str| {
            var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()))
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        HubEnv {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            token: var("HF_TOKEN").or_else(|| token_file(&home.join("token"))),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            progress,
        }
    }
}

fn token_file(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// The folder of `model`: itself when it is one, else the hub's snapshot of `org/name`, downloaded when the
/// cache has not all of it. A whole snapshot in the cache is used without asking the network.
///
/// # Errors
/// [`ModelError::NotFound`] when it is neither, or the cache lacks it and the network may not be asked;
/// [`ModelError::Network`] when the download fails.
pub fn resolve(model: &str, env: &HubEnv) -> Result<PathBuf, ModelError> {
    find(model, env, Need::Everything)
}

/// As [`resolve`], but content with `config.json`: enough to plan.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_config(model: &str, env: &HubEnv) -> Result<PathBuf, ModelError> {
    find(model, env, Need::Config)
}

#[derive(Clone, Copy, PartialEq)]
enum Need {
    Config,
    Everything,
}

fn find(model: &str, env: &HubEnv, need: Need) -> Result<PathBuf, ModelError> {
    let path = Path::new(model);
    let not_found = |problem: &str| ModelError::NotFound { model: model.into(), problem: problem.into() };
    if path.is_dir() {
        return Ok(path.into());
    }
    if path.exists() {
        return Err(not_found("is a file; give the folder that holds config.json"));
    }
    if !is_hub_id(model) {
        return Err(not_found("there is no such folder, and it is not a hub id of the form org/name"));
    }
    if let Some(dir) = cached_snapshot(model, env).filter(|dir| is_complete(dir, need)) {
        // Downloads end with the tokenizer, so its absence may mean that one was cut short. Ids need none.
        if need == Need::Config || env.offline || dir.join("tokenizer.json").is_file() {
            return Ok(dir);
        }
    }
    if env.offline {
        let cache = env.cache.display();
        let problem =
            format!("there is no such folder, {cache} has no whole copy, and HF_HUB_OFFLINE is set");
        return Err(not_found(&problem));
    }
    download(model, env, need)
}

/// `org/name` in the characters the hub allows; anything that looks like a path is not one.
fn is_hub_id(model: &str) -> bool {
    let part = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !text.is_empty()
            && text.chars().all(allowed)
            && !text.starts_with(['.', '-'])
            && !text.contains("..")
            && !text.contains("--")
    };
    model.len() <= 96 && model.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

fn cached_snapshot(model: &str, env: &HubEnv) -> Option<PathBuf> {
    let repo = env.cache.join(Repo::model(model.into()).folder_name());
    let commit = std::fs::read_to_string(repo.join("refs").join("main")).ok()?;
    let commit = commit.trim();
    is_plain_name(commit).then(|| repo.join("snapshots").join(commit))
}

fn is_complete(dir: &Path, need: Need) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    if need == Need::Config || !has("config.json") {
        return has("config.json");
    }
    let has_all_shards =
        || read_index(&dir.join(INDEX_FILE)).is_ok_and(|index| index.values().all(|shard| has(shard)));
    has(SINGLE_FILE) || has_all_shards()
}

/// Files of a repository that a model consists of here.
fn is_wanted(name: &str, need: Need) -> bool {
    const SMALL: [&str; 5] = [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        INDEX_FILE,
    ];
    let weights = name.ends_with(".safetensors") && name.starts_with("model");
    name == "config.json" || (need == Need::Everything && (SMALL.contains(&name) || weights))
}

fn download(model: &str, env: &HubEnv, need: Need) -> Result<PathBuf, ModelError> {
    let failed = |e: ApiError| ModelError::Network {
        model: model.into(),
        endpoint: env.endpoint.clone(),
        problem: e.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let repo: ApiRepo = ApiBuilder::from_cache(Cache::new(env.cache.clone()))
        .with_endpoint(env.endpoint.clone())
        .with_token(env.token.clone())
        .with_progress(env.progress)
        .build()
        .map_err(failed)?
        .model(model.into());
    let listing = repo.info().map_err(failed)?;
    let names = listing.siblings.into_iter().map(|s| s.rfilename);
    let mut config = None;
    for name in names.filter(|name| is_plain_name(name) && is_wanted(name, need)) {
        let path = repo.get(&name).map_err(failed)?;
        if name == "config.json" {
            config = Some(path);
        }
    }
    let dir = config.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    dir.ok_or_else(|| ModelError::NotFound {
        model: model.into(),
        problem: "the hub's repository has no config.json".into(),
    })
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
