//! Charts as SVG text. Knows numbers and names; must not know plans, models or commands.
//!
//! Written by hand: two charts are a page of code, where a plotting crate would bring twenty dependencies, and lines
//! named at their ends instead of in a box.

mod heat;
mod line;
mod svg;

pub(crate) use heat::{Cell, HeatMap};
pub(crate) use line::{LineChart, Series, Tick};
