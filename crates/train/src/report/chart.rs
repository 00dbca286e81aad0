//! Line charts as SVG text.
//!
//! A chart is a handful of polylines, ticks and a legend; that is less than a plotting library costs
//! to build. Colours stand in the elements, for readers without style sheets, and again in the page's
//! style sheet, which knows a dark scheme. Long curves are thinned to one point a pixel, each the mean
//! of what it stands for.

use std::fmt::Write;

/// Width and height of the picture, and of the margins around the plot.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Points a curve has at most.
const POINTS: usize = 480;

/// One curve.
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Class of the line in the page's style sheet.
    pub class: &'a str,
    /// Points, by increasing `x`. Those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Draw a dot at every point.
    pub dots: bool,
}

/// A chart with one y axis.
pub struct Chart<'a> {
    /// Heading, also for readers that do not see the picture.
    pub title: &'a str,
    /// Text under the x axis.
    pub x_label: &'a str,
    /// Curves; the first lies lowest.
    pub series: Vec<Series<'a>>,
}

/// Range of one axis with the positions of its ticks.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Series<'_> {
    fn colour(&self) -> &'static str {
        if self.class == "second" { "#d9641e" } else { "#2f6fb7" }
    }

    /// Attributes of a line.
    fn stroke(&self) -> String {
        let (class, colour) = (self.class, self.colour());
        format!("class=\"line {class}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"")
    }
}

/// Attributes of texts, of the grid and of the x axis.
const TEXT: &str = "class=\"tick\" fill=\"#667085\" font-size=\"12\"";
const GRID: &str = "class=\"grid\" stroke=\"#e3e6ec\"";
const AXIS: &str = "class=\"axis\" stroke=\"#667085\"";

impl Axis {
    /// The same range without the parts that no value lies in; ticks outside of it go.
    fn tight(mut self, values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if high > low {
            (self.low, self.high) = (low, high);
            self.ticks.retain(|tick| (low..=high).contains(tick));
        }
        self
    }

    /// A range that covers the values and ends on ticks of 1, 2 or 5 times a power of ten.
    fn new(values: impl Iterator<Item = f64> + Clone, wanted: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = match high - low {
            width if !width.is_finite() => (0.0, 1.0),
            width if width <= low.abs() * 1e-9 => {
                (low - low.abs().max(1.0) * 0.1, high + low.abs().max(1.0) * 0.1)
            }
            _ => (low, high),
        };
        let rough = (high - low) / wanted;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999);
        let step = step.unwrap_or(10.0) * power;
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let ticks: Vec<f64> =
            (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low: first * step, high: last * step, ticks }
    }

    fn fraction(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// A tick's text: short, and without the noise of binary fractions.
fn label(value: f64) -> String {
    let size = value.abs();
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    match size {
        0.0 => "0".to_string(),
        _ if size >= 1e9 => trim(format!("{:.2}", value / 1e9)) + "G",
        _ if size >= 1e6 => trim(format!("{:.2}", value / 1e6)) + "M",
        _ if size >= 1e4 => trim(format!("{:.1}", value / 1e3)) + "k",
        _ if size >= 1e-3 => trim(format!("{value:.4}")),
        _ => format!("{value:.1e}"),
    }
}

/// At most [`POINTS`] points, each the mean of its bucket.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let bucket = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(bucket).map(mean).collect()
}

impl Chart<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let kept: Vec<Vec<(f64, f64)>> = self
            .series
            .iter()
            .map(|series| {
                let finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
                thin(&series.points.iter().filter(finite).copied().collect::<Vec<_>>())
            })
            .collect();
        let steps = kept.iter().flatten().map(|point| point.0);
        let x = Axis::new(steps.clone(), 6.0).tight(steps);
        let y = Axis::new(kept.iter().flatten().map(|point| point.1), 5.0);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            super::escape(self.title)
        );
        self.axes(&mut svg, &x, &y);
        for (series, points) in self.series.iter().zip(&kept) {
            curve(&mut svg, series, points, &x, &y);
        }
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &y.ticks {
            let at = place_y(y, tick);
            // Writing to a String cannot fail.
            let _ = writeln!(
                svg,
                "<line {GRID} x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text {TEXT} x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(tick)
            );
        }
        for &tick in &x.ticks {
            let at = place_x(x, tick);
            let _ = writeln!(
                svg,
                "<text {TEXT} x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                label(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<line {AXIS} x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>\
             <text {TEXT} x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            super::escape(self.x_label)
        );
    }

    /// Names of the curves, where there is more than one.
    fn legend(&self, svg: &mut String) {
        if self.series.len() < 2 {
            return;
        }
        for (row, series) in self.series.iter().enumerate() {
            let (from, at) = (WIDTH - RIGHT - 132.0, TOP + 12.0 + 18.0 * row as f64);
            let _ = writeln!(
                svg,
                "<line {} x1=\"{from}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\"/>\
                 <text {TEXT} x=\"{}\" y=\"{}\">{}</text>",
                series.stroke(),
                from + 22.0,
                from + 30.0,
                at + 4.0,
                super::escape(series.name)
            );
        }
    }
}

fn place_x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.fraction(value) * (WIDTH - LEFT - RIGHT)
}

fn place_y(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.fraction(value) * (HEIGHT - TOP - BOTTOM)
}

fn curve(svg: &mut String, series: &Series, points: &[(f64, f64)], x: &Axis, y: &Axis) {
    let places: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", place_x(x, point.0), place_y(y, point.1)))
        .collect();
    let _ = writeln!(svg, "<polyline {} points=\"{}\"/>", series.stroke(), places.join(" "));
    if series.dots || points.len() == 1 {
        for point in points {
            let (cx, cy) = (place_x(x, point.0), place_y(y, point.1));
            let _ = writeln!(
                svg,
                "<circle class=\"dot {}\" fill=\"{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"/>",
                series.class,
                series.colour()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_cover_the_values_with_round_ticks() {
        let axis = Axis::new([0.13, 4.87].into_iter(), 5.0);
        assert_eq!(axis.ticks, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let tight = Axis::new([0.13, 4.87].into_iter(), 5.0).tight([0.13, 4.87].into_iter());
        assert_eq!((tight.low, tight.high), (0.13, 4.87));
        assert_eq!(tight.ticks, [1.0, 2.0, 3.0, 4.0]);
        let flat = Axis::new([3.0, 3.0].into_iter(), 5.0);
        assert!(flat.low < 3.0 && flat.high > 3.0);
        let empty = Axis::new(std::iter::empty::<f64>(), 5.0);
        assert_eq!((empty.low, empty.high), (0.0, 1.0));
    }

    #[test]
    fn labels_are_short() {
        let labels = [0.0, 0.30000000000000004, 12.5, 20_000.0, 2.5e6, 3e-4, -1.0].map(label);
        assert_eq!(labels, ["0", "0.3", "12.5", "20k", "2.5M", "3.0e-4", "-1"]);
    }

    #[test]
    fn thinning_keeps_ends_and_means() {
        let points: Vec<(f64, f64)> =
            (0..4800).map(|i| (f64::from(i), f64::from(i % 10))).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 480);
        assert!(thinned.iter().all(|point| point.1 == 4.5));
        assert_eq!(thinned[0].0, 4.5);
        assert_eq!(thin(&points[..7]), points[..7]);
    }

    #[test]
    fn curves_lie_inside_the_plot() {
        let points = vec![(0.0, 5.0), (50.0, f64::NAN), (100.0, 1.0)];
        let series = Series { name: "a<b", class: "first", points, dots: true };
        let chart = Chart { title: "t\"", x_label: "step", series: vec![series] };
        let svg = chart.svg();
        // y from 1 to 5: the first point is at the top, the last at the bottom right.
        assert!(svg.contains("points=\"64.0,14.0 538.0,220.0\""), "{svg}");
        assert!(svg.contains("aria-label=\"t&quot;\""));
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
