//! The answers as a picture: depth downwards, seeds across, the colour of a cell its margin.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use headinfer_core::niah::Cell;

use super::Report;
use crate::output::OutFile;

const CELL: [usize; 2] = [56, 28];
const LEFT: usize = 64;
const TOP: usize = 64;

/// Writes the picture.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(mut file: OutFile, report: &Report) -> Result<()> {
    file.write_all(svg(report).as_bytes()).map_err(|e| file.failed(e))?;
    file.publish()
}

/// A picture of its own: no script, no font to load.
fn svg(report: &Report) -> String {
    let (seeds, depths) = axes(&report.cells);
    let largest = report.cells.iter().map(|c| c.margin_min).fold(f32::MIN_POSITIVE, f32::max);
    let (width, height) = (LEFT + seeds.len().max(6) * CELL[0] + 16, TOP + depths.len() * CELL[1] + 16);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let Report { context, correct, trials, .. } = report;
    let title = format!("needles in {context} tokens: {correct} of {trials} found");
    text(&mut svg, [8, 20], "start", &title);
    text(&mut svg, [LEFT - 8, TOP - 10], "end", "depth");
    for (column, seed) in seeds.iter().enumerate() {
        text(&mut svg, [LEFT + column * CELL[0] + CELL[0] / 2, TOP - 10], "middle", &format!("seed {seed}"));
    }
    for (row, depth) in depths.iter().enumerate() {
        text(&mut svg, [LEFT - 8, TOP + row * CELL[1] + 18], "end", &format!("{depth:.2}"));
    }
    for cell in &report.cells {
        let at = |list: &[f64], value: f64| list.iter().position(|x| *x == value).unwrap_or(0);
        let column = seeds.iter().position(|s| *s == cell.seed).unwrap_or(0);
        let (x, y) = (LEFT + column * CELL[0], TOP + at(&depths, cell.depth) * CELL[1]);
        let [w, h] = CELL;
        let fill = colour(cell, largest);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\" stroke=\"white\"/>"
        );
        text(&mut svg, [x + w / 2, y + 18], "middle", &format!("{:.2}", cell.margin_min));
    }
    svg += "</svg>\n";
    svg
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

fn text(svg: &mut String, [x, y]: [usize; 2], anchor: &str, words: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// Red when wrong; from pale to full green with the margin when right.
fn colour(cell: &Cell, largest: f32) -> String {
    if !cell.correct {
        return "#e05252".into();
    }
    let share = (cell.margin_min / largest).clamp(0.0, 1.0);
    let mix = |pale: f32, full: f32| (pale + (full - pale) * share) as u8;
    format!("#{:02x}{:02x}{:02x}", mix(228.0, 88.0), mix(244.0, 184.0), mix(228.0, 110.0))
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
        let svg = svg(&report);
        assert_eq!(svg.matches("#58b86e").count(), 2);
        assert_eq!(svg.matches("#e05252").count(), 1);
        assert!(svg.contains("2 of 3 found") && svg.contains("seed 1") && svg.contains(">1.00<"));
        // The wrong one: first column, second row.
        assert!(svg.contains(&format!("<rect x=\"{LEFT}\" y=\"{}\"", TOP + CELL[1])));
    }
}
