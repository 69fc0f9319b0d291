//! Draws the figures: how long VMs took, as the share that runs after so many milliseconds, one line a run.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Color, IntoDrawingArea, IntoLogRange, LineSeries, Palette, Palette99, PathElement,
    SVGBackend, WHITE,
};

use super::figures::Figures;

/// Writes the plot to `path`.
pub fn draw(figures: &Figures, path: &Path) -> Result<()> {
    draw_to(figures, path).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn draw_to(figures: &Figures, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let largest = figures.runs.iter().map(|run| run.create_to_running_ms.max).fold(1000.0, f64::max) * 1.2;
    let area = SVGBackend::new(path, (960, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("VMs running after their creation", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((10.0..largest).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("milliseconds from create to Running, seen by a client's watch")
        .y_desc("VMs, %")
        .x_label_formatter(&|ms| format!("{ms:.0}"))
        .draw()?;
    for (index, run) in figures.runs.iter().enumerate() {
        let mut times = run.times_ms.clone();
        times.sort_by(f64::total_cmp);
        let count = times.len().max(1) as f64;
        let points = times.into_iter().enumerate().map(|(n, ms)| (ms, (n + 1) as f64 * 100.0 / count));
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(&run.title)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK)
        .position(plotters::chart::SeriesLabelPosition::LowerRight)
        .draw()?;
    area.present()?;
    Ok(())
}
