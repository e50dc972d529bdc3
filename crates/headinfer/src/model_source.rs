//! From what `-m` says to a model: its shape, and where the command needs them its weights.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use headinfer_core::model::hub::{self, HubEnv};
use headinfer_core::model::known::{known_names, known_shape};
use headinfer_core::model::random::random_weights;
use headinfer_core::model::retrieval::{Retrieval, retrieval_spec, retrieval_weights};
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::{ModelDigest, Weights, config};
use headinfer_core::store::Store;
use headinfer_core::text::Tokenizer;
use headinfer_core::units::Bytes;

use crate::error::{Exit, Failure};
use crate::machine;

/// What a MODEL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// A folder or a hub id.
    Checkpoint(String),
    /// `builtin:retrieval[:SHAPE]`.
    Retrieval(Option<String>),
    /// `random:SHAPE[:seed]`.
    Random(String, u64),
}

/// A model that was found. Its weights are read or made when asked for.
#[derive(Debug)]
pub(crate) struct Model {
    /// What it was asked for as.
    source: ModelSource,
    /// Its shape.
    pub(crate) spec: ModelSpec,
    /// Its folder, when it has one.
    folder: Option<PathBuf>,
    /// Its weights, once asked for.
    weights: OnceLock<Arc<Weights>>,
}

impl ModelSource {
    /// Reads a MODEL.
    ///
    /// # Errors
    /// [`Failure`] naming what is not known.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text.is_empty() {
            return Err(Failure::usage("the name of the model is empty").hint(KINDS));
        }
        // A folder may have any name.
        if Path::new(text).is_dir() {
            return Ok(Self::Checkpoint(text.to_owned()));
        }
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("builtin"), Some("retrieval"), shape, None) => {
                Ok(Self::Retrieval(shape.map(str::to_owned)))
            }
            (Some("builtin"), ..) => {
                Err(Failure::input(format!("model '{text}': the only built-in model is builtin:retrieval"))
                    .hint(KINDS))
            }
            (Some("random"), Some(shape), None, None) => Ok(Self::Random(shape.to_owned(), 0)),
            (Some("random"), Some(shape), Some(seed), None) => {
                let wrong = |_| Failure::input(format!("model '{text}': '{seed}' is not a seed"));
                Ok(Self::Random(shape.to_owned(), seed.parse().map_err(wrong)?))
            }
            (Some("random"), ..) => {
                Err(Failure::input(format!("model '{text}': write random:SHAPE or random:SHAPE:seed"))
                    .hint(shapes()))
            }
            _ => Ok(Self::Checkpoint(text.to_owned())),
        }
    }

    /// The model's shape; of a checkpoint only config.json is read.
    ///
    /// # Errors
    /// When there is no such model, or its config cannot be used.
    pub(crate) fn spec(&self, env: &HubEnv) -> Result<ModelSpec> {
        match self {
            Self::Checkpoint(name) => {
                let mut spec = config::load_config(&hub::resolve_config(name, env)?)?;
                spec.name.clone_from(name);
                Ok(spec)
            }
            Self::Retrieval(shape) => Ok(retrieval_spec(shape.as_deref())?),
            Self::Random(shape, _) => known(shape),
        }
    }

    /// The model, with all its files where it has any.
    ///
    /// # Errors
    /// As [`ModelSource::spec`].
    pub(crate) fn find(self, env: &HubEnv) -> Result<Model> {
        let Self::Checkpoint(name) = &self else {
            let weights = OnceLock::new();
            return Ok(Model { spec: self.spec(env)?, source: self, folder: None, weights });
        };
        let folder = hub::resolve(name, env)?;
        let mut spec = config::load_config(&folder)?;
        spec.name.clone_from(name);
        Ok(Model { source: self, spec, folder: Some(folder), weights: OnceLock::new() })
    }

    /// Host memory that the weights take when they are generated rather than mapped.
    pub(crate) fn generated_bytes(&self, spec: &ModelSpec) -> u64 {
        match self {
            Self::Checkpoint(_) => 0,
            Self::Retrieval(_) | Self::Random(..) => spec.parameters() * spec.dtype.bytes() as u64,
        }
    }
}

impl Model {
    /// Host memory that the weights take when they are generated rather than mapped.
    pub(crate) fn generated_bytes(&self) -> u64 {
        self.source.generated_bytes(&self.spec)
    }

    /// The weights, mapped or made in host memory, all of them finite: of a checkpoint every one is read. Asked for
    /// again, they are the same ones.
    ///
    /// # Errors
    /// When they cannot be used or, being generated, do not fit into memory.
    pub(crate) fn weights(&self) -> Result<Arc<Weights>> {
        if let Some(weights) = self.weights.get() {
            return Ok(weights.clone());
        }
        let weights = self.load()?;
        Ok(self.weights.get_or_init(|| weights).clone())
    }

    fn load(&self) -> Result<Arc<Weights>> {
        if let Some(folder) = &self.folder {
            let weights = Weights::load(folder, &self.spec)?;
            weights.check_finite()?;
            return Ok(Arc::new(weights));
        }
        must_hold(self.generated_bytes(), &self.spec)?;
        Ok(Arc::new(match self.source {
            ModelSource::Random(_, seed) => random_weights(&self.spec, seed),
            _ => retrieval_weights(&self.spec),
        }))
    }

    /// The seed of random weights, which any device can make by itself.
    pub(crate) fn seed(&self) -> Option<u64> {
        match self.source {
            ModelSource::Random(_, seed) => Some(seed),
            ModelSource::Checkpoint(_) | ModelSource::Retrieval(_) => None,
        }
    }

    /// What tells it from every other model. Of a checkpoint every weight is read, unless `store` knows its files.
    ///
    /// # Errors
    /// As [`Model::weights`].
    pub(crate) fn digest(&self, store: &Store) -> Result<ModelDigest> {
        match self.source {
            ModelSource::Checkpoint(_) => Ok(store.digest(&self.spec, self.weights()?.as_ref())),
            ModelSource::Random(_, seed) => Ok(ModelDigest::of_law(&self.spec, "random", seed)),
            ModelSource::Retrieval(_) => Ok(ModelDigest::of_law(&self.spec, "retrieval", 0)),
        }
    }

    /// The circuit of a retrieval model, also when it was read from a folder.
    pub(crate) fn retrieval(&self) -> Option<Retrieval> {
        Retrieval::of(&self.spec).ok()
    }

    /// The model's tokenizer: of its folder, or a retrieval model's own.
    ///
    /// # Errors
    /// When it has none, or one that cannot be used.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        if let Some(folder) = &self.folder {
            return Ok(Tokenizer::load(folder, &self.spec)?);
        }
        let name = &self.spec.name;
        let Some(retrieval) = self.retrieval() else {
            let message = format!("model 'random:{name}' has no tokenizer: its weights know no language");
            let hint = "give -m a model folder, or use `logits --ids` or `bench`";
            return Err(Failure::input(message).hint(hint).into());
        };
        let (tokens, config) = (retrieval.tokenizer_json(), retrieval.tokenizer_config_json());
        Ok(Tokenizer::from_json(tokens.as_bytes(), Some(config.as_bytes()), Path::new(name), &self.spec)?)
    }
}

const KINDS: &str = "give a folder, a hub id org/name, builtin:retrieval[:SHAPE] or random:SHAPE[:seed]";

fn known(shape: &str) -> Result<ModelSpec> {
    let unknown =
        || Failure::input(format!("model 'random:{shape}': there is no shape '{shape}'")).hint(shapes());
    Ok(known_shape(shape).ok_or_else(unknown)?)
}

fn shapes() -> String {
    format!("known shapes: {}; SHAPE/N is the first N layers of one", known_names().join(", "))
}

/// Generated weights are made in memory at once: what cannot be held is refused before.
fn must_hold(bytes: u64, spec: &ModelSpec) -> Result<()> {
    let have = machine::available_memory();
    if bytes <= have {
        return Ok(());
    }
    let (need, have, name) = (Bytes(bytes), Bytes(have), &spec.name);
    let message =
        format!("{name} does not fit: its generated weights need {need} of {have} available memory");
    Err(Failure::new(Exit::DoesNotFit, message)
        .hint("give -m a smaller shape, or plan for another machine")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_told_apart() {
        let parse = |text: &str| ModelSource::parse(text).unwrap();
        assert_eq!(parse("random:tiny"), ModelSource::Random("tiny".into(), 0));
        assert_eq!(parse("random:tiny:7"), ModelSource::Random("tiny".into(), 7));
        assert_eq!(parse("builtin:retrieval"), ModelSource::Retrieval(None));
        assert_eq!(parse("builtin:retrieval:small"), ModelSource::Retrieval(Some("small".into())));
        assert_eq!(parse("org/name"), ModelSource::Checkpoint("org/name".into()));
        for bad in ["", "builtin:x", "random:", "random:tiny:x", "random:tiny:1:2", "random"] {
            let refused =
                ModelSource::parse(bad).and_then(|s| s.spec(&no_hub()).map_err(|_| Failure::usage("")));
            assert!(refused.is_err(), "{bad}");
        }
    }

    fn no_hub() -> HubEnv {
        HubEnv::from_vars(|name| (name == "HF_HUB_OFFLINE").then(|| "1".into()), false)
    }
}
