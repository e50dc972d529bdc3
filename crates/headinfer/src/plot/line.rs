//! A line chart with logarithmic axes, each line named at its end.

use super::svg::{Anchor, FAINT, GRID, INK, Svg};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 500.0;
const LEFT: f64 = 84.0;
/// Room for the names of the lines.
const RIGHT: f64 = 210.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 62.0;
/// Least distance of two names.
const NAME_STEP: f64 = 17.0;
/// Okabe and Ito's colours, told apart by most eyes; the yellow, too pale for lines, left out.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"];

/// A chart.
pub(crate) struct LineChart {
    /// Above it.
    pub(crate) title: String,
    /// Below the horizontal axis.
    pub(crate) x_label: String,
    /// Above the vertical axis.
    pub(crate) y_label: String,
    /// Marks of the horizontal axis, which spans them and all points.
    pub(crate) x_ticks: Vec<Tick>,
    /// Marks of the vertical axis, likewise.
    pub(crate) y_ticks: Vec<Tick>,
    /// The lines; the first is drawn boldest.
    pub(crate) series: Vec<Series>,
}

/// A mark of an axis.
#[derive(Clone, Debug)]
pub(crate) struct Tick {
    /// Where, above 0.
    pub(crate) at: f64,
    /// What is written there.
    pub(crate) text: String,
}

/// A line.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Written at its end.
    pub(crate) name: String,
    /// Points from left to right, both coordinates above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

impl LineChart {
    /// The chart as a document.
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let x = Axis::new(
            points().map(|p| p.0).chain(self.x_ticks.iter().map(|t| t.at)),
            LEFT + 10.0,
            WIDTH - RIGHT,
        );
        let y = Axis::new(
            points().map(|p| p.1).chain(self.y_ticks.iter().map(|t| t.at)),
            HEIGHT - BOTTOM,
            TOP + 14.0,
        );
        let mut svg = Svg::new(WIDTH, HEIGHT, &self.title);
        self.axes(&mut svg, &x, &y);
        let lines: Vec<Vec<(f64, f64)>> = self
            .series
            .iter()
            .map(|s| s.points.iter().map(|(a, b)| (x.at(*a), y.at(*b))).collect())
            .collect();
        // The first line is the subject: drawn last, over the others.
        for (i, line) in lines.iter().enumerate().rev() {
            svg.path(line, COLORS[i % COLORS.len()], if i == 0 { 3.0 } else { 1.8 });
        }
        self.names(&mut svg, &lines);
        svg.finish()
    }

    fn axes(&self, svg: &mut Svg, x: &Axis, y: &Axis) {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &self.y_ticks {
            svg.line((LEFT, y.at(tick.at)), (right, y.at(tick.at)), GRID);
            svg.text(LEFT - 8.0, y.at(tick.at) + 4.0, 12.0, FAINT, Anchor::End, &tick.text, false);
        }
        for tick in &self.x_ticks {
            svg.line((x.at(tick.at), floor), (x.at(tick.at), floor + 5.0), FAINT);
            svg.text(x.at(tick.at), floor + 20.0, 12.0, FAINT, Anchor::Middle, &tick.text, false);
        }
        svg.line((LEFT, floor), (right, floor), FAINT);
        svg.text((LEFT + right) / 2.0, HEIGHT - 16.0, 13.0, INK, Anchor::Middle, &self.x_label, false);
        svg.text(24.0, TOP - 10.0, 12.0, FAINT, Anchor::Start, &self.y_label, false);
    }

    /// Names at the ends of the lines, pushed apart where they would overlap.
    fn names(&self, svg: &mut Svg, lines: &[Vec<(f64, f64)>]) {
        let mut ends: Vec<(usize, f64, f64)> =
            lines.iter().enumerate().filter_map(|(i, l)| l.last().map(|(x, y)| (i, *x, *y))).collect();
        ends.sort_by(|a, b| a.2.total_cmp(&b.2));
        let mut free = TOP;
        let mut places = Vec::new();
        for (i, _, y) in ends {
            free = y.max(free);
            places.push((i, free));
            free += NAME_STEP;
        }
        // What was pushed below the chart comes up again.
        let mut limit = HEIGHT - BOTTOM;
        for (_, y) in places.iter_mut().rev() {
            *y = y.min(limit);
            limit = *y - NAME_STEP;
        }
        for (i, y) in places {
            let color = COLORS[i % COLORS.len()];
            let from = WIDTH - RIGHT + 12.0;
            svg.text(from, y + 4.0, 13.0, color, Anchor::Start, &self.series[i].name, i == 0);
        }
    }
}

/// A logarithmic axis: values to pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::ln);
        let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        // One value alone stands in the middle.
        match low < high {
            true => Self { low, high, from, to },
            false if low.is_finite() => Self { low: low - 1.0, high: low + 1.0, from, to },
            false => Self { low: 0.0, high: 1.0, from, to },
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.ln() - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> LineChart {
        let tick = |at: f64| Tick { at, text: at.to_string() };
        LineChart {
            title: "t".into(),
            x_label: "x".into(),
            y_label: "y".into(),
            x_ticks: vec![tick(1.0), tick(100.0)],
            y_ticks: vec![tick(1.0), tick(10.0)],
            series,
        }
    }

    #[test]
    fn a_decade_is_as_wide_anywhere() {
        let axis = Axis::new([1.0, 100.0].into_iter(), 0.0, 200.0);
        assert_eq!([1.0, 10.0, 100.0].map(|v| axis.at(v).round()), [0.0, 100.0, 200.0]);
    }

    #[test]
    fn names_of_lines_that_end_together_stand_apart() {
        let series = |name: &str| Series { name: name.into(), points: vec![(1.0, 1.0), (100.0, 1.0)] };
        let svg = chart(vec![series("one"), series("two"), series("three")]).svg();
        let y = |name: &str| {
            let line = svg.lines().find(|l| l.ends_with(&format!(">{name}</text>"))).unwrap();
            line.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert!((y("one") - y("two")).abs() >= NAME_STEP && (y("two") - y("three")).abs() >= NAME_STEP);
        assert!(["one", "two", "three"].iter().all(|n| y(n) < HEIGHT - BOTTOM + NAME_STEP));
        assert_eq!(svg.matches("<polyline").count(), 3);
    }

    #[test]
    fn a_chart_of_nothing_is_still_a_document() {
        let svg = chart(Vec::new()).svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
