//! A heat map: a grid of cells whose colours are values on a scale.

use super::svg::{Anchor, FAINT, INK, Svg};

const LEFT: f64 = 92.0;
const TOP: f64 = 72.0;
/// Room for the scale.
const RIGHT: f64 = 110.0;
const BOTTOM: f64 = 60.0;
const CELL_HEIGHT: f64 = 30.0;
/// A grid of few columns has wide cells, one of many narrow ones.
const CELL_WIDTH: (f64, f64) = (26.0, 84.0);
const GRID_WIDTH: f64 = 620.0;
/// Below this width a cell has no room for its text.
const TEXT_WIDTH: f64 = 40.0;
/// From low to high: red over pale yellow to green (ColorBrewer RdYlGn, shortened to colours that text is read on).
const SCALE: [[f64; 3]; 5] = [
    [215.0, 72.0, 58.0],
    [244.0, 146.0, 90.0],
    [250.0, 226.0, 150.0],
    [166.0, 212.0, 125.0],
    [72.0, 168.0, 100.0],
];

/// A map.
pub(crate) struct HeatMap {
    /// Above it.
    pub(crate) title: String,
    /// Below the columns.
    pub(crate) x_label: String,
    /// Above the rows' names.
    pub(crate) y_label: String,
    /// Names of the columns.
    pub(crate) columns: Vec<String>,
    /// Names of the rows, from the top.
    pub(crate) rows: Vec<String>,
    /// `[row][column]`.
    pub(crate) cells: Vec<Vec<Cell>>,
    /// Values of the lowest and the highest colour; what lies outside has the nearest.
    pub(crate) range: (f64, f64),
    /// What the values are.
    pub(crate) scale_label: String,
}

/// A cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// On the scale.
    pub(crate) value: f64,
    /// Written in it where there is room, and shown under the pointer.
    pub(crate) text: String,
}

impl HeatMap {
    /// The map as a document.
    pub(crate) fn svg(&self) -> String {
        let columns = self.columns.len().max(1) as f64;
        let width = (GRID_WIDTH / columns).clamp(CELL_WIDTH.0, CELL_WIDTH.1);
        let (grid_width, grid_height) = (width * columns, CELL_HEIGHT * self.rows.len() as f64);
        let page_width = (LEFT + grid_width + RIGHT).max(480.0);
        let mut svg = Svg::new(page_width, TOP + grid_height.max(120.0) + BOTTOM, &self.title);
        for (r, (name, cells)) in self.rows.iter().zip(&self.cells).enumerate() {
            let y = TOP + r as f64 * CELL_HEIGHT;
            svg.text(LEFT - 10.0, y + CELL_HEIGHT / 2.0 + 4.0, 12.0, FAINT, Anchor::End, name, false);
            for (c, cell) in cells.iter().enumerate() {
                self.cell(&mut svg, (LEFT + c as f64 * width, y), width, cell);
            }
        }
        for (c, name) in self.columns.iter().enumerate() {
            let x = LEFT + (c as f64 + 0.5) * width;
            svg.text(x, TOP + grid_height + 18.0, 12.0, FAINT, Anchor::Middle, name, false);
        }
        let below = TOP + grid_height + 42.0;
        svg.text(LEFT + grid_width / 2.0, below, 13.0, INK, Anchor::Middle, &self.x_label, false);
        svg.text(24.0, TOP - 12.0, 12.0, FAINT, Anchor::Start, &self.y_label, false);
        self.scale(&mut svg, LEFT + grid_width + 24.0, grid_height.max(120.0));
        svg.finish()
    }

    fn cell(&self, svg: &mut Svg, (x, y): (f64, f64), width: f64, cell: &Cell) {
        let fill = self.color(cell.value);
        svg.rect(x + 1.0, y + 1.0, width - 2.0, CELL_HEIGHT - 2.0, &fill, Some(&cell.text));
        if width >= TEXT_WIDTH {
            svg.text(
                x + width / 2.0,
                y + CELL_HEIGHT / 2.0 + 4.0,
                11.0,
                INK,
                Anchor::Middle,
                &cell.text,
                false,
            );
        }
    }

    /// The colours and what they stand for.
    fn scale(&self, svg: &mut Svg, x: f64, height: f64) {
        const STEPS: usize = 24;
        let (low, high) = self.range;
        let step = height / STEPS as f64;
        for i in 0..STEPS {
            let value = high + (low - high) * (i as f64 + 0.5) / STEPS as f64;
            svg.rect(x, TOP + i as f64 * step, 14.0, step + 0.5, &self.color(value), None);
        }
        svg.text(x + 20.0, TOP + 10.0, 11.0, FAINT, Anchor::Start, &short(high), false);
        svg.text(x + 20.0, TOP + height, 11.0, FAINT, Anchor::Start, &short(low), false);
        svg.text(x, TOP - 12.0, 12.0, FAINT, Anchor::Start, &self.scale_label, false);
    }

    fn color(&self, value: f64) -> String {
        let (low, high) = self.range;
        if !value.is_finite() {
            return "#c8cdd2".into();
        }
        let share = if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 1.0 };
        let at = share * (SCALE.len() - 1) as f64;
        let below = (at as usize).min(SCALE.len() - 2);
        let mix = |i: usize| {
            let (a, b) = (SCALE[below][i], SCALE[below + 1][i]);
            (a + (b - a) * (at - below as f64)).round() as u8
        };
        format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
    }
}

fn short(value: f64) -> String {
    if value.abs() >= 100.0 || value == value.round() { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeatMap {
        let cell = |value: f64| Cell { value, text: format!("{value:.1}") };
        HeatMap {
            title: "needles".into(),
            x_label: "seed".into(),
            y_label: "depth".into(),
            columns: vec!["0".into(), "1".into()],
            rows: vec!["0 %".into(), "50 %".into(), "100 %".into()],
            cells: vec![
                vec![cell(0.0), cell(1.0)],
                vec![cell(2.0), cell(f64::NAN)],
                vec![cell(9.0), cell(-9.0)],
            ],
            range: (0.0, 2.0),
            scale_label: "margin".into(),
        }
    }

    #[test]
    fn every_cell_is_drawn_with_its_text() {
        let svg = map().svg();
        for text in ["0.0", "1.0", "2.0", "NaN", "9.0", "-9.0"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}");
            assert!(svg.contains(&format!("<title>{text}</title>")), "{text}");
        }
    }

    #[test]
    fn values_outside_the_scale_have_its_end_colours() {
        let map = map();
        assert_eq!(map.color(-9.0), map.color(0.0));
        assert_eq!(map.color(9.0), map.color(2.0));
        assert_eq!([map.color(0.0), map.color(2.0)], ["#d7483a".to_owned(), "#48a864".to_owned()]);
        assert!(map.color(f64::NAN) == "#c8cdd2");
    }
}
