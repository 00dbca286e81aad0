//! The report of a run: one HTML page without anything from outside, with curves, results, samples and
//! settings.
//!
//! The page is written from the metrics file and a [`Report`]; every text in it is escaped, since
//! samples are whatever the model wrote and settings may hold file names.

mod chart;

use crate::metrics::{self, Line};
use crate::task::Sample;
use crate::{Error, Result};
use chart::{Chart, Series};
use danaus_runtime::{fs, simd, threads};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Name of the page in a run's folder.
pub const FILE_NAME: &str = "report.html";

/// One row of the table of results.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRow {
    /// What was measured, such as `this model` or `gzip -9, file by file`.
    pub name: String,
    /// What the report's [`Measure`] says.
    pub value: f64,
    /// Whether this row is the run's own.
    pub is_ours: bool,
}

/// What the table of results compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// Bits per byte of the held-out text.
    #[default]
    BitsPerByte,
    /// Share of right answers.
    Accuracy,
}

/// What the page shows besides the curves.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// A sentence on what was trained on what.
    pub summary: String,
    /// What the results are.
    pub measure: Measure,
    /// Results of this model and of what it is compared with.
    pub results: Vec<ResultRow>,
    /// Model output.
    pub samples: Vec<Sample>,
    /// Settings, in the order they are shown: name and value.
    pub settings: Vec<(String, String)>,
}

/// Machine and build, as rows for [`Report::settings`].
pub fn machine() -> Vec<(String, String)> {
    let row = |name: &str, value: String| (name.to_string(), value);
    vec![
        row("build", crate::checkpoint::BUILD.to_string()),
        row("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        row("processor", processor()),
        row("instruction set", simd::isa().name().to_string()),
        row("threads", threads::count().to_string()),
    ]
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |line| line.trim_start_matches([':', '\t', ' '])).to_string()
}

/// Text as it may stand in HTML, attributes included.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // HTML has no way to write these.
            '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

impl Report {
    /// Writes `report.html` into a run's folder from the metrics there.
    ///
    /// # Errors
    /// When the metrics cannot be read or the page cannot be written.
    pub fn write(&self, run: &Path) -> Result<PathBuf> {
        let lines = metrics::read(&run.join(metrics::FILE_NAME))?;
        let path = run.join(FILE_NAME);
        let page = self.html(&lines);
        fs::write_atomic(&path, |writer| writer.write_all(page.as_bytes()))
            .map_err(Error::io(&path))?;
        Ok(path)
    }

    /// The page.
    pub fn html(&self, lines: &[Line]) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n<p class=\"lead\">{}</p>\n",
            include_str!("style.css"),
            escape(&self.summary)
        );
        page.push_str(&tiles(lines));
        page.push_str(&self.results_table());
        page.push_str("<section class=\"charts\">\n");
        for chart in charts(lines) {
            let _ = writeln!(
                page,
                "<figure>\n<figcaption>{}</figcaption>\n{}</figure>",
                escape(chart.title),
                chart.svg()
            );
        }
        page.push_str("</section>\n");
        page.push_str(&self.sample_blocks());
        page.push_str(&self.settings_table());
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }

    /// A bar a row, the shortest on top.
    fn results_table(&self) -> String {
        if self.results.is_empty() {
            return String::new();
        }
        let mut rows: Vec<&ResultRow> = self.results.iter().collect();
        let heading = match self.measure {
            Measure::BitsPerByte => {
                rows.sort_by(|a, b| a.value.total_cmp(&b.value));
                "Held-out text, bits per byte (lower is better)"
            }
            Measure::Accuracy => "Share of right answers",
        };
        let longest = rows.iter().map(|row| row.value).fold(f64::MIN_POSITIVE, f64::max);
        let mut html = format!("<h2>{heading}</h2>\n<table class=\"results\">\n");
        for row in rows {
            let _ = writeln!(
                html,
                "<tr{}><th>{}</th><td class=\"number\">{:.3}</td><td class=\"bar\">\
                 <div style=\"width:{:.1}%\"></div></td></tr>",
                if row.is_ours { " class=\"ours\"" } else { "" },
                escape(&row.name),
                row.value,
                100.0 * (row.value / longest).clamp(0.0, 1.0)
            );
        }
        html + "</table>\n"
    }

    fn sample_blocks(&self) -> String {
        let mut html = String::new();
        if !self.samples.is_empty() {
            html.push_str("<h2>Samples</h2>\n");
        }
        for sample in &self.samples {
            let _ = writeln!(
                html,
                "<figure class=\"sample\">\n<figcaption>{}</figcaption>\n\
                 <pre><span class=\"given\">{}</span><mark>{}</mark><span class=\"given\">{}</span></pre>\n\
                 </figure>",
                escape(&sample.kind),
                escape(&sample.prompt),
                escape(&sample.output),
                escape(&sample.suffix)
            );
        }
        html
    }

    fn settings_table(&self) -> String {
        let mut html = "<h2>Settings</h2>\n<table class=\"settings\">\n".to_string();
        for (name, value) in &self.settings {
            let (name, value) = (escape(name), escape(value));
            let _ = writeln!(html, "<tr><th>{name}</th><td>{value}</td></tr>");
        }
        html + "</table>\n"
    }
}

/// The run in five numbers.
fn tiles(lines: &[Line]) -> String {
    let last = |value: Value| lines.iter().rev().find_map(value);
    let mut speeds: Vec<f64> = lines.iter().filter_map(|line| line.tokens_per_s).collect();
    speeds.sort_by(f64::total_cmp);
    let speed = speeds.get(speeds.len() / 2);
    let end = lines.last().cloned().unwrap_or_default();
    let minutes = end.seconds / 60.0;
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_string(), |value| format!("{value:.digits$}"))
    };
    let tiles = [
        ("steps", end.step.to_string()),
        ("tokens", grouped(end.tokens)),
        ("minutes", format!("{minutes:.1}")),
        ("tokens/s (median)", speed.map_or("-".to_string(), |speed| grouped(*speed as u64))),
        ("training loss", shown(last(|line| line.loss), 3)),
        ("held-out bits per byte", shown(last(|line| line.val_bits_per_byte), 3)),
    ];
    let mut html = "<section class=\"tiles\">\n".to_string();
    for (name, value) in tiles {
        let _ = writeln!(html, "<div><strong>{value}</strong><span>{name}</span></div>");
    }
    html + "</section>\n"
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

/// A column of the metrics.
type Value = fn(&Line) -> Option<f64>;

fn charts(lines: &[Line]) -> Vec<Chart<'static>> {
    let points = |value: Value| -> Vec<(f64, f64)> {
        lines.iter().filter_map(|line| Some((line.step as f64, value(line)?))).collect()
    };
    let line = |name, class, points, dots| Series { name, class, points, dots };
    let chart = |title, series| Chart { title, x_label: "step", series };
    let mut charts = vec![chart(
        "Loss (nats per token)",
        vec![
            line("training", "first", points(|line| line.loss), false),
            line("held out", "second", points(|line| line.val_loss), true),
        ],
    )];
    let bits = points(|line| line.val_bits_per_byte);
    if !bits.is_empty() {
        let series = vec![line("held out", "second", bits, true)];
        charts.push(chart("Held-out bits per byte", series));
    }
    let curves: [(&'static str, Value); 3] = [
        ("Learning rate", |line| line.lr),
        ("Tokens per second", |line| line.tokens_per_s),
        ("Gradient norm", |line| line.grad_norm),
    ];
    for (title, value) in curves {
        charts.push(chart(title, vec![line(title, "first", points(value), false)]));
    }
    charts
}

#[cfg(test)]
mod tests;
