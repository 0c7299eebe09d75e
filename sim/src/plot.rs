//! Completion over time, as a drawing: the part of all pieces that is held, and the part of the
//! fetches that is done.

use crate::report::{Report, curves};
use crate::world::World;
use anyhow::{Context, Result};
use plotters::prelude::*;
use std::path::Path;

/// Pixels of the drawing: fits a page beside its text.
const SIZE: (u32, u32) = (900, 540);

/// Draws a run that is over into an SVG file.
///
/// # Errors
/// When the file can't be written.
pub fn draw(world: &World, title: &str, file: &Path) -> Result<()> {
    let report = Report::of(world);
    let (held, done) = curves(world);
    let end = report.end_s.max(report.lower_bound_s) * 1.02;
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    let failed = || format!("drawing {}", file.display());
    area.fill(&WHITE).with_context(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..1.02)
        .with_context(failed)?;
    chart.configure_mesh().x_desc("seconds").y_desc("fraction").draw().with_context(failed)?;
    let bound = vec![(report.lower_bound_s, 0.0), (report.lower_bound_s, 1.02)];
    for (name, points, colour) in [
        ("pieces held", held, BLUE),
        ("fetches done", stairs(&done, end), RED),
        ("lower bound", bound, BLACK),
    ] {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .with_context(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .with_context(failed)?;
    area.present().with_context(failed)
}

/// A line that stays level between points.
fn stairs(points: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let mut line = vec![(0.0, 0.0)];
    for &(x, y) in points {
        line.push((x, line.last().map_or(0.0, |last| last.1)));
        line.push((x, y));
    }
    line.push((end, line.last().map_or(0.0, |last| last.1)));
    line
}
