//! What was measured: series of samples, their medians, their ratios to a reference measured in
//! the same rounds, and what was aimed at.

use super::machine::Machine;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::fmt;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Aim {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// One thing measured once a round.
#[derive(Debug)]
struct Series {
    what: String,
    unit: &'static str,
    samples: Vec<f64>,
    aim: Option<Aim>,
    against: Vec<(String, Option<Aim>)>,
}

/// A report in the making.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    machine: Machine,
    series: Vec<Series>,
    notes: Vec<String>,
}

/// A finished report, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Summary {
    name: &'static str,
    machine: Machine,
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    aim: Option<Verdict>,
    ratios: Vec<Ratio>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    to: String,
    median: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aim: Option<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    aim: String,
    met: bool,
}

impl Report {
    /// An empty one, of this machine as it is now.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, machine: Machine::now(), series: Vec::new(), notes: Vec::new() }
    }

    /// Says something that belongs to the figures.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds this round's sample of a thing; things are listed in the order of their first sample.
    pub fn sample(&mut self, what: impl Into<String>, unit: &'static str, value: f64) {
        let what = what.into();
        match self.series.iter_mut().find(|series| series.what == what) {
            Some(series) => series.samples.push(value),
            None => self.series.push(Series {
                what,
                unit,
                samples: vec![value],
                aim: None,
                against: Vec::new(),
            }),
        }
    }

    /// Says what a thing's median should be; of things never measured, nothing.
    pub fn aim(&mut self, what: &str, aim: Aim) {
        if let Some(series) = self.series.iter_mut().find(|series| series.what == what) {
            series.aim = Some(aim);
        }
    }

    /// Adds the ratio of a thing to a reference, if both were measured.
    pub fn compare(&mut self, what: &str, reference: &str, aim: Option<Aim>) {
        if self.find(reference).is_some()
            && let Some(series) = self.series.iter_mut().find(|series| series.what == what)
        {
            series.against.push((reference.to_owned(), aim));
        }
    }

    fn find(&self, what: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.what == what)
    }

    /// Medians, ratios and verdicts.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            name: self.name,
            machine: self.machine.clone(),
            rows: self.series.iter().map(|series| self.row(series)).collect(),
            notes: self.notes.clone(),
        }
    }

    fn row(&self, series: &Series) -> Row {
        let middle = median(&series.samples);
        let ratios = series.against.iter().filter_map(|(to, aim)| {
            let reference = self.find(to)?;
            let of_rounds: Vec<f64> =
                series.samples.iter().zip(&reference.samples).map(|(a, b)| a / b).collect();
            let middle = median(&of_rounds);
            Some(Ratio { to: to.clone(), median: middle, aim: verdict(*aim, middle) })
        });
        Row {
            what: series.what.clone(),
            unit: series.unit,
            median: middle,
            min: series.samples.iter().copied().fold(f64::INFINITY, f64::min),
            max: series.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            rounds: series.samples.len(),
            aim: verdict(series.aim, middle),
            ratios: ratios.collect(),
        }
    }
}

fn verdict(aim: Option<Aim>, value: f64) -> Option<Verdict> {
    aim.map(|aim| Verdict { aim: aim.to_string(), met: aim.is_met_by(value) })
}

/// The middle sample; of an even number, the mean of the two in the middle.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Three significant digits, which is more than these figures are good for.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn marked(text: &str, verdict: Option<&Verdict>) -> String {
    match verdict {
        Some(Verdict { aim, met: true }) => format!("{text} ({aim}: met)"),
        Some(Verdict { aim, met: false }) => format!("{text} ({aim}: MISSED)"),
        None => text.to_owned(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, kernel, load } = &self.machine;
        writeln!(f, "{} on {cores} cores of {processor}, Linux {kernel}, load {load}", self.name)?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["what", "median", "min – max", "unit", "ratio"]);
        for row in self.summary().rows {
            let ratios: Vec<String> = row
                .ratios
                .iter()
                .map(|ratio| {
                    let text = format!("{} × {}", figure(ratio.median), ratio.to);
                    marked(&text, ratio.aim.as_ref())
                })
                .collect();
            table.add_row([
                row.what,
                marked(&figure(row.median), row.aim.as_ref()),
                format!("{} – {}", figure(row.min), figure(row.max)),
                row.unit.to_owned(),
                ratios.join("; "),
            ]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let mut report = Report::new("test");
        // The machine was slow in the second round: for both.
        for (ours, theirs) in [(10.0, 5.0), (4.0, 2.0), (12.0, 4.0)] {
            report.sample("ours", "MB/s", ours);
            report.sample("theirs", "MB/s", theirs);
        }
        report.aim("ours", Aim::AtLeast(11.0));
        report.compare("ours", "theirs", Some(Aim::AtLeast(1.3)));
        report.compare("ours", "nobody's", None);
        let row = &report.summary().rows[0];
        assert_eq!((row.median, row.min, row.max), (10.0, 4.0, 12.0));
        assert_eq!(row.ratios.len(), 1);
        assert_eq!(row.ratios[0].median, 2.0);
        assert!(row.ratios[0].aim.as_ref().is_some_and(|verdict| verdict.met));
        let text = report.to_string();
        assert!(text.contains("10.0 (≥ 11: MISSED)"), "{text}");
        assert!(text.contains("2.00 × theirs (≥ 1.3: met)"), "{text}");
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
