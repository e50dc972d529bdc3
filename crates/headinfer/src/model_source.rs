//! From what `-m` says to a model: its shape, and where the command needs them its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use headinfer_core::model::hub::{self, HubEnv};
use headinfer_core::model::known::{known_names, known_shape};
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::{Weights, config};
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

/// A model that can run.
#[derive(Debug)]
pub(crate) struct Model {
    /// Its shape.
    pub(crate) spec: ModelSpec,
    /// Its weights.
    pub(crate) weights: Arc<Weights>,
    /// Its folder, when it has one.
    pub(crate) folder: Option<PathBuf>,
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
            Self::Retrieval(_) => Err(not_here()),
            Self::Random(shape, _) => known(shape),
        }
    }

    /// The whole model, in host memory or mapped there.
    ///
    /// # Errors
    /// As [`ModelSource::spec`]; or when the weights cannot be used or, being generated, do not fit into memory.
    pub(crate) fn load(&self, env: &HubEnv) -> Result<Model> {
        match self {
            Self::Checkpoint(name) => {
                let folder = hub::resolve(name, env)?;
                let mut spec = config::load_config(&folder)?;
                spec.name.clone_from(name);
                let weights = Arc::new(Weights::load(&folder, &spec)?);
                Ok(Model { spec, weights, folder: Some(folder) })
            }
            Self::Retrieval(_) => Err(not_here()),
            Self::Random(shape, seed) => {
                let spec = known(shape)?;
                must_hold(self.generated_bytes(&spec), &spec)?;
                let weights = Arc::new(random_weights(&spec, *seed));
                Ok(Model { spec, weights, folder: None })
            }
        }
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
    /// Names the first weight that is not finite. Reads all of a checkpoint; generated weights are finite.
    ///
    /// # Errors
    /// When there is one.
    pub(crate) fn check_finite(&self) -> Result<()> {
        match self.folder {
            Some(_) => Ok(self.weights.check_finite()?),
            None => Ok(()),
        }
    }
}

const KINDS: &str = "give a folder, a hub id org/name, builtin:retrieval[:SHAPE] or random:SHAPE[:seed]";

fn known(shape: &str) -> Result<ModelSpec> {
    let unknown =
        || Failure::input(format!("model 'random:{shape}': there is no shape '{shape}'")).hint(shapes());
    Ok(known_shape(shape).ok_or_else(unknown)?)
}

fn shapes() -> String {
    format!("known shapes: {}", known_names().join(", "))
}

fn not_here() -> anyhow::Error {
    Failure::input("model 'builtin:retrieval' is not part of this build").into()
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
