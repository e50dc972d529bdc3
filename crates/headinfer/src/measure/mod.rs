//! Measurements of this machine, for `doctor` and for the ceilings beside every benchmark.

pub(crate) mod cpu;
pub(crate) mod cuda;
