//! The answers as a picture: depth downwards, seeds across, the colour of a cell its margin.

use std::io::Write as _;

use anyhow::Result;
use headinfer_core::niah::Cell;

use super::Report;
use crate::output::OutFile;
use crate::plot::{self, HeatMap};

/// Writes the picture.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(mut file: OutFile, report: &Report) -> Result<()> {
    file.write_all(map(report).svg().as_bytes()).map_err(|e| file.failed(e))?;
    file.publish()
}

/// Red when wrong, where the margin is below 0; greener with the margin when right.
fn map(report: &Report) -> HeatMap {
    let (seeds, depths) = axes(&report.cells);
    let largest =
        report.cells.iter().map(|c| f64::from(c.margin_min).abs()).fold(f64::MIN_POSITIVE, f64::max);
    let cell = |seed: &u64, depth: &f64| {
        let found = report.cells.iter().find(|c| c.seed == *seed && c.depth == *depth);
        // A place that nobody asked at has no value.
        let value = found.map_or(f64::NAN, |c| match (c.correct, f64::from(c.margin_min)) {
            (true, margin) => margin,
            (false, margin) => margin.min(-largest),
        });
        let text = found.map_or(String::new(), |c| format!("{:.2}", c.margin_min));
        plot::Cell { value, text }
    };
    let Report { context, correct, trials, .. } = report;
    HeatMap {
        title: format!("Needles in {context} tokens: {correct} of {trials} found"),
        x_label: "seed of the haystack".into(),
        y_label: "depth".into(),
        cells: depths.iter().map(|depth| seeds.iter().map(|seed| cell(seed, depth)).collect()).collect(),
        columns: seeds.iter().map(u64::to_string).collect(),
        rows: depths.iter().map(|depth| format!("{:.0} %", 100.0 * depth)).collect(),
        range: (-largest, largest),
        scale_label: "margin".into(),
    }
}

fn axes(cells: &[Cell]) -> (Vec<u64>, Vec<f64>) {
    let mut seeds: Vec<u64> = cells.iter().map(|c| c.seed).collect();
    let mut depths: Vec<f64> = cells.iter().map(|c| c.depth).collect();
    seeds.sort_unstable();
    seeds.dedup();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    (seeds, depths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_its_place_and_colour() {
        let cell = |seed, depth, correct| Cell {
            depth,
            seed,
            answers: Vec::new(),
            correct,
            margin_min: if correct { 2.0 } else { -1.0 },
            prefill_s: 1.0,
        };
        let report = Report {
            context: 1024,
            trials: 3,
            correct: 2,
            margin_min: -1.0,
            device_peak_bytes: 1,
            plan_device_bytes: 1,
            host_bytes: 1,
            kv_bytes: 1,
            prefill_s: 1.0,
            cells: vec![cell(0, 0.0, true), cell(0, 1.0, false), cell(1, 0.0, true)],
        };
        let map = map(&report);
        let values: Vec<f64> = map.cells.iter().flatten().map(|c| c.value).collect();
        // The wrong one: first column, second row.
        assert_eq!(values[..3], [2.0, 2.0, -2.0]);
        assert!(values[3].is_nan());
        let svg = map.svg();
        assert!(svg.contains("2 of 3 found") && svg.contains(">100 %<") && svg.contains(">-1.00<"));
    }
}
