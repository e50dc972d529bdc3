//! An SVG document in the making: shapes and texts, numbers rounded to what can be seen.

use std::fmt::Write as _;

const FONT: &str = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
/// Text.
pub(super) const INK: &str = "#1f2933";
/// Secondary text.
pub(super) const FAINT: &str = "#66727f";
/// Grid lines.
pub(super) const GRID: &str = "#e3e7eb";

/// Where a text stands to its point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A document.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// A white page with a title for people and for screen readers.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let mut svg = Self { body: String::new(), width, height };
        svg.add(format_args!("<title>{}</title>", escape(title)));
        svg.rect(0.0, 0.0, width, height, "#ffffff", None);
        svg.text(24.0, 32.0, 16.0, INK, Anchor::Start, title, true);
        svg
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, w: f64, h: f64, fill: &str, hover: Option<&str>) {
        let hover = hover.map_or(String::new(), |text| format!("<title>{}</title>", escape(text)));
        let (x, y, w, h) = (round(x), round(y), round(w), round(h));
        let shape = format_args!("<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\">");
        self.add(format_args!("{shape}{hover}</rect>"));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(round);
        self.add(format_args!("<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"{color}\"/>"));
    }

    /// A line through all points with a dot on each.
    pub(super) fn path(&mut self, points: &[(f64, f64)], color: &str, width: f64) {
        let list: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", round(*x), round(*y))).collect();
        let list = list.join(" ");
        self.add(format_args!(
            "<polyline points=\"{list}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\" stroke-linecap=\"round\"/>"
        ));
        for (x, y) in points {
            let (x, y, r) = (round(*x), round(*y), width + 0.7);
            self.add(format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{r}\" fill=\"{color}\"/>"));
        }
    }

    #[allow(clippy::too_many_arguments)] // a text and all that sets it
    pub(super) fn text(
        &mut self,
        x: f64,
        y: f64,
        size: f64,
        color: &str,
        anchor: Anchor,
        text: &str,
        bold: bool,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let (x, y, text) = (round(x), round(y), escape(text));
        self.add(format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{color}\" text-anchor=\"{anchor}\"{weight}>{text}</text>"
        ));
    }

    /// The whole document.
    pub(super) fn finish(self) -> String {
        let (w, h) = (round(self.width), round(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"{FONT}\">\n{}</svg>\n",
            self.body
        )
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.body, "{element}");
    }
}

/// A tenth of a pixel.
fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // Not allowed in XML, even escaped.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_document() {
        let svg = Svg::new(10.0, 10.0, "a<b>&\"c\"\u{1}").finish();
        assert!(svg.contains("a&lt;b&gt;&amp;&quot;c&quot; </text>"), "{svg}");
    }
}
