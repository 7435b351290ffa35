//! Plots as SVG: bars to compare, lines to show growth.

use anyhow::anyhow;
use plotters::prelude::*;

const WIDTH: u32 = 900;
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const THEIRS: RGBColor = RGBColor(0xb0, 0xb8, 0xc0);
const LINES: [RGBColor; 5] = [
    OURS,
    RGBColor(0xd6, 0x5f, 0x2c),
    RGBColor(0x4c, 0x9a, 0x4c),
    RGBColor(0x80, 0x60, 0xa8),
    RGBColor(0x90, 0x90, 0x90),
];

/// A bar: a name, and its median with the least and the most.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// A line: a name, and points.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Debug)]
pub(super) enum Shape {
    Bars(Vec<Bar>),
    /// Against a logarithmic axis of this name.
    Lines(&'static str, Vec<Line>),
}

/// A plot.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) shape: Shape,
}

type Drawn = anyhow::Result<()>;

impl Plot {
    pub(super) fn bars(title: impl Into<String>, bars: Vec<Bar>) -> Self {
        let bars = bars.into_iter().filter(|bar| bar.median.is_finite()).collect();
        Self { title: title.into(), shape: Shape::Bars(bars) }
    }

    pub(super) fn lines(title: impl Into<String>, axis: &'static str, lines: Vec<Line>) -> Self {
        Self { title: title.into(), shape: Shape::Lines(axis, lines) }
    }

    /// The picture as text.
    pub(super) fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let height = match &self.shape {
            Shape::Bars(bars) => 70 + 34 * u32::try_from(bars.len())?,
            Shape::Lines(..) => 420,
        };
        match &self.shape {
            Shape::Bars(bars) => self.draw_bars(&mut text, height, bars)?,
            Shape::Lines(axis, lines) => self.draw_lines(&mut text, height, axis, lines)?,
        }
        Ok(text)
    }

    fn draw_bars(&self, text: &mut String, height: u32, bars: &[Bar]) -> Drawn {
        let area = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        let most = bars.iter().map(|bar| bar.most.max(bar.median)).fold(f64::MIN_POSITIVE, f64::max);
        let (left, right) = (330_i32, 120_i32);
        let scale = f64::from(i32::try_from(WIDTH)? - left - right) / most;
        let title = ("sans-serif", 20).into_font().color(&BLACK);
        area.draw(&Text::new(self.title.clone(), (16, 14), title)).map_err(broken)?;
        let label = ("sans-serif", 15).into_font().color(&BLACK);
        for (number, bar) in bars.iter().enumerate() {
            let top = 52 + 34 * i32::try_from(number)?;
            let at = |value: f64| left + (value * scale).round() as i32;
            let color = if bar.name.starts_with("portcullis") { OURS } else { THEIRS };
            let shape = Rectangle::new([(left, top), (at(bar.median), top + 22)], color.filled());
            area.draw(&shape).map_err(broken)?;
            let whisker = PathElement::new(vec![(at(bar.least), top + 11), (at(bar.most), top + 11)], BLACK.mix(0.6));
            area.draw(&whisker).map_err(broken)?;
            area.draw(&Text::new(bar.name.clone(), (16, top + 4), label.clone())).map_err(broken)?;
            let digits = if bar.median < 1.0 { 3 } else { usize::from(bar.median < 100.0) };
            let value = format!("{:.digits$}", bar.median);
            area.draw(&Text::new(value, (at(bar.most) + 8, top + 4), label.clone())).map_err(broken)?;
        }
        area.present().map_err(broken)
    }

    fn draw_lines(&self, text: &mut String, height: u32, axis: &str, lines: &[Line]) -> Drawn {
        let area = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        let points = || lines.iter().flat_map(|line| &line.points);
        let widest = points().map(|point| point.0).fold(10.0, f64::max);
        let highest = points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d((1.0..widest).log_scale(), 0.0..highest * 1.1)
            .map_err(broken)?;
        let whole = |value: &f64| format!("{value:.0}");
        chart
            .configure_mesh()
            .x_desc(axis)
            .x_label_formatter(&whole)
            .y_label_formatter(&whole)
            .light_line_style(WHITE)
            .draw()
            .map_err(broken)?;
        for (line, color) in lines.iter().zip(LINES.into_iter().cycle()) {
            let series = LineSeries::new(line.points.clone(), color.stroke_width(2)).point_size(3);
            let drawn = chart.draw_series(series).map_err(broken)?;
            drawn
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        let labels = chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(THEIRS).draw();
        labels.map_err(broken)?;
        area.present().map_err(broken)
    }
}

fn broken(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_in_the_picture() {
        let bar = |name: &str| Bar { name: name.into(), median: 2.0, least: 1.0, most: 3.0 };
        let bars = Plot::bars("µs for each request", vec![bar("portcullis"), bar("nginx")]).svg().unwrap();
        assert!(bars.contains("portcullis") && bars.contains("2.0") && bars.ends_with("</svg>\n"), "{bars}");
        let line = Line { name: "rules".into(), points: vec![(1.0, 2.0), (1000.0, 2.5)] };
        let lines = Plot::lines("growth", "number", vec![line]).svg().unwrap();
        assert!(lines.contains("rules") && lines.contains("polyline"), "{lines}");
    }
}
