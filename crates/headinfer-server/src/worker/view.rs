//! The sessions as someone outside may look at them while they work.

use std::sync::Arc;

use headinfer_core::engine::Session;
use headinfer_core::plan::Plan;
use headinfer_core::watch::Watch;

/// What all sessions are made by, and where the lanes of each are.
pub(crate) struct View {
    pub(crate) plan: Arc<Plan>,
    /// By slot; `None` where a backend cannot tell.
    pub(crate) watches: Vec<Option<Arc<dyn Watch>>>,
}

impl View {
    /// `None` without a session.
    pub(super) fn of<'s>(sessions: impl Iterator<Item = &'s Session> + Clone) -> Option<Self> {
        let watches = sessions.clone().map(|session| session.backend().watch()).collect();
        sessions.map(Session::plan).next().map(|plan| Self { plan: plan.clone(), watches })
    }
}
