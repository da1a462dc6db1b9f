//! Plots as inline SVG that adapt to the width of the page. Positions are percentages of the plot area; texts, lines
//! and marks are not scaled.
//!
//! The plot area is the content box of the element. Axis labels lie in its padding (`svg.plot` in `page.css`).

use std::fmt::Write as _;

use d2o_evaluations::result::digits;

use super::escape;

/// Number of colours and marks. Further series repeat them, alternately with hollow marks.
const SERIES: usize = 8;
/// Number of dash styles.
const DASHES: usize = 5;
/// Most points of a drawn line, about one per pixel.
const POINTS: usize = 800;
/// Approximate number of ticks of an axis.
const TICKS: f64 = 5.0;
/// Smallest widths of the area of a plot and of a forest plot, on the narrowest pages, pixels.
const PLOT_WIDTH: usize = 250;
const FOREST_WIDTH: usize = 150;
/// Width of a character of a label, and space between labels, pixels.
const CHARACTER: usize = 7;
const BETWEEN: usize = 8;
/// Mark shapes around the origin, pixels.
const MARKS: [&str; SERIES] = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5.2L5 3.8H-5z",
    "M0-5.6L5.6 0 0 5.6-5.6 0z",
    "M0 5.2L5-3.8H-5z",
    "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "M0-5.2L5-1.6 3.1 4.3H-3.1L-5-1.6z",
    "M-4.8-2.6L-2.6-4.8 0-2.2 2.6-4.8 4.8-2.6 2.2 0 4.8 2.6 2.6 4.8 0 2.2-2.6 4.8-4.8 2.6-2.2 0z",
];

/// CSS classes for the colour of series `index`.
pub(super) fn series(index: usize) -> String {
    let hollow = if index / SERIES % 2 == 1 { " hollow" } else { "" };
    format!("s{}{hollow}", index % SERIES)
}

/// CSS classes of a line in the colour of series `index`, with dash style `dash`.
pub(super) fn line_class(index: usize, dash: usize) -> String {
    format!("{} d{}", series(index), dash % DASHES)
}

/// Mark shape of series `index`.
fn mark(index: usize) -> &'static str {
    MARKS[index % SERIES]
}

/// Legend key of a series: its line if `dash` is given, its mark if `marked`.
pub(super) fn key(index: usize, dash: Option<usize>, marked: bool) -> String {
    let (class, width) = if dash.is_some() { ("key", 30) } else { ("key lone", 14) };
    let mut out = format!("<svg class=\"{class} {}\" viewBox=\"0 0 {width} 14\" aria-hidden=\"true\">", series(index));
    if let Some(dash) = dash {
        let _ = write!(out, "<path class=\"line d{}\" d=\"M1 7H29\"/>", dash % DASHES);
    }
    if marked {
        let _ = write!(out, "<path class=\"mark\" transform=\"translate({} 7)\" d=\"{}\"/>", width / 2, mark(index));
    }
    out + "</svg>"
}

/// Scale of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Axis that covers `values` and begins and ends with a tick.
    pub(super) fn nice(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let step = step(high - low);
        // The tolerance avoids a further tick if an end is a tick up to rounding.
        Self::stepped((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step, step)
    }

    /// Axis exactly from the lowest to the highest of `values`.
    pub(super) fn tight(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        Self::stepped(low, high, step(high - low))
    }

    /// Axis for shares: from 0 to 1, or closer if `values` are close together.
    pub(super) fn shares(values: &[f64]) -> Self {
        const CLOSE: f64 = 0.25;
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        if high - low < CLOSE && values.len() > 1 && high > low {
            Self::nice(values.iter().copied())
        } else {
            Self::nice(values.iter().copied().chain([0.0, 1.0]))
        }
    }

    /// Logarithmic axis if `values` are positive and the largest is more than `factor` times the smallest, otherwise
    /// [`Axis::nice`].
    pub(super) fn log_beyond(factor: f64, values: &[f64]) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > 0.0 && high > low * factor { Self::logarithmic(low, high) } else { Self::nice(finite()) }
    }

    /// Axis linear in 1/N, from infinitely many images (at 0) to `fewest` images.
    pub(super) fn inverse(fewest: usize, most: usize) -> Self {
        /// Smallest space between two labels, as a share of the axis.
        const SPACE: f64 = 0.15;
        #[allow(clippy::cast_precision_loss, reason = "image counts")]
        let [fewest, most] = [fewest.max(1) as f64, most.max(1) as f64];
        let high = 1.0 / fewest;
        let mut ticks = vec![(0.0, "∞".to_owned())];
        let mut end = 0.0;
        let largest = exponent(most * 2.0);
        for (exponent, factor) in (0..=largest).rev().flat_map(|e| [(e, 5.0), (e, 2.0), (e, 1.0)]) {
            let count = factor * 10.0_f64.powi(exponent);
            let at = 1.0 / count;
            if at <= high * (1.0 + 1e-9) && at / high - end >= SPACE {
                end = at / high;
                ticks.push((at, digits(count, 6)));
            }
        }
        Self::with_ticks(0.0, high, ticks)
    }

    /// Axis from `low` to `high` with the given ticks.
    pub(super) fn with_ticks(low: f64, high: f64, ticks: Vec<(f64, String)>) -> Self {
        Self { low, high, log: false, ticks }
    }

    /// Whether it is logarithmic.
    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    /// Ends of the axis.
    pub(super) fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// The ticks. Labels are left out if they do not fit side by side into `width` pixels.
    fn fitting(&self, width: usize) -> impl Iterator<Item = (f64, &str)> {
        let longest = self.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let every = ((longest * CHARACTER + BETWEEN) * self.ticks.len()).div_ceil(width).max(1);
        self.ticks.iter().enumerate().map(move |(i, (v, label))| (*v, if i % every == 0 { label.as_str() } else { "" }))
    }

    fn stepped(low: f64, high: f64, step: f64) -> Self {
        const MOST: usize = 50;
        let first = (low / step - 1e-9).ceil();
        #[allow(clippy::cast_precision_loss, reason = "a few ticks")]
        let at = |i: usize| (first + i as f64) * step;
        let ticks = (0..MOST).map(at).take_while(|v| *v <= high + step * 1e-9).map(|v| (v, tick(v, step))).collect();
        Self { low, high, log: false, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        const NARROW: i32 = 2;
        const WIDE: i32 = 6;
        let (first, last) = (exponent(low), exponent(high));
        let decades = last - first;
        let factors: &[f64] = if decades <= NARROW { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = if decades > WIDE { decades / NARROW } else { 1 };
        let all: Vec<f64> = (first..=last + every)
            .filter(|e| (e - first) % every == 0)
            .flat_map(|e| factors.iter().map(move |f| f * 10.0_f64.powi(e)))
            .collect();
        let low = all.iter().copied().rfind(|v| *v <= low * (1.0 + 1e-9)).unwrap_or(low);
        let high = all.iter().copied().find(|v| *v >= high * (1.0 - 1e-9)).unwrap_or(high);
        let ticks = all.into_iter().filter(|v| (low..=high).contains(v)).map(|v| (v, digits(v, 3))).collect();
        Self { low, high, log: true, ticks }
    }

    /// Position of `value`: 0 at the low end, 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        let of = |v: f64| if self.log { v.ln() } else { v };
        (of(value) - of(self.low)) / (of(self.high) - of(self.low))
    }

    /// Position of `value` in percent, as text.
    pub(super) fn percent(&self, value: f64) -> String {
        percent(self.share(value))
    }
}

/// Lowest and highest of `values`, widened if all are equal; 0 and 1 without finite values.
fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    if high > low {
        return (low, high);
    }
    let around = if low == 0.0 { 0.5 } else { 0.1 * low.abs() };
    let bottom = if low >= 0.0 { (low - around).max(0.0) } else { low - around };
    (bottom, high + around)
}

/// Decimal exponent of `value`, which must be positive.
#[allow(clippy::cast_possible_truncation, reason = "exponents of f64")]
fn exponent(value: f64) -> i32 {
    value.log10().floor() as i32
}

/// Distance between ticks over `span`: 1, 2 or 5 times a power of ten.
fn step(span: f64) -> f64 {
    let raw = span / TICKS;
    let power = 10.0_f64.powi(exponent(raw));
    [1.0, 2.0, 5.0].into_iter().map(|f| f * power).find(|s| *s >= raw * 0.999).unwrap_or(10.0 * power)
}

/// Label of a tick at `value`, with ticks `step` apart.
fn tick(value: f64, step: f64) -> String {
    const LONG: usize = 5;
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    let places = usize::try_from(-exponent(step * (1.0 + 1e-9))).unwrap_or(0);
    if places > LONG || value.abs() >= 1e6 { minus(&digits(value, 4)) } else { minus(&format!("{value:.places$}")) }
}

/// `number` with a minus sign instead of a hyphen.
pub(super) fn minus(number: &str) -> String {
    number.replace('-', "−")
}

fn percent(share: f64) -> String {
    let hundredths = (1e4 * share).round();
    // Also true for negative zero.
    let text = if hundredths == 0.0 { "0.00".to_owned() } else { format!("{:.2}", hundredths / 100.0) };
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A plot in progress.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    axes: String,
    body: String,
}

impl Plot {
    /// An empty plot with labelled axes.
    pub(super) fn new(x: Axis, y: Axis, x_label: &str, y_label: &str) -> Self {
        let mut axes = String::new();
        for (value, label) in &y.ticks {
            let at = percent(1.0 - y.share(*value));
            let _ = write!(
                axes,
                "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{at}\" y2=\"{at}\"/>\
                 <text class=\"tick y\" x=\"-8\" y=\"{at}\" dy=\".32em\">{}</text>",
                escape::html(label)
            );
        }
        axes.push_str("<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"100%\" y2=\"100%\"/>");
        for (value, label) in x.fitting(PLOT_WIDTH) {
            axes.push_str(&tick_at(&x.percent(value), "100%", 19, label));
        }
        let _ = write!(
            axes,
            "<text class=\"name y\" x=\"-52\" y=\"-12\">{}</text>\
             <text class=\"name x\" x=\"100%\" y=\"100%\" dy=\"38\">{}</text>",
            escape::html(y_label),
            escape::html(x_label)
        );
        Self { x, y, axes, body: String::new() }
    }

    fn at(&self, x: f64, y: f64) -> [String; 2] {
        [self.x.percent(x), percent(1.0 - self.y.share(y))]
    }

    /// Draws a line through `points`, in order of x. It breaks where a value is not finite. `class` gives its colour
    /// and dash.
    pub(super) fn line(&mut self, points: &[(f64, f64)], class: &str) {
        const SCALE: f64 = 1000.0;
        let mut path = String::new();
        for piece in points.split(|(_, y)| !y.is_finite()) {
            let shares: Vec<(f64, f64)> =
                piece.iter().map(|(x, y)| (SCALE * self.x.share(*x), SCALE * (1.0 - self.y.share(*y)))).collect();
            for (i, (x, y)) in thinned(&shares).into_iter().enumerate() {
                let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
            }
            // A value between two gaps is drawn as a dot.
            if shares.len() == 1 {
                path.push_str("h0");
            }
        }
        let _ = write!(
            self.body,
            "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\"><path class=\"line {class}\" vector-effect=\"non-scaling-stroke\" d=\"{path}\"/></svg>"
        );
    }

    /// Draws the mark of series `index`.
    pub(super) fn mark(&mut self, x: f64, y: f64, index: usize) {
        let [x, y] = self.at(x, y);
        self.body.push_str(&mark_at(&x, &y, index));
    }

    /// Draws a ring in the colour of series `index`.
    pub(super) fn ring(&mut self, x: f64, y: f64, index: usize) {
        let [x, y] = self.at(x, y);
        let _ = write!(self.body, "<circle class=\"ring {}\" cx=\"{x}\" cy=\"{y}\" r=\"6\"/>", series(index));
    }

    /// Draws an interval of y at `x`.
    pub(super) fn bar_y(&mut self, x: f64, [low, high]: [f64; 2], index: usize) {
        let ([x, low], [_, high]) = (self.at(x, low), self.at(x, high));
        self.bar([[&x, &low], [&x, &high]], "M-4 0H4", index);
    }

    /// Draws an interval of x at `y`.
    pub(super) fn bar_x(&mut self, y: f64, [low, high]: [f64; 2], index: usize) {
        let ([low, y], [high, _]) = (self.at(low, y), self.at(high, y));
        self.bar([[&low, &y], [&high, &y]], "M0-4V4", index);
    }

    fn bar(&mut self, ends: [[&str; 2]; 2], cap: &str, index: usize) {
        let class = series(index);
        let [[x1, y1], [x2, y2]] = ends;
        let _ = write!(self.body, "<line class=\"bar {class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>");
        for [x, y] in ends {
            let _ = write!(self.body, "<svg x=\"{x}\" y=\"{y}\"><path class=\"bar {class}\" d=\"{cap}\"/></svg>");
        }
    }

    /// Draws a column from the bottom to `y`, between two values of x.
    pub(super) fn column(&mut self, [from, to]: [f64; 2], y: f64) {
        let (left, width) = (self.x.share(from), self.x.share(to) - self.x.share(from));
        let height = self.y.share(y);
        let _ = write!(
            self.body,
            "<rect class=\"column\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            percent(left),
            percent(1.0 - height),
            percent(width),
            percent(height)
        );
    }

    /// The finished element. `id` is unique in the page, `title` names the content, `summary` describes the values.
    pub(super) fn finish(self, id: &str, title: &str, summary: &str) -> String {
        format!(
            "<svg class=\"plot\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title>\
             <desc id=\"{id}-d\">{}</desc>{}{}</svg>",
            escape::html(title),
            escape::html(summary),
            self.axes,
            self.body
        )
    }
}

/// A tick of a horizontal axis at (`x`, `y`), with its label `below` pixels lower.
fn tick_at(x: &str, y: &str, below: u32, label: &str) -> String {
    let mut out = format!("<svg x=\"{x}\" y=\"{y}\"><path class=\"axis\" d=\"M0 0v5\"/></svg>");
    if !label.is_empty() {
        let _ = write!(out, "<text class=\"tick x\" x=\"{x}\" y=\"{y}\" dy=\"{below}\">{}</text>", escape::html(label));
    }
    out
}

fn mark_at(x: &str, y: &str, index: usize) -> String {
    format!("<svg x=\"{x}\" y=\"{y}\"><path class=\"mark {}\" d=\"{}\"/></svg>", series(index), mark(index))
}

/// Content of a row of a forest plot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ForestMark {
    /// The value.
    pub(super) value: f64,
    /// Ends of the bar.
    pub(super) bar: Option<[f64; 2]>,
    /// Whether the bar is a standard deviation instead of an interval.
    pub(super) dashed: bool,
    /// Value of the baseline, marked by a line through all rows.
    pub(super) baseline: Option<f64>,
}

impl ForestMark {
    /// Draws the row for series `index`. `text` describes it in words.
    pub(super) fn draw(&self, axis: &Axis, index: usize, text: &str) -> String {
        let class = series(index);
        let mut out = format!("<svg class=\"forest-row\" role=\"img\"><title>{}</title>", escape::html(text));
        if let Some(baseline) = self.baseline {
            let at = axis.percent(baseline);
            let _ = write!(out, "<line class=\"baseline\" x1=\"{at}\" x2=\"{at}\" y1=\"-10%\" y2=\"110%\"/>");
        }
        if let Some([low, high]) = self.bar {
            let dashed = if self.dashed { " dashed" } else { "" };
            let (low, high) = (axis.percent(low), axis.percent(high));
            let _ =
                write!(out, "<line class=\"bar {class}{dashed}\" x1=\"{low}\" x2=\"{high}\" y1=\"50%\" y2=\"50%\"/>");
            for end in [low, high] {
                let _ = write!(out, "<svg x=\"{end}\" y=\"50%\"><path class=\"bar {class}\" d=\"M0-4V4\"/></svg>");
            }
        }
        out.push_str(&mark_at(&axis.percent(self.value), "50%", index));
        out + "</svg>"
    }
}

/// The axis below a forest plot.
pub(super) fn forest_axis(axis: &Axis) -> String {
    let mut out =
        "<svg class=\"forest-axis\" aria-hidden=\"true\"><line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"1\" y2=\"1\"/>"
            .to_owned();
    for (value, label) in axis.fitting(FOREST_WIDTH) {
        out.push_str(&tick_at(&axis.percent(value), "1", 19, label));
    }
    out + "</svg>"
}

/// Thins `points` if there are more than [`POINTS`]: first, lowest, highest and last point of each of equal pieces, in
/// order, so that peaks remain.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let size = points.len().div_ceil(POINTS / 4);
    let mut out = Vec::with_capacity(POINTS);
    for piece in points.chunks(size) {
        let numbered = || piece.iter().map(|p| p.1).enumerate();
        let low = numbered().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i);
        let high = numbered().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i);
        let mut chosen = [0, low, high, piece.len() - 1];
        chosen.sort_unstable();
        let mut last = None;
        for i in chosen {
            if last != Some(i) {
                out.push(piece[i]);
                last = Some(i);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, l)| l.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = Axis::nice([1.3, 9.2]);
        assert_eq!((labels(&axis), axis.ends()), (vec!["0", "2", "4", "6", "8", "10"], [0.0, 10.0]));
        assert_eq!(labels(&Axis::nice([0.0012, 0.0018])), ["0.0012", "0.0014", "0.0016", "0.0018"]);
        assert_eq!(labels(&Axis::nice([-0.1, 0.2])), ["−0.1", "0.0", "0.1", "0.2"]);
        let axis = Axis::tight([0.016, 1.648]);
        assert_eq!((labels(&axis), axis.ends()), (vec!["0.5", "1.0", "1.5"], [0.016, 1.648]));
        assert_eq!(labels(&Axis::nice([7.0])), ["6.0", "6.5", "7.0", "7.5", "8.0"]);
        assert_eq!(Axis::nice([]).ends(), [0.0, 1.0]);
        assert_eq!(Axis::nice([f64::NAN, 0.0]).ends(), [0.0, 0.5]);
    }

    #[test]
    fn wide_ranges_of_positive_values_are_logarithmic() {
        let axis = Axis::log_beyond(20.0, &[3.0, 272.0]);
        assert!(axis.is_log());
        assert_eq!(labels(&axis), ["2", "5", "10", "20", "50", "100", "200", "500"]);
        assert!((axis.share((2.0_f64 * 500.0).sqrt()) - 0.5).abs() < 1e-12);
        assert_eq!(labels(&Axis::log_beyond(20.0, &[1e-5, 30.0])).len(), 8);
        for linear in [&[3.0, 40.0][..], &[-1.0, 500.0], &[0.0, 500.0], &[]] {
            assert!(!Axis::log_beyond(20.0, linear).is_log(), "{linear:?}");
        }
    }

    #[test]
    fn sizes_of_subsets_are_ticks_of_their_inverse() {
        let axis = Axis::inverse(50, 500);
        assert_eq!(labels(&axis), ["∞", "200", "100", "50"]);
        assert_eq!(axis.percent(1.0 / 100.0), "50%");
        assert_eq!(labels(&Axis::inverse(5000, 50_000)), ["∞", "20000", "10000", "5000"]);
    }

    #[test]
    fn labels_that_would_touch_are_left_out() {
        let axis = Axis::nice([0.0, 0.001]);
        let shown = |width| {
            axis.fitting(width).map(|(_, label)| label.to_owned()).filter(|l| !l.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(shown(400), ["0.0000", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010"]);
        assert_eq!(shown(200), ["0.0000", "0.0004", "0.0008"]);
    }

    #[test]
    fn long_lines_keep_their_peaks() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 0.0)).collect();
        points[7321].1 = 5.0;
        points[99].1 = -3.0;
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin.contains(&(7321.0, 5.0)) && thin.contains(&(99.0, -3.0)));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!((thin[0], thin[thin.len() - 1]), ((0.0, 0.0), (9999.0, 0.0)));
    }

    #[test]
    fn lines_break_where_a_value_is_missing() {
        let mut plot = Plot::new(Axis::nice([0.0, 4.0]), Axis::nice([0.0, 4.0]), "x", "<y>");
        plot.line(&[(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.0)], "s0 d0");
        let svg = plot.finish("p", "a & b", "none");
        assert!(svg.contains("M0.0 750.0L250.0 750.0M750.0 750.0L1000.0 750.0"), "{svg}");
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;y&gt;"), "{svg}");
    }
}
