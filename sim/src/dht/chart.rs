//! What came of a run, as a drawing: how long searches took, how many succeeded as time went by, and how
//! many messages nodes had.

use super::command::Ran;
use super::tally::PARTS;
use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// Pixels of the drawing: three charts side by side, each as wide as it is high.
const SIZE: (u32, u32) = (1260, 400);

/// Points of a curve; more are not seen, and a drawing is to be small.
const POINTS: usize = 200;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws what came of a run into an SVG file.
///
/// # Errors
/// When the file can't be written.
pub fn draw(ran: &Ran, title: &str, file: &Path) -> Result<()> {
    let failed = || format!("drawing {}", file.display());
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).with_context(failed)?;
    let area = area.titled(title, ("sans-serif", 20)).with_context(failed)?;
    let charts = area.split_evenly((1, 3));
    // The slowest of a thousand would press the others to the edge.
    let took = distribution(&ran.took_ms, 995);
    let names = ("milliseconds until a holder has answered", "part of the searches");
    curve(&charts[0], names, (0.0, 1.0), &took).with_context(failed)?;
    let parts = ran.success_by_part.iter().enumerate();
    let hours = ran.hours / PARTS as f64;
    let success: Vec<(f64, f64)> = parts
        .filter_map(|(part, success)| Some(((part as f64 + 0.5) * hours, 100.0 * (*success)?)))
        .collect();
    let least = success.iter().map(|point| point.1).fold(90.0, f64::min);
    let names = ("hours", "searches in a hundred that succeeded");
    curve(&charts[1], names, (least.floor(), 100.2), &success).with_context(failed)?;
    let messages = distribution(&ran.messages_a_day, 1000);
    let names = ("messages a day, sent or answered", "part of the nodes");
    curve(&charts[2], names, (0.0, 1.0), &messages).with_context(failed)?;
    area.present().with_context(failed)
}

/// The part of the values up to each, as far as so many thousandths.
fn distribution(values: &[f64], mille: usize) -> Vec<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = |part: usize| sorted.get(last * part / POINTS).copied().unwrap_or(0.0);
    (0..=POINTS * mille / 1000).map(|part| (at(part), part as f64 / POINTS as f64)).collect()
}

fn curve(
    area: &Area<'_>,
    (x, y): (&str, &str),
    (low, high): (f64, f64),
    points: &[(f64, f64)],
) -> Result<()> {
    let end = points.iter().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, low..high)?;
    chart.configure_mesh().max_light_lines(0).x_labels(6).x_desc(x).y_desc(y).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)))?;
    Ok(())
}
