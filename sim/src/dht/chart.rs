//! How long searches took, as a drawing: the part of them that is over, by the time.

use anyhow::{Context, Result};
use plotters::prelude::*;
use std::path::Path;

/// Pixels of the drawing: fits a page beside its text.
const SIZE: (u32, u32) = (900, 540);

/// Points of a curve; more are not seen.
const POINTS: usize = 500;

/// Draws the distribution of these times, in milliseconds, into an SVG file.
///
/// # Errors
/// When the file can't be written.
pub fn draw(took_ms: &[f64], title: &str, file: &Path) -> Result<()> {
    let mut sorted = took_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = |part: usize| sorted.get(last * part / POINTS).copied().unwrap_or(0.0);
    // The slowest of a thousand would press the others to the edge.
    let end = at(POINTS * 995 / 1000).max(1.0) * 1.05;
    let curve: Vec<(f64, f64)> = (0..=POINTS)
        .map(|part| (at(part), part as f64 / POINTS as f64))
        .take_while(|point| point.0 <= end)
        .collect();
    let failed = || format!("drawing {}", file.display());
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).with_context(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..1.02)
        .with_context(failed)?;
    chart
        .configure_mesh()
        .x_desc("milliseconds until a holder has answered")
        .y_desc("part of the searches")
        .draw()
        .with_context(failed)?;
    chart.draw_series(LineSeries::new(curve, BLUE.stroke_width(2))).with_context(failed)?;
    area.present().with_context(failed)
}
